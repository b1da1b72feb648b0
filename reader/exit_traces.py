"""What every exit said of a question, kept for a later calibration, and its line of JSON.

In: the windows of a question that was answered, or what a worker found for them. Out: a trace of
the device's exits, and `AuditRecord`s: numbers, and places in a passage that is not there, but no
text and no state. Neighbours: the edge agent's audits make records and export them, one JSON object
a line; `cloud_worker.training.from_audit` calibrates on them.

Shapes: T tokens, H hidden.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from reader.arrays import FloatArray
from reader.exits import ExitSettings
from reader.model import Reader
from reader.spans import Answer, WindowSpans, best_spans, choose_answers
from reader.windows import Window

RECORD_FORMAT = 1
NO_ANSWER = (-1, -1)
MAX_WINDOWS, MAX_LAYERS = 128, 64
_DECIMALS = 5
_NO_SPAN_SCORE = -1e6

AuditKind = Literal["offload", "audit"]
Place = tuple[int, int]


@dataclass(frozen=True)
class ExitNote:
    """One exit, one window: how unsure it was (0..1), and its null and best span's logit sums.

    `start` and `end` are the span's characters of the passage.
    """

    uncertainty: float
    null_score: float
    span_score: float
    start: int
    end: int


@dataclass(frozen=True)
class Finding:
    """The deepest result of one window: of the last layer, or of the exit at which it stopped."""

    layer: int
    null_score: float
    span_score: float
    start: int
    end: int


@dataclass(frozen=True)
class WindowRecord:
    """One window: the exits of layers 1.. in order, where it stopped, what the deepest one found.

    `exit_layer` is where the device answered from, or handed over.
    """

    exits: tuple[ExitNote, ...]
    exit_layer: int
    final: Finding


@dataclass(frozen=True)
class AuditRecord:
    """One question whose answer on the device was compared with that of full depth.

    `kind` is offload for what the device handed over anyway, audit for a confident answer that was
    sampled. The record stands for `weight` questions. `time` is in unix seconds, `release` the
    digest of the reader. `answer` are the characters of the final answer, `NO_ANSWER` for none;
    `agreed` says whether the device had found the same.
    """

    time: float
    release: str
    kind: AuditKind
    weight: float
    windows: tuple[WindowRecord, ...]
    answer: Place
    agreed: bool

    @property
    def exit_layer(self) -> int:
        """The deepest exit that the device's answer needed."""
        return max(window.exit_layer for window in self.windows)

    @property
    def depth(self) -> int:
        """How many exits every window has."""
        return min(len(window.exits) for window in self.windows)


@dataclass(frozen=True)
class Trace:
    """The exits of every window, and its state `[T, H]` after the last of them, by window index."""

    exits: Mapping[int, tuple[ExitNote, ...]]
    states: Mapping[int, FloatArray] = field(repr=False)


def trace_in_steps(
    reader: Reader, windows: Sequence[Window], last_layer: int, *, keep_states: bool
) -> Generator[None, None, Trace]:
    """Run layers 1 to `last_layer` of every window, whatever its certainty, noting every exit.

    One window at a time, with a pause after each layer, so that whoever drives it can do something
    more urgent in between. Raises `ReaderError`.
    """
    exits: dict[int, tuple[ExitNote, ...]] = {}
    states: dict[int, FloatArray] = {}
    for window in windows:
        batch = reader.embed([window])
        history = np.zeros((1, 0, 2), dtype=np.int64)
        notes = []
        for layer in range(1, last_layer + 1):
            batch = reader.run(batch, layer - 1, layer)
            view = reader.view(batch, layer, history)
            (spans,) = best_spans(
                view.start_logits, view.end_logits, window_indexes=[window.index], layer=layer
            )
            uncertainty = float(reader.uncertainty(view)[0])
            history = np.concatenate((history, reader.best_span(view)[:, None]), axis=1)
            found = finding(window, spans)
            notes.append(
                ExitNote(uncertainty, found.null_score, found.span_score, found.start, found.end)
            )
            yield
        exits[window.index] = tuple(notes)
        if keep_states:
            states[window.index] = reader.engine.states(batch)[0]
    return Trace(exits, states)


