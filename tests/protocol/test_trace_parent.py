"""A request says where its worker's spans hang, in W3C's form or not at all; and its wire id."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.errors import MalformedMessage
from protocol.messages import RequestWindow, ResumeRequest, decode_message, encode_message
from protocol.requests import request_id_of, wire_id_of
from protocol.trace_parent import is_trace_parent, parse_trace_parent
from protocol.wire import Kind, decode_frame, encode_frame

TRACE_PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
REQUEST = ResumeRequest((RequestWindow(0, 1, 8, 4, "fp32", b"state"),), top_spans=3)
WRONG = [
    "",
    "00",
    TRACE_PARENT + "0",
    TRACE_PARENT[:-1],
    TRACE_PARENT.upper(),
    TRACE_PARENT.replace("00-4b", "01-4b"),
    TRACE_PARENT.replace("-", "_"),
    "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
    TRACE_PARENT + "\n",
    7,
    True,
    ["00"],
    b"00",
]


def test_a_request_carries_it_and_one_without_has_the_bytes_of_before() -> None:
    plain, traced = (
        encode_message(REQUEST),
        encode_message(replace(REQUEST, trace_parent=TRACE_PARENT)),
    )
    assert b"trace_parent" not in plain
    assert decode_message(plain, {Kind.RESUME_REQUEST}) == REQUEST
    assert decode_message(traced, {Kind.RESUME_REQUEST}) == replace(
        REQUEST, trace_parent=TRACE_PARENT
    )
    fields = decode_frame(traced, {Kind.RESUME_REQUEST}).fields
    assert fields.pop("trace_parent") == TRACE_PARENT
    assert fields == decode_frame(plain, {Kind.RESUME_REQUEST}).fields, (
        "a worker of before finds all that it knows"
    )


@pytest.mark.parametrize("wrong", WRONG)
def test_anything_else_is_malformed(wrong: object) -> None:
    assert not is_trace_parent(wrong)
    with pytest.raises(MalformedMessage, match="trace_parent must be"):
        replace(REQUEST, trace_parent=wrong)  # type: ignore[arg-type]
    frame = decode_frame(encode_message(REQUEST), {Kind.RESUME_REQUEST})
    forged = encode_frame(
        Kind.RESUME_REQUEST, {**frame.fields, "trace_parent": wrong}, frame.attachment
    )
    with pytest.raises(MalformedMessage, match="trace_parent must be"):
        decode_message(forged, {Kind.RESUME_REQUEST})


def test_its_parts_are_numbers() -> None:
    trace, span, flags = parse_trace_parent(TRACE_PARENT)
    assert (f"{trace:032x}", f"{span:016x}", flags) == (
        "4bf92f3577b34da6a3ce929d0e0e4736",
        "00f067aa0ba902b7",
        1,
    )


@pytest.mark.parametrize(
    ("request_id", "shown"),
    [("ticket-4711", "ticket-4711"), ("a" * 51, "a" * 51), ("a" * 64, "a" * 51)],
)
def test_a_wire_id_begins_with_the_id_of_its_question_and_gives_it_back(
    request_id: str, shown: str
) -> None:
    wire_id = wire_id_of(request_id, bytes.fromhex("00112233aabb"))
    assert wire_id == f"{shown}-00112233aabb"
    assert len(wire_id) <= 64
    assert request_id_of(wire_id) == shown


@pytest.mark.parametrize("other", ["0f", "b" * 32, "-00112233aabb", "x-00112233aab"])
def test_an_id_of_another_making_stays_as_it_is(other: str) -> None:
    assert request_id_of(other) == other
