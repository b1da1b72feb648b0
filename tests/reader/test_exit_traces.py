"""A trace says what a walk would have seen at every exit, and its records survive their JSON."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import pytest

from reader.exit_traces import (
    NO_ANSWER,
    AuditRecord,
    Trace,
    WindowRecord,
    answer_place,
    answer_tokens,
    decode_record,
    encode_record,
    finding,
    trace_in_steps,
)
from reader.exits import CRITERIA, ExitSettings
from reader.model import Reader
from reader.spans import Span, WindowSpans, choose_answers
from reader.walk import walk
from tests.tiny import make_tiny_model

LAYERS, EDGE_LAYERS = 4, 3
QUESTION = "who built the lighthouse"
PASSAGE = "the lighthouse was built by the king in the year of the war. " * 40


def settings(criterion: str) -> ExitSettings:
    return ExitSettings(
        criterion=criterion,
        exit_thresholds=(-1.0, 0.6, 0.9, 1.0),
        no_answer_thresholds=(0.5, -0.5, 0.25, 0.0),
        temperatures=(2.0, 1.5, 1.0, 1.25),
        default_edge_layers=EDGE_LAYERS,
    )


@pytest.fixture(scope="module", params=sorted(CRITERIA))
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny_model(folder, layers=LAYERS, settings=settings(request.param))
    return Reader.load(folder, threads=1)


def run(steps: Generator[None, None, Trace]) -> tuple[Trace, int]:
    pauses = 0
    while True:
        try:
            next(steps)
            pauses += 1
        except StopIteration as end:
            trace: Trace = end.value
            return trace, pauses


def test_a_trace_sees_what_a_walk_stops_by(reader: Reader) -> None:
    windows = reader.split(QUESTION, PASSAGE)
    assert len(windows) > 1
    trace, pauses = run(trace_in_steps(reader, windows, EDGE_LAYERS, keep_states=True))
    assert pauses == len(windows) * EDGE_LAYERS, "one pause after each layer of each window"
    walked = walk(reader, windows, last_layer=EDGE_LAYERS)
    thresholds = reader.settings.exit_thresholds
    for window in windows:
        exits = trace.exits[window.index]
        assert len(exits) == EDGE_LAYERS
        stops = [k for k, note in enumerate(exits, 1) if note.uncertainty <= thresholds[k - 1]]
        is_resolved = window.index in walked.resolved
        assert bool(stops) == is_resolved
        result = walked.results[window.index]
        assert result.layer == (stops[0] if stops else EDGE_LAYERS)
        note, found = exits[result.layer - 1], finding(window, result)
        assert (note.start, note.end) == (found.start, found.end)
        assert note.null_score == pytest.approx(found.null_score, abs=1e-3)
        assert note.span_score == pytest.approx(found.span_score, abs=1e-3)


def test_a_traced_state_goes_on_to_the_logits_of_full_depth(reader: Reader) -> None:
    windows = reader.split(QUESTION, PASSAGE)[:1]
    trace, _ = run(trace_in_steps(reader, windows, EDGE_LAYERS, keep_states=True))
    batch = reader.engine.pack([trace.states[0]], [windows[0].question_tokens])
    (resumed,) = reader.spans(reader.run(batch, EDGE_LAYERS, LAYERS), LAYERS, [0])
    whole = reader.spans(reader.run(reader.embed(windows), 0, LAYERS), LAYERS, [0])[0]
    assert resumed.null_score == pytest.approx(whole.null_score, abs=1e-3)
    best, expected = resumed.spans[0], whole.spans[0]
    assert (best.start_token, best.end_token) == (expected.start_token, expected.end_token)


def test_states_are_not_kept_unless_wanted(reader: Reader) -> None:
    windows = reader.split(QUESTION, PASSAGE)[:1]
    trace, _ = run(trace_in_steps(reader, windows, 1, keep_states=False))
    assert not trace.states


def test_the_place_of_an_answer_is_that_of_the_chosen_answer(reader: Reader) -> None:
    windows = reader.split(QUESTION, PASSAGE)
    results = walk(reader, windows).resolved
    chosen = choose_answers(windows, results.values(), PASSAGE, reader.settings)[0]
    place = answer_place(windows, results.values(), reader.settings)
    assert place == (chosen.start, chosen.end)


@pytest.mark.parametrize(("null_score", "tokens"), [(10.4, (5, 7)), (10.6, (0, 0))])
def test_a_window_alone_answers_by_its_layers_threshold(
    null_score: float, tokens: tuple[int, int]
) -> None:
    spans = WindowSpans(0, 1, null_score, (Span(5, 7, 4.0, 6.0),))
    assert answer_tokens(spans, settings("entropy")) == tokens


def a_record(reader: Reader, **changes: object) -> AuditRecord:
    windows = reader.split(QUESTION, PASSAGE)
    trace, _ = run(trace_in_steps(reader, windows, EDGE_LAYERS, keep_states=False))
    results = walk(reader, windows, last_layer=EDGE_LAYERS).results
    fields: dict[str, object] = {
        "time": 1_700_000_000.25,
        "release": reader.digest,
        "kind": "audit",
        "weight": 20.0,
        "windows": tuple(
            WindowRecord(trace.exits[w.index], EDGE_LAYERS, finding(w, results[w.index]))
            for w in windows
        ),
        "answer": NO_ANSWER,
        "agreed": False,
    }
    return AuditRecord(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_record_survives_its_line_and_holds_no_text(reader: Reader) -> None:
    record = a_record(reader)
    line = encode_record(record)
    assert "\n" not in line
    assert "lighthouse" not in line
    again = decode_record(line)
    assert encode_record(again) == line
    assert (again.kind, again.weight, again.answer, again.agreed) == (
        "audit",
        20.0,
        (-1, -1),
        False,
    )
    assert again.depth == EDGE_LAYERS
    first, second = record.windows[0].exits[0], again.windows[0].exits[0]
    assert second.uncertainty == pytest.approx(first.uncertainty, abs=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"kind": "other"},
        {"weight": 0},
        {"weight": "much"},
        {"windows": []},
        {"windows": [{"exits": [], "exit_layer": 1, "final": [4, 0, 0, 0, 0]}]},
        {"windows": [{"exits": [[0.1, 0, 0, 0]], "exit_layer": 1, "final": [4, 0, 0, 0, 0]}]},
        {"answer": [1]},
        {"time": None},
    ],
)
def test_a_line_that_is_no_record_is_refused(
    change: dict[str, object], tmp_path: Path, reader: Reader
) -> None:
    values = json.loads(encode_record(a_record(reader)))
    with pytest.raises(ValueError, match=r"."):
        decode_record(json.dumps({**values, **change}))
    with pytest.raises(ValueError, match=r"."):
        decode_record(
            json.dumps({name: value for name, value in values.items() if name not in change})
        )