def finding(window: Window, spans: WindowSpans) -> Finding:
    """The best span of one exit in characters, with its scores."""
    if not spans.spans:
        return Finding(spans.layer, spans.null_score, _NO_SPAN_SCORE, 0, 0)
    best = spans.spans[0]
    start, end = window.offsets[best.start_token][0], window.offsets[best.end_token][1]
    return Finding(spans.layer, spans.null_score, best.score, start, end)


def answer_place(
    windows: Sequence[Window], results: Iterable[WindowSpans], settings: ExitSettings
) -> Place:
    """The characters of the answer that these results make, `NO_ANSWER` for none."""
    # The choice looks at offsets and scores; the text is cut out of the passage last.
    chosen: Answer = choose_answers(windows, results, "", settings)[0]
    return chosen.start, chosen.end


def answer_tokens(result: WindowSpans, settings: ExitSettings) -> Place:
    """First and last token of what a result answers of its window alone, (0, 0) for no answer."""
    threshold = settings.no_answer_thresholds[result.layer - 1]
    if not result.spans or result.null_score - result.spans[0].score > threshold:
        return 0, 0
    return result.spans[0].start_token, result.spans[0].end_token


def encode_record(record: AuditRecord) -> str:
    """One line of JSON, without the line's end; `decode_record` reads it."""
    return json.dumps(
        {
            "format": RECORD_FORMAT,
            "time": round(record.time, 3),
            "release": record.release,
            "kind": record.kind,
            "weight": record.weight,
            "windows": windows_as_json(record.windows),
            "answer": list(record.answer),
            "agreed": record.agreed,
        },
        allow_nan=False,
        separators=(",", ":"),
    )


def decode_record(line: str) -> AuditRecord:
    """The record of a line. Raises ValueError that says what is wrong with it."""
    try:
        values = json.loads(line)
        if values["format"] != RECORD_FORMAT:
            raise ValueError(f"format {values['format']!r}, this program reads {RECORD_FORMAT}")
        if values["kind"] not in ("offload", "audit"):
            raise ValueError(f"unknown kind {values['kind']!r}")
        start, end = values["answer"]
        record = AuditRecord(
            time=_number(values["time"]),
            release=str(values["release"]),
            kind=values["kind"],
            weight=_number(values["weight"]),
            windows=windows_from_json(values["windows"]),
            answer=(int(start), int(end)),
            agreed=bool(values["agreed"]),
        )
    except (KeyError, TypeError, IndexError, RecursionError) as error:
        raise ValueError(f"not an audit record ({error!r})") from error
    if not record.weight > 0:
        raise ValueError(f"weight {record.weight} is not above 0")
    return record


def with_weight(record: AuditRecord, weight: float) -> AuditRecord:
    """The same record, standing for `weight` questions."""
    return replace(record, weight=weight)


def windows_as_json(windows: Iterable[WindowRecord]) -> list[Any]:
    """Numbers in short lists: a record of one window and five exits is about 500 bytes."""
    return [
        {
            "exits": [_rounded(*vars(note).values()) for note in window.exits],
            "exit_layer": window.exit_layer,
            "final": _rounded(*vars(window.final).values()),
        }
        for window in windows
    ]


def windows_from_json(values: object) -> tuple[WindowRecord, ...]:
    """What `windows_as_json` made. Raises ValueError, TypeError, KeyError or IndexError."""
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_WINDOWS:
        raise ValueError(f"a record has 1 to {MAX_WINDOWS} windows")
    return tuple(_window_from_json(value) for value in values)


def _window_from_json(value: Any) -> WindowRecord:
    if not 1 <= len(value["exits"]) <= MAX_LAYERS:
        raise ValueError(f"a window has 1 to {MAX_LAYERS} exits")
    exits = tuple(
        ExitNote(_number(unsure), _number(null), _number(span), int(start), int(end))
        for unsure, null, span, start, end in value["exits"]
    )
    layer, null, span, start, end = value["final"]
    final = Finding(int(layer), _number(null), _number(span), int(start), int(end))
    return WindowRecord(exits, int(value["exit_layer"]), final)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)


def _rounded(*values: float) -> list[float]:
    return [value if isinstance(value, int) else round(value, _DECIMALS) for value in values]
