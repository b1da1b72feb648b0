"""The bodies of the HTTP interface: what may be asked, what comes back, and how a body is checked.

Input: the bytes of a body. Output: a `Question`, or InvalidQuestion with a reason that names the
field and what is wrong with it, never its content. Neighbours: `app` uses it; the models also make
the OpenAPI document.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers

from edge_agent.errors import InvalidQuestion
from edge_agent.questions import REQUEST_ID_PATTERN, Question
from edge_agent.settings import EdgeSettings
from protocol.requests import SHOWN_ID_CHARACTERS
from reader.windows import MAX_PASSAGE_CHARACTERS, MAX_QUESTION_CHARACTERS

MAX_TOP_K = 20
REQUEST_ID_HEADER = "X-Request-ID"


class QuestionBody(BaseModel):
    """A question about a passage."""

    model_config = ConfigDict(extra="forbid", strict=True, title="Question")

    question: Annotated[
        str,
        Field(min_length=1, max_length=MAX_QUESTION_CHARACTERS, examples=["Who built the bridge?"]),
    ]
    context: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_PASSAGE_CHARACTERS,
            description="The passage that holds the answer, if there is one.",
            examples=["The bridge was built by Ada Miller in 1901."],
        ),
    ]
    deadline_seconds: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="How long the asker waits; the device finishes by itself before that.",
        ),
    ] = None
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K, description="How many answers.")] = 1
    request_id: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9_-]{1,64}$",
            description=(
                "Makes a repeated request safe: the same id with the same content gets the same "
                "answer. The broker sees it. When absent, that of the header X-Request-ID, or a "
                "random one."
            ),
        ),
    ] = None


class RankedAnswerBody(BaseModel):
    """One of several answers."""

    answer: str
    start: int
    end: int
    score: float


class AnswerBody(BaseModel):
    """The one final answer of a question."""

    model_config = ConfigDict(title="Answer")

    request_id: str
    answer: Annotated[str, Field(description="Empty when the passage does not hold an answer.")]
    start: Annotated[int, Field(description="First character in the passage; -1 without answer.")]
    end: Annotated[int, Field(description="Character after the last one; -1 without answer.")]
    score: Annotated[float, Field(description="Probability that the answer is right.")]
    no_answer_score: Annotated[float, Field(description="Probability that there is none.")]
    exit_layer: Annotated[int, Field(description="Deepest layer that was needed.")]
    resolved_by: Literal["edge", "cloud"]
    degraded: Annotated[
        bool, Field(description="The cloud was wanted, and the device had to finish by itself.")
    ]
    latency_ms: float
    bytes_sent: Annotated[int, Field(description="Sealed bytes published for this question.")]
    model: str
    release: Annotated[str, Field(description="Digest of the weights that gave the answer.")]
    engine: Annotated[str, Field(description="What computed on the device.")]
    precision: Annotated[str, Field(description="Of its matrix products.")]
    answers: Annotated[
        list[RankedAnswerBody] | None, Field(description="Best first, when top_k is above 1.")
    ] = None


class ErrorBody(BaseModel):
    """Why there is no answer."""

    model_config = ConfigDict(title="Error")

    error: Annotated[str, Field(description="A stable short name.")]
    reason: str


class PendingBody(BaseModel):
    """The question is accepted and not settled yet."""

    model_config = ConfigDict(title="Pending")

    request_id: str
    status: Literal["pending"]
    provisional: Annotated[
        AnswerBody | None, Field(description="The device's best so far; may change.")
    ] = None


_PENDING: dict[str, Any] = {"model": PendingBody, "description": "Accepted, not settled yet"}
ANSWER_RESPONSES: dict[int | str, dict[str, Any]] = {
    202: _PENDING,
    404: {"model": ErrorBody, "description": "Not accepted here, or past its retention"},
    421: {"model": ErrorBody, "description": "The request names a host that this device is not"},
    500: {"model": ErrorBody, "description": "The question could not be read: a fault of ours"},
}
POST_RESPONSES: dict[int | str, dict[str, Any]] = {
    202: _PENDING,
    408: {"model": ErrorBody, "description": "The body did not arrive in time"},
    409: {"model": ErrorBody, "description": "The request_id belongs to another question"},
    413: {"model": ErrorBody, "description": "The body is too large"},
    415: {"model": ErrorBody, "description": "The body is not declared as application/json"},
    421: {"model": ErrorBody, "description": "The request names a host that this device is not"},
    422: {"model": ErrorBody, "description": "The question cannot be read; the reason says why"},
    429: {"model": ErrorBody, "description": "The queue is full; Retry-After says when to return"},
    500: ANSWER_RESPONSES[500],
    503: {
        "model": ErrorBody,
        "description": "No release yet, the agent is stopping, or it cannot store",
    },
}


QUESTION_HEADERS: list[dict[str, Any]] = [
    {
        "name": REQUEST_ID_HEADER,
        "in": "header",
        "required": False,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
        "description": "The question's id where the body names none; the response has it too.",
    },
    {
        "name": "traceparent",
        "in": "header",
        "required": False,
        "schema": {"type": "string"},
        "description": "W3C Trace Context: what the agent's spans hang below, where it has traces.",
    },
]


def request_id_of(headers: Headers) -> str:
    """The id that a question has when its body names none: that of `X-Request-ID`, or a new one."""
    given = headers.get(REQUEST_ID_HEADER, "")
    return given if REQUEST_ID_PATTERN.fullmatch(given) else uuid.uuid4().hex


def renamed(question: Question) -> Question:
    """The same question, of which only the header named the id, and another one has that id.

    A caller may give all requests of one piece of work the same `X-Request-ID`.
    """
    shown = question.request_id[:SHOWN_ID_CHARACTERS]
    return replace(question, request_id=f"{shown}-{uuid.uuid4().hex[:12]}")


def read_question(
    body: bytes, settings: EdgeSettings, *, created: float, request_id: str
) -> tuple[Question, bool]:
    """The question in a body, and whether the body named its id; else it is `request_id`.

    Raises InvalidQuestion. `created` is in unix seconds.
    """
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidQuestion(f"the body is not valid UTF-8 (at byte {error.start})") from None
    try:
        asked = QuestionBody.model_validate_json(body)
    except ValidationError as error:
        raise InvalidQuestion(_describe(error)) from None  # the cause quotes the input
    deadline_seconds = asked.deadline_seconds or settings.default_deadline_seconds
    if deadline_seconds > settings.max_deadline_seconds:
        raise InvalidQuestion(
            f"deadline_seconds: at most {settings.max_deadline_seconds:g} on this device"
        )
    question = Question(
        request_id=asked.request_id or request_id,
        question=asked.question,
        passage=asked.context,
        top_k=asked.top_k,
        deadline_seconds=deadline_seconds,
        created=created,
    )
    return question, asked.request_id is not None


def question_schema(settings: EdgeSettings) -> dict[str, Any]:
    """The OpenAPI description of the request body."""
    return {
        "required": True,
        "description": f"UTF-8 JSON of at most {settings.http.max_body_bytes} bytes.",
        "content": {"application/json": {"schema": QuestionBody.model_json_schema()}},
    }


def _describe(error: ValidationError) -> str:
    """Which fields are wrong and how. A field that we do not know is not named: it is input."""
    problems = []
    for problem in error.errors(include_input=False, include_url=False, include_context=False):
        if problem["type"] == "extra_forbidden":
            known = ", ".join(QuestionBody.model_fields)
            problems.append(f"there is a field that is not one of {known}")
        elif problem["type"] == "json_invalid":
            problems.append("the body is not valid JSON")
        else:
            field = ".".join(str(part) for part in problem["loc"]) or "body"
            problems.append(f"{field}: {problem['msg']}")
    return "; ".join(dict.fromkeys(problems))
