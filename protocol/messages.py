"""The messages between edge and worker, and their bytes.

    ResumeRequest                               edge -> worker
    Accepted | Busy | AnswerMessage | ErrorMessage   worker -> edge
    Cancel                                      edge -> workers
    Presence                                    anybody, retained

A message checks its own fields when it is made, so a made message can be sent and a decoded one
can be trusted in shape (`MalformedMessage` otherwise). `codec` and `state` are opaque here: what
they mean is the reader's business. Unknown fields are ignored, so fields may be added.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from protocol.checks import (
    check_bytes,
    check_float,
    check_integer,
    check_name,
    check_text,
)
from protocol.errors import MalformedMessage
from protocol.wire import MAX_LIST_ITEMS, Frame, Kind, decode_frame, encode_frame

MAX_WINDOWS = 128
MAX_WINDOW_INDEX = 4095
MAX_LAYERS = 64
MAX_WINDOW_TOKENS = 1024
MAX_STATE_BYTES = 4 * 1024 * 1024
MAX_SPANS = 20
MAX_DETAIL_CHARACTERS = 500
MAX_SECONDS = 86_400.0
CODEC_PATTERN = re.compile(r"[a-z0-9_-]{1,32}", re.ASCII)

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
class RequestWindow:
    """One window's state after layer `from_layer`, packed by `codec`; or, where the codec's name
    says so, its token ids (then the layer is 0).

    `length_tokens` (T) counts [CLS] question [SEP] passage [SEP]; the first `question_tokens`
    of them are [CLS] question [SEP].
    """

    index: int
    from_layer: int
    length_tokens: int
    question_tokens: int
    codec: str
    state: bytes

    def __post_init__(self) -> None:
        check_integer("window index", self.index, 0, MAX_WINDOW_INDEX)
        check_integer("from_layer", self.from_layer, 0, MAX_LAYERS)
        check_integer("length_tokens", self.length_tokens, 1, MAX_WINDOW_TOKENS)
        check_integer("question_tokens", self.question_tokens, 0, self.length_tokens)
        if not isinstance(self.codec, str) or CODEC_PATTERN.fullmatch(self.codec) is None:
            raise MalformedMessage("codec must be 1 to 32 of a-z, 0-9, '_' and '-'")
        check_bytes("state", self.state, 1, MAX_STATE_BYTES)


@dataclass(frozen=True)
class ResumeRequest:
    """A question's unresolved windows; the worker returns up to `top_spans` spans for each."""

    windows: tuple[RequestWindow, ...]
    top_spans: int

    def __post_init__(self) -> None:
        _check_windows("windows", [window.index for window in self.windows])
        check_integer("top_spans", self.top_spans, 1, MAX_SPANS)


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
        _check_windows("results", [result.index for result in self.results])
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
        if not isinstance(self.online, bool):
            raise MalformedMessage("online must be true or false")


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


def _check_windows(field: str, indexes: list[int]) -> None:
    """1 to MAX_WINDOWS windows, no index twice."""
    if not 1 <= len(indexes) <= MAX_WINDOWS:
        raise MalformedMessage(f"{field} must number 1 to {MAX_WINDOWS}, not {len(indexes)}")
    if len(set(indexes)) != len(indexes):
        raise MalformedMessage(f"{field} must not name a window index twice")


def _encode_plain(message: Any) -> tuple[dict[str, Any], bytes]:
    """Messages whose fields are numbers and text only."""
    return dict(vars(message)), b""


def _encode_request(message: Any) -> tuple[dict[str, Any], bytes]:
    """The windows' descriptions in the map; their states, one after another, attached."""
    windows = []
    for window in message.windows:
        fields = dict(vars(window))
        fields["state"] = len(window.state)
        windows.append(fields)
    attachment = b"".join(window.state for window in message.windows)
    return {"windows": windows, "top_spans": message.top_spans}, attachment


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


def _take(fields: dict[str, Any], *names: str) -> list[Any]:
    """The named fields in order; a missing one makes the message malformed."""
    try:
        return [fields[name] for name in names]
    except KeyError as error:
        raise MalformedMessage(f"field {error.args[0]!r} is missing") from error


def _maps(field: str, value: object, high: int = MAX_LIST_ITEMS) -> list[dict[str, Any]]:
    """A list of at most `high` maps."""
    if not isinstance(value, list) or len(value) > high:
        raise MalformedMessage(f"{field} must be a list of at most {high}")
    if not all(isinstance(item, dict) for item in value):
        raise MalformedMessage(f"{field} must hold maps")
    return value


def _decode_request(frame: Frame) -> ResumeRequest:
    windows_value, top_spans = _take(frame.fields, "windows", "top_spans")
    windows = []
    position = 0
    for fields in _maps("windows", windows_value, MAX_WINDOWS):
        index, from_layer, length_tokens, question_tokens, codec, size = _take(
            fields, "index", "from_layer", "length_tokens", "question_tokens", "codec", "state"
        )
        size = check_integer("state bytes", size, 1, MAX_STATE_BYTES)
        state = frame.attachment[position : position + size]
        if len(state) != size:
            raise MalformedMessage("the windows' states are longer than the attachment")
        position += size
        windows.append(
            RequestWindow(index, from_layer, length_tokens, question_tokens, codec, state)
        )
    if position != len(frame.attachment):
        raise MalformedMessage("the attachment is longer than the windows' states")
    return ResumeRequest(tuple(windows), top_spans)


def _decode_answer(frame: Frame) -> AnswerMessage:
    results_value, worker, queue_seconds, compute_seconds = _take(
        frame.fields, "results", "worker", "queue_seconds", "compute_seconds"
    )
    results = tuple(_decode_result(fields) for fields in _maps("results", results_value))
    return AnswerMessage(results, worker, queue_seconds, compute_seconds)


def _decode_result(fields: dict[str, Any]) -> WindowResult:
    index, layer, null_score, spans = _take(fields, "index", "layer", "null_score", "spans")
    if not isinstance(spans, list) or len(spans) > MAX_SPANS:
        raise MalformedMessage(f"spans must be a list of at most {MAX_SPANS}")
    if not all(isinstance(span, list) and len(span) >= 4 for span in spans):
        raise MalformedMessage("a span must be a list of start, end and two logits")
    return WindowResult(index, layer, null_score, tuple(SpanScore(*span[:4]) for span in spans))


_ENCODERS: dict[type[Message], Callable[[Any], tuple[dict[str, Any], bytes]]] = {
    ResumeRequest: _encode_request,
    AnswerMessage: _encode_answer,
}
_DECODERS: dict[Kind, Callable[[Frame], Message]] = {
    Kind.RESUME_REQUEST: _decode_request,
    Kind.ANSWER: _decode_answer,
    Kind.ACCEPTED: lambda frame: Accepted(*_take(frame.fields, "lease_seconds", "worker")),
    Kind.BUSY: lambda frame: Busy(*_take(frame.fields, "retry_after_seconds", "worker")),
    Kind.ERROR: lambda frame: ErrorMessage(*_take(frame.fields, "code", "detail", "worker")),
    Kind.CANCEL: lambda _frame: Cancel(),
    Kind.PRESENCE: lambda frame: Presence(*_take(frame.fields, "online")),
}
