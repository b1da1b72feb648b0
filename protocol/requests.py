"""A request's windows: what an edge asks a worker to go on with, and its wire form.

Neighbours: `messages` is the way to all messages and their bytes, `sealing` hides them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from protocol.checks import check_boolean, check_bytes, check_integer, check_maps, take
from protocol.errors import MalformedMessage
from protocol.trace_parent import check_trace_parent
from protocol.wire import Frame

MAX_WINDOWS = 128
MAX_WINDOW_INDEX = 4095
MAX_LAYERS = 64
MAX_WINDOW_TOKENS = 1024
MAX_STATE_BYTES = 4 * 1024 * 1024
MAX_SPANS = 20
CODEC_PATTERN = re.compile(r"[a-z0-9_-]{1,32}", re.ASCII)
WIRE_END_BYTES = 6
SHOWN_ID_CHARACTERS = 51
"""Of a question's request id, in its wire id: a topic's part has 64, the random end takes 13."""
_WIRE_END = re.compile(r"-[0-9a-f]{12}$", re.ASCII)


def wire_id_of(request_id: str, end: bytes) -> str:
    """The id under which a question's windows cross the broker: its own, and a random end.

    So one search finds it in every log, and yet a worker never takes the request for an earlier
    one of the same question (repacked, or of an agent that was restarted), whose bytes were others.
    """
    return f"{request_id[:SHOWN_ID_CHARACTERS]}-{end.hex()}"


def request_id_of(wire_id: str) -> str:
    """The question's own id, its first 51 characters at most; an id without such an end stays."""
    return _WIRE_END.sub("", wire_id) or wire_id


@dataclass(frozen=True)
class Provisional:
    """An edge's own best span of a window, tokens with both ends included, at the exit behind
    `layer`: what a worker's final span is compared with. (0, 0) is the null span.
    """

    layer: int
    start_token: int
    end_token: int

    def __post_init__(self) -> None:
        check_integer("provisional layer", self.layer, 1, MAX_LAYERS)
        check_integer("provisional end_token", self.end_token, 0, MAX_WINDOW_TOKENS - 1)
        check_integer("provisional start_token", self.start_token, 0, self.end_token)


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
    provisional: Provisional | None = None

    def __post_init__(self) -> None:
        check_integer("window index", self.index, 0, MAX_WINDOW_INDEX)
        check_integer("from_layer", self.from_layer, 0, MAX_LAYERS)
        check_integer("length_tokens", self.length_tokens, 1, MAX_WINDOW_TOKENS)
        check_integer("question_tokens", self.question_tokens, 0, self.length_tokens)
        if not isinstance(self.codec, str) or CODEC_PATTERN.fullmatch(self.codec) is None:
            raise MalformedMessage("codec must be 1 to 32 of a-z, 0-9, '_' and '-'")
        check_bytes("state", self.state, 1, MAX_STATE_BYTES)
        if self.provisional is not None and self.provisional.end_token >= self.length_tokens:
            raise MalformedMessage("the provisional span must lie inside its window")


@dataclass(frozen=True)
class ResumeRequest:
    """A question's unresolved windows; the worker returns up to `top_spans` spans for each.

    `is_audit`: the edge was certain, has answered, and asks only whether the worker agrees.
    `trace_parent` says where the worker's spans hang, where the edge has traces.
    """

    windows: tuple[RequestWindow, ...]
    top_spans: int
    is_audit: bool = False
    trace_parent: str | None = None

    def __post_init__(self) -> None:
        check_windows("windows", [window.index for window in self.windows])
        check_integer("top_spans", self.top_spans, 1, MAX_SPANS)
        check_boolean("is_audit", self.is_audit)
        check_trace_parent(self.trace_parent)


def request_to_wire(message: ResumeRequest) -> tuple[dict[str, Any], bytes]:
    """The windows' descriptions in the map; their states, one after another, attached.

    Fields that came later are left out where they are not used: the bytes stay as they were.
    """
    windows = []
    for window in message.windows:
        fields = dict(vars(window))
        fields["state"] = len(window.state)
        mine = fields.pop("provisional")
        if mine is not None:
            fields["provisional"] = [mine.layer, mine.start_token, mine.end_token]
        windows.append(fields)
    attachment = b"".join(window.state for window in message.windows)
    request = {"windows": windows, "top_spans": message.top_spans}
    if message.is_audit:
        request["is_audit"] = True
    if message.trace_parent is not None:
        request["trace_parent"] = message.trace_parent
    return request, attachment


def request_from_wire(frame: Frame) -> ResumeRequest:
    """The request in a frame. Raises MalformedMessage."""
    windows_value, top_spans = take(frame.fields, "windows", "top_spans")
    windows = []
    position = 0
    for fields in check_maps("windows", windows_value, MAX_WINDOWS):
        index, from_layer, length_tokens, question_tokens, codec, size = take(
            fields, "index", "from_layer", "length_tokens", "question_tokens", "codec", "state"
        )
        size = check_integer("state bytes", size, 1, MAX_STATE_BYTES)
        state = frame.attachment[position : position + size]
        if len(state) != size:
            raise MalformedMessage("the windows' states are longer than the attachment")
        position += size
        windows.append(
            RequestWindow(
                index,
                from_layer,
                length_tokens,
                question_tokens,
                codec,
                state,
                _decode_provisional(fields.get("provisional")),
            )
        )
    if position != len(frame.attachment):
        raise MalformedMessage("the attachment is longer than the windows' states")
    return ResumeRequest(
        tuple(windows),
        top_spans,
        frame.fields.get("is_audit", False),
        frame.fields.get("trace_parent"),
    )


def _decode_provisional(value: object) -> Provisional | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) < 3:
        raise MalformedMessage("provisional must be a list of layer, start and end")
    return Provisional(*value[:3])


def check_windows(field: str, indexes: list[int]) -> None:
    """1 to MAX_WINDOWS windows, no index twice."""
    if not 1 <= len(indexes) <= MAX_WINDOWS:
        raise MalformedMessage(f"{field} must number 1 to {MAX_WINDOWS}, not {len(indexes)}")
    if len(set(indexes)) != len(indexes):
        raise MalformedMessage(f"{field} must not name a window index twice")
