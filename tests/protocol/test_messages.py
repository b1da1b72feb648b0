"""Messages and their bytes: round trips, bounds, and every way that bytes can be wrong."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import (
    MalformedMessage,
    OversizedMessage,
    ProtocolError,
    TruncatedMessage,
    UnexpectedKind,
    UnsupportedVersion,
)
from protocol.messages import (
    KINDS,
    MAX_SPANS,
    MAX_STATE_BYTES,
    MAX_WINDOWS,
    WORKER_KINDS,
    Accepted,
    AnswerMessage,
    Busy,
    Cancel,
    ErrorMessage,
    Message,
    Presence,
    Provisional,
    RequestWindow,
    ResumeRequest,
    SpanScore,
    WindowResult,
    decode_message,
    encode_message,
)
from protocol.wire import (
    FIXED_HEADER_BYTES,
    MAGIC,
    MAX_MAP_BYTES,
    MAX_MESSAGE_BYTES,
    WIRE_VERSION,
    Kind,
    decode_frame,
    encode_frame,
)

WINDOW = RequestWindow(0, 3, 200, 12, "fp16", b"state")
SPAN = SpanScore(13, 15, 4.5, -0.25)
EVERY_MESSAGE: list[Message] = [
    ResumeRequest((WINDOW, RequestWindow(7, 0, 1, 1, "a", b"x" * 999)), 20),
    ResumeRequest((replace(WINDOW, provisional=Provisional(3, 13, 15)),), 5, is_audit=True),
    Accepted(2.5, "w-1"),
    Busy(0.0, "w-1"),
    AnswerMessage((WindowResult(0, 12, -1.5, (SPAN,)), WindowResult(3, 7, 0.0, ())), "w", 0.1, 2),
    ErrorMessage("unknown_release", "release ab is not loaded", "w-1"),
    Cancel(),
    Presence(online=True),
]
ALL_KINDS = frozenset(KINDS.values())
GOOD_FIELDS = {"lease_seconds": 1.0, "worker": "w"}


def frame(fields: Any, kind: int = Kind.ACCEPTED, attachment: bytes = b"", **change: Any) -> bytes:
    """A frame made by hand, so that anything can be wrong about it."""
    body = fields if isinstance(fields, bytes) else msgpack.packb(fields)
    head = {
        "magic": MAGIC,
        "version": WIRE_VERSION,
        "kind": kind,
        "map": len(body),
        "attachment": len(attachment),
        **change,
    }
    return struct.pack(">4sBBII", *head.values()) + body + attachment


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda message: type(message).__name__)
def test_every_message_survives_its_bytes(message: Message) -> None:
    assert decode_message(encode_message(message), {KINDS[type(message)]}) == message


def test_unknown_fields_are_ignored() -> None:
    payload = frame({"lease_seconds": 1.0, "worker": "w", "colour": "red", "more": [1, {"a": 2}]})
    assert decode_message(payload, WORKER_KINDS) == Accepted(1.0, "w")


def test_a_later_span_may_hold_more_numbers() -> None:
    result = {"index": 0, "layer": 1, "null_score": 0.0, "spans": [[1, 2, 0.5, 0.5, "new"]]}
    fields = {"results": [result], "worker": "w", "queue_seconds": 0.0, "compute_seconds": 0.0}
    answer = decode_message(frame(fields, Kind.ANSWER), WORKER_KINDS)
    assert isinstance(answer, AnswerMessage)
    assert answer.results[0].spans == (SpanScore(1, 2, 0.5, 0.5),)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_refused(version: int) -> None:
    with pytest.raises(UnsupportedVersion, match=str(version)):
        decode_message(frame({}, version=version), ALL_KINDS)


def test_another_kind_than_expected_is_refused() -> None:
    payload = encode_message(Accepted(1.0, "w"))
    with pytest.raises(UnexpectedKind, match="BUSY"):
        decode_message(payload, {Kind.BUSY})
    with pytest.raises(UnexpectedKind, match="99"):
        decode_message(frame({}, kind=99), ALL_KINDS)


def test_a_sealed_frame_is_no_plain_message() -> None:
    with pytest.raises(MalformedMessage):
        decode_message(frame({}, kind=Kind.SEALED_ANSWER), {Kind.SEALED_ANSWER})


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda message: type(message).__name__)
def test_every_cut_is_noticed(message: Message) -> None:
    payload = encode_message(message)
    for length in range(min(len(payload), 200)):
        with pytest.raises(TruncatedMessage):
            decode_message(payload[:length], ALL_KINDS)


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(MalformedMessage, match="1 bytes after"):
        decode_message(encode_message(Cancel()) + b"\0", ALL_KINDS)


def test_foreign_bytes_are_refused() -> None:
    with pytest.raises(MalformedMessage, match="magic"):
        decode_message(frame({}, magic=b"JSON"), ALL_KINDS)


def test_sizes_are_checked_before_the_map_is_decoded() -> None:
    with pytest.raises(OversizedMessage):
        decode_frame(b"\0" * (MAX_MESSAGE_BYTES + 1), ALL_KINDS)
    with pytest.raises(OversizedMessage):
        decode_message(frame(b"\xc1" * (MAX_MAP_BYTES + 1)), ALL_KINDS)


def test_a_message_too_large_to_be_read_is_not_made() -> None:
    windows = tuple(
        RequestWindow(index, 1, 10, 2, "fp32", b"\0" * MAX_STATE_BYTES) for index in range(5)
    )
    with pytest.raises(OversizedMessage, match="fewer windows"):
        encode_message(ResumeRequest(windows, 1))
    with pytest.raises(OversizedMessage):
        encode_frame(Kind.SEALED_ANSWER, {"x": "y" * (MAX_MAP_BYTES + 1)})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb([1, 2]),
        msgpack.packb(7),
        msgpack.packb({**GOOD_FIELDS, b"bytes as a key": 1}),
        msgpack.packb({**GOOD_FIELDS, 1: "a number as a key"}),
        msgpack.packb({**GOOD_FIELDS, "x": {1: "a number as an inner key"}}),
        msgpack.packb({**GOOD_FIELDS, "x": "long text" * 1000}),
        msgpack.packb({**GOOD_FIELDS, "x": b"long bytes" * 200}),
        msgpack.packb({**GOOD_FIELDS, "x": list(range(2000))}),
        msgpack.packb({**GOOD_FIELDS, "x": {str(number): number for number in range(100)}}),
        msgpack.packb({**GOOD_FIELDS, "x": msgpack.ExtType(5, b"code")}),
        msgpack.packb({**GOOD_FIELDS, "x": msgpack.Timestamp(1, 1)}),
        msgpack.packb(GOOD_FIELDS) + msgpack.packb({}),
        msgpack.packb(GOOD_FIELDS)[:-1] + b"\xff",  # text that is not UTF-8
        b"\x91" * 3000,  # nested deeper than any decoder should follow
        b"\xdd\xff\xff\xff\xff",  # a list of four billion items, none of them there
    ],
)
def test_a_map_that_is_no_small_plain_map_is_refused(body: bytes) -> None:
    assert decode_message(frame(GOOD_FIELDS), ALL_KINDS) == Accepted(1.0, "w")
    with pytest.raises(MalformedMessage):
        decode_message(frame(body), ALL_KINDS)


@pytest.mark.parametrize(
    "fields",
    [
        {"worker": "w"},
        {"lease_seconds": None, "worker": "w"},
        {"lease_seconds": True, "worker": "w"},
        {"lease_seconds": -1.0, "worker": "w"},
        {"lease_seconds": float("nan"), "worker": "w"},
        {"lease_seconds": float("inf"), "worker": "w"},
        {"lease_seconds": 2**63, "worker": "w"},
        {"lease_seconds": 1.0, "worker": "a/b"},
        {"lease_seconds": 1.0, "worker": 7},
        {"lease_seconds": 1.0, "worker": "w" * 65},
    ],
)
def test_a_field_out_of_bounds_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage):
        decode_message(frame(fields), ALL_KINDS)


def window_fields(**changes: Any) -> dict[str, Any]:
    """A good window in a request of one, with changes."""
    fields = {
        "index": 0,
        "from_layer": 3,
        "length_tokens": 200,
        "question_tokens": 12,
        "codec": "fp16",
        "state": 5,
    }
    return {**fields, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"index": -1},
        {"index": 10**6},
        {"index": 0.0},
        {"from_layer": 65},
        {"length_tokens": 0},
        {"length_tokens": 1025},
        {"question_tokens": 201},
        {"codec": "x" * 33},
        {"codec": "../fp16"},
        {"codec": ""},
        {"codec": None},
        {"state": 4},
        {"state": 6},
        {"state": 0},
        {"state": MAX_STATE_BYTES + 1},
        {"state": b"bytes"},
    ],
)
def test_a_window_out_of_bounds_is_refused(changes: dict[str, Any]) -> None:
    good = {"windows": [window_fields()], "top_spans": 5}
    assert decode_message(frame(good, Kind.RESUME_REQUEST, b"12345"), ALL_KINDS)
    bad = {"windows": [window_fields(**changes)], "top_spans": 5}
    with pytest.raises(MalformedMessage):
        decode_message(frame(bad, Kind.RESUME_REQUEST, b"12345"), ALL_KINDS)


@pytest.mark.parametrize(
    "fields",
    [
        {"windows": [], "top_spans": 5},
        {"windows": "abc", "top_spans": 5},
        {"windows": [7], "top_spans": 5},
        {"windows": [window_fields(), window_fields()], "top_spans": 5},
        {"windows": [window_fields(index=n) for n in range(MAX_WINDOWS + 1)], "top_spans": 5},
        {"windows": [window_fields()], "top_spans": 0},
        {"windows": [window_fields()], "top_spans": MAX_SPANS + 1},
        {"windows": [window_fields()]},
        {"top_spans": 5},
    ],
)
def test_a_request_out_of_bounds_is_refused(fields: dict[str, Any]) -> None:
    attachment = b"12345" * len(fields.get("windows", []))
    with pytest.raises(MalformedMessage):
        decode_message(frame(fields, Kind.RESUME_REQUEST, attachment), ALL_KINDS)


@pytest.mark.parametrize(
    "spans",
    [
        [[3, 2, 0.0, 0.0]],
        [[-1, 2, 0.0, 0.0]],
        [[1, 2, 0.0]],
        [[1, 2, float("nan"), 0.0]],
        [[1, 2, "a", 0.0]],
        [{"start_token": 1}],
        [[1, 2, 0.0, 0.0]] * (MAX_SPANS + 1),
        None,
    ],
)
def test_spans_out_of_bounds_are_refused(spans: Any) -> None:
    result = {"index": 0, "layer": 1, "null_score": 0.0, "spans": spans}
    fields = {"results": [result], "worker": "w", "queue_seconds": 0.0, "compute_seconds": 0.0}
    with pytest.raises(MalformedMessage):
        decode_message(frame(fields, Kind.ANSWER), WORKER_KINDS)


def test_an_attachment_where_none_belongs_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="attachment"):
        decode_message(frame({"lease_seconds": 1.0, "worker": "w"}, attachment=b"x"), ALL_KINDS)


def test_a_message_cannot_be_made_with_wrong_fields() -> None:
    with pytest.raises(MalformedMessage):
        RequestWindow(0, 3, 200, 12, "FP16", b"state")
    with pytest.raises(MalformedMessage):
        ErrorMessage("internal", "line\nbreak", "w")
    with pytest.raises(MalformedMessage):
        ErrorMessage("internal", "x" * 501, "w")
    with pytest.raises(MalformedMessage):
        AnswerMessage((), "w", 0.0, 0.0)


@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_protocol_errors(noise: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_message(noise, ALL_KINDS)


@given(st.binary(max_size=200), st.sampled_from(sorted(ALL_KINDS)), st.binary(max_size=20))
def test_random_maps_raise_nothing_but_protocol_errors(
    body: bytes, kind: Kind, attachment: bytes
) -> None:
    _decode_or_protocol_error(frame(body, kind, attachment))


_JSON_LIKE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4)
    ),
    max_leaves=10,
)


@given(st.data())
def test_fields_of_any_type_raise_nothing_but_protocol_errors(data: st.DataObject) -> None:
    message = data.draw(st.sampled_from(EVERY_MESSAGE))
    good = decode_frame(encode_message(message), ALL_KINDS)
    fields = dict(good.fields)
    for name in fields:
        if data.draw(st.booleans()):
            fields[name] = data.draw(_JSON_LIKE)
        elif isinstance(fields[name], list) and fields[name]:
            inner = dict(fields[name][0])
            chosen = data.draw(st.sampled_from(sorted(inner)))
            inner[chosen] = data.draw(_JSON_LIKE)
            fields[name] = [inner, *fields[name][1:]]
    _decode_or_protocol_error(frame(fields, good.kind, good.attachment))


@given(st.data())
def test_flipped_bytes_raise_nothing_but_protocol_errors(data: st.DataObject) -> None:
    payload = bytearray(encode_message(data.draw(st.sampled_from(EVERY_MESSAGE))))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(payload) - 1))
        payload[position] = data.draw(st.integers(0, 255))
    _decode_or_protocol_error(bytes(payload))


def _decode_or_protocol_error(payload: bytes) -> None:
    """Decoding gives a message that can be encoded again, or a ProtocolError; nothing else."""
    try:
        message = decode_message(payload, ALL_KINDS)
    except ProtocolError:
        return
    assert decode_message(encode_message(message), ALL_KINDS) == message


def test_the_fixed_header_has_the_documented_layout() -> None:
    payload = encode_message(Cancel())
    assert payload[:6] == b"ELMA" + bytes([WIRE_VERSION, Kind.CANCEL])
    assert FIXED_HEADER_BYTES == 14
    assert payload[6:14] == struct.pack(">II", len(payload) - 14, 0)
