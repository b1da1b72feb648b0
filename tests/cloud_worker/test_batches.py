"""Sharing a batch changes no result, and a waiting window keeps no large batch in memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch

from cloud_worker.layer_step import run_one_layer
from cloud_worker.pace import Pace, measure_pace
from cloud_worker.pieces import Piece, gather
from cloud_worker.scheduler import BatchLimits, Scheduler, WaitingWindow
from reader.config import ReaderConfig
from reader.exits import ExitSettings
from reader.model import Reader
from reader.network import AlbertReader
from reader.network_files import save_network
from reader.spans import WindowSpans
from tests.cloud_worker.harness import QUESTION_TOKENS, make_state, spans_alone
from tests.tiny import make_tiny_tokenizer

LAYERS = 6
Window = WaitingWindow[Any]
MakeReader = Callable[..., Reader]

UNLIMITED = 512
COMPRESSED: dict[str, dict[str, Any]] = {
    "one group": {"groups": 1},
    "three groups": {"groups": 3},
    "a group a layer": {"groups": 6},
    "a span for each layer and head": {
        "groups": 1,
        "spans": tuple((layer, 0, UNLIMITED, 3 * layer) for layer in range(1, LAYERS + 1)),
    },
    "pruned heads and blocks": {
        "groups": 2,
        "kept_heads": ((0, 3), (1,)),
        "inner_sizes": (24, 0),
    },
    "pruned, with spans": {
        "groups": 2,
        "kept_heads": ((0, 2, 3), ()),
        "inner_sizes": (16, 40),
        "spans": ((2, 0, UNLIMITED), (4, 5, 0), (0, 0, 0), (), (), ()),
    },
}


@pytest.fixture(scope="module")
def make_reader(tmp_path_factory: pytest.TempPathFactory) -> MakeReader:
    """Random readers of six layers, made as compression leaves them."""

    def make(**changes: Any) -> Reader:
        folder = tmp_path_factory.mktemp("reader")
        vocabulary = make_tiny_tokenizer(folder / "tokenizer.json")
        torch.manual_seed(len(str(changes)))
        config = ReaderConfig(
            vocab_size=vocabulary,
            embedding_size=32,
            hidden_size=32,
            layers=LAYERS,
            heads=4,
            intermediate_size=64,
            **changes,
        )
        network = AlbertReader(config)
        with torch.no_grad():
            for head in network.exits:
                head.span.weight.normal_(0, 1)
        save_network(network, folder, tokenizer_from=folder)
        ExitSettings.uncalibrated(LAYERS).save(folder)
        return Reader.load(folder, engine="torch", precision="fp32")

    return make


def window_of(reader: Reader, name: object, layer: int, tokens: int, seed: int = 0) -> Window:
    """A window with a state that came out of `layer` layers."""
    return WaitingWindow(
        name,
        0,
        reader.digest,
        layer,
        LAYERS,
        reader.config.group_of(layer + 1),
        0,
        100.0,
        0.0,
        tokens,
        QUESTION_TOKENS,
        make_state(reader, layer, tokens, seed),
    )


def next_windows(
    reader: Reader, batch: list[Window]
) -> tuple[list[Window], dict[Any, WindowSpans]]:
    """Run a batch: the windows that go on, and the results of those that are done."""
    going_on, results = [], {}
    for moved in run_one_layer(reader, *gather(reader.engine, batch)):
        if moved.spans is not None:
            results[moved.window.request] = moved.spans
        else:
            group = reader.config.group_of(moved.window.layer + 2)
            going_on.append(moved.window.moved_on(moved.place, group))
    return going_on, results


@pytest.mark.parametrize("kind", COMPRESSED)
def test_windows_in_mixed_batches_get_the_results_that_they_get_alone(
    kind: str, make_reader: MakeReader
) -> None:
    reader = make_reader(**COMPRESSED[kind])
    windows = [
        window_of(reader, number, number % LAYERS, 12 + 3 * (number % 5), seed=number)
        for number in range(14)
    ]
    expected = {one.request: spans_alone(reader, one.state, one.layer) for one in windows}
    scheduler: Scheduler[Any] = Scheduler(BatchLimits(max_windows=5), lambda _: Pace(1e-6, 10.0))
    scheduler.add(windows[:9])
    results: dict[Any, WindowSpans] = {}
    mixed = 0
    for step in count():
        if step == 3:
            scheduler.add(windows[9:])
        batch = scheduler.next_batch(float(step) / 1000)
        if not batch:
            break
        mixed += len({one.layer for one in batch}) > 1
        going_on, done = next_windows(reader, batch)
        scheduler.add(going_on)
        results |= done
    assert set(results) == set(expected)
    for number, result in results.items():
        assert_equal_spans(result, expected[number])
    assert (mixed > 0) == (reader.config.groups < LAYERS)


def assert_equal_spans(one: WindowSpans, other: WindowSpans) -> None:
    assert one.layer == other.layer
    assert one.null_score == pytest.approx(other.null_score, abs=1e-4)
    places = [(span.start_token, span.end_token) for span in one.spans]
    assert places == [(span.start_token, span.end_token) for span in other.spans]
    for mine, theirs in zip(one.spans, other.spans, strict=True):
        assert mine.start_logit == pytest.approx(theirs.start_logit, abs=1e-4)
        assert mine.end_logit == pytest.approx(theirs.end_logit, abs=1e-4)


@pytest.fixture(scope="module")
def reader(make_reader: MakeReader) -> Reader:
    return make_reader(groups=1)


def test_windows_that_go_on_together_are_not_copied(reader: Reader) -> None:
    going_on, _ = next_windows(reader, [window_of(reader, name, 1, 20) for name in "ab"])
    piece = going_on[0].state.piece
    order, batch = gather(reader.engine, list(reversed(going_on)))
    assert [one.request for one in order] == ["a", "b"]
    assert batch is piece.batch


def test_a_window_that_waits_on_keeps_at_most_twice_its_own_rows(reader: Reader) -> None:
    going_on, _ = next_windows(reader, [window_of(reader, name, 1, 20) for name in range(16)])
    left, waiting = going_on[:15], going_on[15]
    assert waiting.state.piece.batch.token_count == 320
    gather(reader.engine, left)
    assert waiting.state.piece.batch.token_count == 20
    alone, _ = next_windows(reader, [window_of(reader, "the same", 1, 20)])
    mine, expected = (
        reader.engine.states(next_windows(reader, [one])[0][0].state.piece.batch)[0]
        for one in (waiting, *alone)
    )
    assert mine == pytest.approx(expected, abs=1e-4)


def test_windows_that_are_done_leave_no_rows_behind(reader: Reader) -> None:
    batch = [window_of(reader, name, LAYERS - 1, 30) for name in range(8)]
    going_on, results = next_windows(reader, [*batch, window_of(reader, "deep", 1, 30)])
    assert len(results) == 8
    assert going_on[0].state.piece.batch.token_count == 30


def test_a_dropped_window_keeps_no_rows(reader: Reader) -> None:
    going_on, _ = next_windows(reader, [window_of(reader, name, 1, 20) for name in range(8)])
    piece: Piece = going_on[0].state.piece
    del going_on[2:]  # cancelled: nobody holds them any more
    gc.collect()
    gather(reader.engine, [going_on.pop()])
    assert len(piece.kept) == 1
    assert piece.batch.token_count == 20


def test_a_pace_is_measured_on_the_reader_itself(reader: Reader) -> None:
    now = iter(number * 0.001 for number in count())
    pace = measure_pace(reader, lambda: next(now))  # every run takes a millisecond
    assert pace.step_seconds(512) == pytest.approx(0.001, rel=0.3)
    assert pace.overhead_tokens > 512  # what costs the same for any number is all overhead


def test_a_pace_follows_what_steps_take_and_no_single_one_throws_it_off() -> None:
    pace = Pace(1e-5, 100.0)
    pace.note(900, 60.0)
    assert pace.step_seconds(900) < 0.02
    for _ in range(100):
        pace.note(900, 0.02)
    assert pace.step_seconds(900) == pytest.approx(0.02, rel=0.01)
    assert pace.tokens_within(0.02) == pytest.approx(900, rel=0.02)
    assert pace.tokens_within(0.0) == 0


def test_steps_that_an_engine_has_not_finished_count_with_the_next_that_it_has() -> None:
    together, apart = Pace(1e-5, 100.0), Pace(1e-5, 100.0)
    for _ in range(100):
        for seconds, is_finished in ((0.001, False), (0.001, False), (0.058, True)):
            together.note(900, seconds, is_finished=is_finished)
        for _ in range(3):
            apart.note(900, 0.02)
    assert together.step_seconds(900) == pytest.approx(apart.step_seconds(900), rel=0.01)


def test_a_pace_is_never_nothing() -> None:
    pace = Pace(0.0, -5.0)
    for _ in range(1_000):
        pace.note(100, 0.0)
    assert pace.step_seconds(1) > 0
    assert pace.efficiency(10) == 1.0
