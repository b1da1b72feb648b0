"""Where a span hangs, in the 55 characters of W3C Trace Context: `00-{trace}-{span}-{flags}`.

Input: text of a header or of a request. Output: the same text, or None or `MalformedMessage`.
Neighbours: `requests` carries one to the worker, sealed; `broker.tracing` makes and follows them.
Source: https://www.w3.org/TR/trace-context/, section 3.2.
"""

from __future__ import annotations

import re

from protocol.errors import MalformedMessage

PATTERN = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


def is_trace_parent(value: object) -> bool:
    """Whether it is one of version 00 whose ids are not zero."""
    return isinstance(value, str) and PATTERN.fullmatch(value) is not None


def check_trace_parent(value: object) -> None:
    """None or a trace parent. Raises MalformedMessage."""
    if value is not None and not is_trace_parent(value):
        raise MalformedMessage("trace_parent must be 00-(32 hex)-(16 hex)-(2 hex), ids not zero")


def parse_trace_parent(text: str) -> tuple[int, int, int]:
    """Trace id, span id and flags of one that was checked."""
    _, trace, span, flags = text.split("-")
    return int(trace, 16), int(span, 16), int(flags, 16)
