"""Between readings and audits: what the device thought of a window, and the states of an audit.

Inputs: a reading's results, a trace of its exits. Outputs: provisional spans for the wire, the
request of an audit, the record of a comparison. Neighbours: `local_reading` names the provisional
span of every window that it offloads; `audit` does the rest. Numbers only, no thread, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from protocol.messages import Provisional, RequestWindow, ResumeRequest
from reader.exit_traces import (
    AuditKind,
    AuditRecord,
    Trace,
    WindowRecord,
    answer_place,
    answer_tokens,
    finding,
)
from reader.exits import ExitSettings
from reader.model import Reader
from reader.spans import WindowSpans
from reader.windows import Window

AUTOMATIC_CODEC = "int8"
"""Smaller ones change answers by themselves, which would be heard as drift of the exits."""


def provisional_of(spans: WindowSpans, settings: ExitSettings) -> Provisional:
    """What the device would answer of one window: its best span, or (0, 0) for no answer."""
    return Provisional(spans.layer, *answer_tokens(spans, settings))


def audit_codec(wanted: str) -> str:
    """The codec of an audit's states: the device's own, or `AUTOMATIC_CODEC` where it is "auto".

    Never token ids: whatever the privacy setting, an audit sends states.
    """
    return AUTOMATIC_CODEC if wanted == "auto" else wanted


def audit_bytes(reader: Reader, windows: Sequence[Window], layer: int, codec: str) -> int:
    """How many bytes the states of all windows take."""
    return sum(reader.codecs.size(codec, layer, len(window)) for window in windows)


def audit_request(
    reader: Reader,
    windows: Sequence[Window],
    trace: Trace,
    exits: Mapping[int, WindowSpans],
    layer: int,
    codec: str,
) -> ResumeRequest:
    """Every window after `layer`, with what the device answered of it. Raises `StateError`."""
    return ResumeRequest(
        tuple(
            RequestWindow(
                index=window.index,
                from_layer=layer,
                length_tokens=len(window),
                question_tokens=window.question_tokens,
                codec=codec,
                state=reader.codecs.encode(codec, layer, trace.states[window.index]),
                provisional=provisional_of(exits[window.index], reader.settings),
            )
            for window in windows
        ),
        top_spans=1,
        is_audit=True,
    )


def audit_record(
    reader: Reader,
    windows: Sequence[Window],
    trace: Trace,
    exits: Mapping[int, WindowSpans],
    finals: Mapping[int, WindowSpans],
    *,
    kind: AuditKind,
    weight: float,
    time: float,
) -> AuditRecord:
    """The comparison of one question; `exits` and `finals` have a result for every window."""
    answer = answer_place(windows, finals.values(), reader.settings)
    return AuditRecord(
        time=time,
        release=reader.digest,
        kind=kind,
        weight=weight,
        windows=tuple(
            WindowRecord(
                trace.exits[window.index],
                exits[window.index].layer,
                finding(window, finals[window.index]),
            )
            for window in windows
        ),
        answer=answer,
        agreed=answer == answer_place(windows, exits.values(), reader.settings),
    )
