"""The messages between edge and worker, and their bytes.

    ResumeRequest                               edge -> worker
    Accepted | Busy | AnswerMessage | ErrorMessage   worker -> edge
    Cancel                                      edge -> workers
    Presence                                    anybody, retained

A message checks its own fields when it is made, so a made message can be sent and a decoded one
can be trusted in shape (`MalformedMessage` otherwise). `codec` and `state` are opaque here: what
they mean is the reader's business. Unknown fields are ignored, so fields may be added. Neighbour:
`requests` has the request and its windows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from protocol.checks import (
    check_boolean,
    check_float,
    check_integer,
    check_maps,
    check_name,
    check_text,
    take,
)
from protocol.errors import MalformedMessage
from protocol.requests import (
    CODEC_PATTERN,
    MAX_LAYERS,
    MAX_SPANS,
    MAX_STATE_BYTES,
    MAX_WINDOW_INDEX,
    MAX_WINDOW_TOKENS,
    MAX_WINDOWS,
    Provisional,
    RequestWindow,
    ResumeRequest,
    check_windows,
    request_from_wire,
    request_to_wire,
)
from protocol.wire import Frame, Kind, decode_frame, encode_frame

__all__ = [
    "CODEC_PATTERN",
    "ERROR_CODES",
    "KINDS",
    "MAX_DETAIL_CHARACTERS",
    "MAX_LAYERS",
    "MAX_SECONDS",
    "MAX_SPANS",
    "MAX_STATE_BYTES",
    "MAX_WINDOWS",
    "MAX_WINDOW_INDEX",
    "MAX_WINDOW_TOKENS",
    "WORKER_KINDS",
    "Accepted",
    "AnswerMessage",
    "Busy",
    "Cancel",
    "ErrorMessage",
    "Message",
    "Presence",
    "Provisional",
    "RequestWindow",
    "ResumeRequest",
    "SpanScore",
    "WindowResult",
    "WorkerMessage",
    "decode_message",
    "encode_message",
]

MAX_DETAIL_CHARACTERS = 500
MAX_SECONDS = 86_400.0

ERROR_CODES = (
    "unknown_release",
    "unknown_codec",
    "bad_state",
    "malformed",
    "expired",
    "duplicate",
    "too_large",
    "internal",
)


@dataclass(frozen=True)
class SpanScore:
    """A span of tokens, both ends included, with the logits of its ends."""

    start_token: int
    end_token: int
    start_logit: float
    end_logit: float

    def __post_init__(self) -> None:
        check_integer("end_token", self.end_token, 0, MAX_WINDOW_TOKENS - 1)
        check_integer("start_token", self.start_token, 0, self.end_token)
        check_float("start_logit", self.start_logit)
        check_float("end_logit", self.end_logit)


@dataclass(frozen=True)
class WindowResult:
    """One window's best spans, best first, from the exit behind `layer`."""

    index: int
    layer: int
    null_score: float
    spans: tuple[SpanScore, ...]

    def __post_init__(self) -> None:
        check_integer("window index", self.index, 0, MAX_WINDOW_INDEX)
        check_integer("layer", self.layer, 0, MAX_LAYERS)
        check_float("null_score", self.null_score)
        if len(self.spans) > MAX_SPANS:
            raise MalformedMessage(f"at most {MAX_SPANS} spans a window, not {len(self.spans)}")


@dataclass(frozen=True)
class Accepted:
    """The worker holds the request and promises an answer within `lease_seconds`."""

    lease_seconds: float
    worker: str

    def __post_init__(self) -> None:
        check_float("lease_seconds", self.lease_seconds, 0.0, MAX_SECONDS)
        check_name("worker", self.worker)


@dataclass(frozen=True)
class Busy:
    """The worker did not take the request; try again after `retry_after_seconds`."""

    retry_after_seconds: float
    worker: str

    def __post_init__(self) -> None:
        check_float("retry_after_seconds", self.retry_after_seconds, 0.0, MAX_SECONDS)
        check_name("worker", self.worker)


@dataclass(frozen=True)
class AnswerMessage:
    """The result of every window of the request, and how long it waited and computed."""

    results: tuple[WindowResult, ...]
    worker: str
    queue_seconds: float
    compute_seconds: float

    def __post_init__(self) -> None:
        check_windows("results", [result.index for result in self.results])
        check_name("worker", self.worker)
        check_float("queue_seconds", self.queue_seconds, 0.0, MAX_SECONDS)
        check_float("compute_seconds", self.compute_seconds, 0.0, MAX_SECONDS)


