"""What was added to requests later: the edge's own span and the word audit, and the old bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protocol.errors import MalformedMessage
from protocol.messages import Provisional, RequestWindow, ResumeRequest, decode_message
from protocol.messages import encode_message as encode
from protocol.wire import Kind, decode_frame, encode_frame

PLAIN = ResumeRequest((RequestWindow(0, 3, 200, 12, "fp16", b"state"),), 5)
WITH_SPAN = replace(PLAIN.windows[0], provisional=Provisional(3, 13, 15))
BYTES_BEFORE = bytes.fromhex(
    "454c4d4101100000005c0000000582a777696e646f77739186a5696e64657800aa66726f6d5f6c6179657203ad6c65"
    "6e6774685f746f6b656e73ccc8af7175657374696f6e5f746f6b656e730ca5636f646563a466703136a57374617465"
    "05a9746f705f7370616e73057374617465"
)
"""What an edge sent before there were provisional spans."""


def decode(payload: bytes) -> Any:
    """The request in a payload."""
    return decode_message(payload, {Kind.RESUME_REQUEST})


def test_a_request_without_them_has_the_bytes_that_it_always_had() -> None:
    assert encode(PLAIN) == BYTES_BEFORE
    assert decode(BYTES_BEFORE) == PLAIN


@pytest.mark.parametrize("is_audit", [False, True])
@pytest.mark.parametrize("span", [None, Provisional(1, 0, 0), Provisional(12, 13, 199)])
def test_they_survive_their_bytes(span: Provisional | None, is_audit: bool) -> None:
    window = replace(PLAIN.windows[0], provisional=span)
    request = ResumeRequest((window, replace(window, index=1, provisional=None)), 5, is_audit)
    assert decode(encode(request)) == request


def test_a_program_from_before_finds_all_that_it_knows() -> None:
    """It ignores fields that it does not know: with them taken out, these are the old bytes."""
    frame = decode_frame(encode(ResumeRequest((WITH_SPAN,), 5, True)), {Kind.RESUME_REQUEST})
    assert frame.fields.pop("is_audit") is True
    assert frame.fields["windows"][0].pop("provisional") == [3, 13, 15]
    assert encode_frame(frame.kind, frame.fields, frame.attachment) == BYTES_BEFORE


def test_a_later_program_may_say_more_about_a_span() -> None:
    frame = decode_frame(encode(ResumeRequest((WITH_SPAN,), 5)), {Kind.RESUME_REQUEST})
    frame.fields["windows"][0]["provisional"].append(0.75)
    later = encode_frame(frame.kind, frame.fields, frame.attachment)
    assert decode(later).windows == (WITH_SPAN,)


@pytest.mark.parametrize(
    "value",
    [
        7,
        "span",
        {},
        [],
        [3, 13],
        [3, 15, 13],
        [0, 1, 1],
        [65, 1, 1],
        [3, -1, 1],
        [3, 1, 200],
        [None] * 3,
    ],
)
def test_a_provisional_span_that_makes_no_sense_is_refused(value: Any) -> None:
    frame = decode_frame(encode(PLAIN), {Kind.RESUME_REQUEST})
    frame.fields["windows"][0]["provisional"] = value
    with pytest.raises(MalformedMessage):
        decode(encode_frame(frame.kind, frame.fields, frame.attachment))


@pytest.mark.parametrize("value", [1, "yes", [True], None])
def test_an_audit_is_one_or_none(value: Any) -> None:
    frame = decode_frame(encode(PLAIN), {Kind.RESUME_REQUEST})
    frame.fields["is_audit"] = value
    with pytest.raises(MalformedMessage):
        decode(encode_frame(frame.kind, frame.fields, frame.attachment))