@dataclass(frozen=True)
class ErrorMessage:
    """The worker will not answer this request, ever: one of `ERROR_CODES` and a short reason.

    The code is any name, so that a newer worker may say what this program does not know yet.
    """

    code: str
    detail: str
    worker: str

    def __post_init__(self) -> None:
        check_name("code", self.code)
        check_text("detail", self.detail, MAX_DETAIL_CHARACTERS)
        check_name("worker", self.worker)


@dataclass(frozen=True)
class Cancel:
    """The edge no longer wants the answer."""


@dataclass(frozen=True)
class Presence:
    """Whether the holder of a presence topic is connected; in clear, and only informs."""

    online: bool

    def __post_init__(self) -> None:
        check_boolean("online", self.online)


WorkerMessage = Accepted | Busy | AnswerMessage | ErrorMessage
Message = ResumeRequest | Accepted | Busy | AnswerMessage | ErrorMessage | Cancel | Presence

KINDS: dict[type[Message], Kind] = {
    ResumeRequest: Kind.RESUME_REQUEST,
    Accepted: Kind.ACCEPTED,
    Busy: Kind.BUSY,
    AnswerMessage: Kind.ANSWER,
    ErrorMessage: Kind.ERROR,
    Cancel: Kind.CANCEL,
    Presence: Kind.PRESENCE,
}
WORKER_KINDS = frozenset({Kind.ACCEPTED, Kind.BUSY, Kind.ANSWER, Kind.ERROR})


def encode_message(message: Message) -> bytes:
    """The bytes of a message; raises OversizedMessage where no reader would take them."""
    fields, attachment = _ENCODERS.get(type(message), _encode_plain)(message)
    return encode_frame(KINDS[type(message)], fields, attachment)


def decode_message(payload: bytes, expected: Collection[Kind]) -> Message:
    """The message in `payload`, if it is of an expected kind. Raises MalformedMessage else."""
    frame = decode_frame(payload, expected)
    decoder = _DECODERS.get(frame.kind)
    if decoder is None:
        raise MalformedMessage(f"a frame of kind {frame.kind.name} holds no plain message")
    if frame.attachment and frame.kind is not Kind.RESUME_REQUEST:
        raise MalformedMessage(f"a message of kind {frame.kind.name} has no attachment")
    return decoder(frame)


def _encode_plain(message: Any) -> tuple[dict[str, Any], bytes]:
    """Messages whose fields are numbers and text only."""
    return dict(vars(message)), b""


def _encode_answer(message: Any) -> tuple[dict[str, Any], bytes]:
    """Spans as short lists, to keep an answer of many windows small."""
    fields = dict(vars(message))
    fields["results"] = [
        {
            **vars(result),
            "spans": [
                [span.start_token, span.end_token, span.start_logit, span.end_logit]
                for span in result.spans
            ],
        }
        for result in message.results
    ]
    return fields, b""


def _decode_answer(frame: Frame) -> AnswerMessage:
    results_value, worker, queue_seconds, compute_seconds = take(
        frame.fields, "results", "worker", "queue_seconds", "compute_seconds"
    )
    results = tuple(
        _decode_result(fields) for fields in check_maps("results", results_value, MAX_WINDOWS)
    )
    return AnswerMessage(results, worker, queue_seconds, compute_seconds)


def _decode_result(fields: dict[str, Any]) -> WindowResult:
    index, layer, null_score, spans = take(fields, "index", "layer", "null_score", "spans")
    if not isinstance(spans, list) or len(spans) > MAX_SPANS:
        raise MalformedMessage(f"spans must be a list of at most {MAX_SPANS}")
    if not all(isinstance(span, list) and len(span) >= 4 for span in spans):
        raise MalformedMessage("a span must be a list of start, end and two logits")
    return WindowResult(index, layer, null_score, tuple(SpanScore(*span[:4]) for span in spans))


_ENCODERS: dict[type[Message], Callable[[Any], tuple[dict[str, Any], bytes]]] = {
    ResumeRequest: request_to_wire,
    AnswerMessage: _encode_answer,
}
_DECODERS: dict[Kind, Callable[[Frame], Message]] = {
    Kind.RESUME_REQUEST: request_from_wire,
    Kind.ANSWER: _decode_answer,
    Kind.ACCEPTED: lambda frame: Accepted(*take(frame.fields, "lease_seconds", "worker")),
    Kind.BUSY: lambda frame: Busy(*take(frame.fields, "retry_after_seconds", "worker")),
    Kind.ERROR: lambda frame: ErrorMessage(*take(frame.fields, "code", "detail", "worker")),
    Kind.CANCEL: lambda _frame: Cancel(),
    Kind.PRESENCE: lambda frame: Presence(*take(frame.fields, "online")),
}
