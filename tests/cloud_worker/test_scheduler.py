"""The scheduler's order and bounds, and that sharing a batch changes no result."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
import torch

from cloud_worker.resume import Moved, run_one_layer
from cloud_worker.scheduler import BatchLimits, Scheduler, WaitingWindow
from reader.model import Reader
from reader.spans import WindowSpans
from reader.states import StateBatch
from tests.cloud_worker.harness import make_state

LIMITS = BatchLimits(
    max_windows=4,
    max_tokens=1_000,
    max_padding=0.25,
    enough_windows=2,
    urgent_seconds=1.0,
    max_wait_seconds=5.0,
)
Window = WaitingWindow[object]


def window(
    name: object = "request",
    *,
    group: int = 0,
    due: float = 100.0,
    arrived: float = 0.0,
    tokens: int = 10,
    release: str = "release",
) -> Window:
    """A window of which only the numbers matter."""
    state = torch.zeros((tokens, 4))
    return WaitingWindow(name, 0, release, group, group, due, arrived, 2, state)


def scheduler_with(*windows: Window, limits: BatchLimits = LIMITS) -> Scheduler[object]:
    scheduler: Scheduler[object] = Scheduler(limits)
    scheduler.add(windows)
    return scheduler


def names(batch: list[Window]) -> list[object]:
    return [one.request for one in batch]


def test_nothing_waits_nothing_runs() -> None:
    assert scheduler_with().next_batch(0.0) == []


def test_windows_that_were_taken_are_not_given_out_again() -> None:
    scheduler = scheduler_with(window("a"), window("b"))
    assert len(scheduler.next_batch(0.0)) == 2
    assert scheduler.next_batch(0.0) == []


def test_a_batch_is_filled_in_the_order_of_deadlines() -> None:
    dues = {"d": 40.0, "a": 10.0, "c": 30.0, "b": 20.0, "e": 50.0}
    scheduler = scheduler_with(*(window(name, due=due) for name, due in dues.items()))
    assert names(scheduler.next_batch(0.0)) == ["a", "b", "c", "d"]
    assert names(scheduler.next_batch(0.0)) == ["e"]


def test_windows_of_different_groups_or_releases_never_share_a_batch() -> None:
    windows = [
        window((release, group), group=group, release=release)
        for release in ("old", "new")
        for group in (0, 1)
        for _ in range(2)
    ]
    scheduler = scheduler_with(*windows)
    batches = [scheduler.next_batch(0.0) for _ in range(4)]
    assert [len(batch) for batch in batches] == [2, 2, 2, 2]
    assert all(len(set(names(batch))) == 1 for batch in batches)


def test_the_fullest_batch_goes_first_while_nothing_is_urgent() -> None:
    scheduler = scheduler_with(
        window("alone", group=0, due=50.0), *(window("many", group=1, due=90.0) for _ in range(2))
    )
    assert names(scheduler.next_batch(0.0)) == ["many", "many"]


def test_past_enough_windows_the_nearer_deadline_counts_more_than_the_fuller_batch() -> None:
    scheduler = scheduler_with(
        *(window("begun", group=1, due=50.0) for _ in range(2)),
        *(window("new", group=0, due=90.0) for _ in range(4)),
    )
    assert names(scheduler.next_batch(0.0)) == ["begun", "begun"]


def test_a_window_close_to_its_deadline_goes_before_a_fuller_batch() -> None:
    scheduler = scheduler_with(
        *(window("many", group=1, due=90.0) for _ in range(4)), window("urgent", group=0, due=4.0)
    )
    assert names(scheduler.next_batch(3.5)) == ["urgent"]


def test_the_oldest_window_waits_no_longer_than_the_bound_behind_a_stream_of_others() -> None:
    scheduler = scheduler_with(window("old", group=0, due=1_000.0, arrived=0.0))
    now = 0.0
    for _ in range(100):
        scheduler.add(window("stream", group=1, due=now + 3, arrived=now) for _ in range(4))
        if "old" in names(scheduler.next_batch(now)):
            break
        now += 0.5
    assert now == LIMITS.max_wait_seconds


def test_past_the_bound_the_oldest_is_finished_before_the_next_is_begun() -> None:
    begun = window("begun", group=1, due=1_000.0, arrived=0.0)
    scheduler = scheduler_with(
        *(window("new", group=0, due=900.0, arrived=1.0) for _ in range(4)), begun
    )
    assert names(scheduler.next_batch(10.0)) == ["begun"]
    scheduler.add([begun.moved_on(begun.state, 2)])
    assert names(scheduler.next_batch(11.0)) == ["begun"]


def test_a_batch_keeps_to_its_tokens_padding_included() -> None:
    limits = replace(LIMITS, max_windows=100, max_tokens=60)
    scheduler = scheduler_with(*(window(number, tokens=20) for number in range(5)), limits=limits)
    assert [len(scheduler.next_batch(0.0)) for _ in range(2)] == [3, 2]


def test_windows_of_very_different_lengths_do_not_share_a_batch() -> None:
    scheduler = scheduler_with(
        *(window("short", due=10.0, tokens=10) for _ in range(2)),
        *(window("long", due=20.0, tokens=100) for _ in range(2)),
    )
    assert names(scheduler.next_batch(0.0)) == ["short", "short"]
    assert names(scheduler.next_batch(0.0)) == ["long", "long"]


def test_a_window_over_the_bound_of_tokens_runs_alone() -> None:
    scheduler = scheduler_with(
        window("large", tokens=2_000, due=1.5), *(window("small", due=90.0) for _ in range(2))
    )
    assert names(scheduler.next_batch(1.0)) == ["large"]


def test_a_dropped_request_takes_all_its_windows_along() -> None:
    gone, kept = object(), object()
    scheduler = scheduler_with(window(gone), window(kept), window(gone))
    assert scheduler.drop(gone) == 2
    assert names(scheduler.next_batch(0.0)) == [kept]


def alone(reader: Reader, state: torch.Tensor, layer: int) -> WindowSpans:
    """The result of one window, run by itself from `layer` to the last."""
    batch = reader.run(StateBatch.of([state], [5]), layer, reader.config.layers)
    return reader.spans(batch, reader.config.layers, [0])[0]


def run_all(
    reader: Reader, waiting: list[Window], late: list[Window]
) -> tuple[dict[object, WindowSpans], list[set[int]]]:
    """Every window to its end, `late` ones joining after three steps; depths of each batch."""
    scheduler: Scheduler[object] = Scheduler(replace(LIMITS, max_padding=0.9, enough_windows=4))
    scheduler.add(waiting)
    results: dict[object, WindowSpans] = {}
    depths: list[set[int]] = []
    for step in count():
        if step == 3:
            scheduler.add(late)
        batch = scheduler.next_batch(float(step))
        if not batch:
            return results, depths
        depths.append({one.layer for one in batch})
        for one, moved in zip(batch, run_one_layer(reader, batch), strict=True):
            assert isinstance(moved, Moved)
            if moved.spans is not None:
                results[one.request] = moved.spans
            elif moved.state is not None:
                group = reader.config.group_of(one.layer + 2)
                scheduler.add([one.moved_on(moved.state, group)])
    raise AssertionError


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_windows_in_mixed_batches_get_the_results_that_they_get_alone(
    groups: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from tests.tiny import make_tiny_model

    folder = tmp_path_factory.mktemp("mixed")
    reader = Reader.load(make_tiny_model(folder, layers=6, groups=groups, seed=groups))
    windows = []
    expected = {}
    for number in range(14):
        layer, tokens = number % 6, 12 + 3 * (number % 5)
        state = make_state(reader, layer, tokens, seed=number)
        expected[number] = alone(reader, state, layer)
        group = reader.config.group_of(layer + 1)
        windows.append(
            WaitingWindow[object](
                number, 0, reader.digest, layer, group, 100.0 + number, 0.0, 5, state
            )
        )
    results, depths = run_all(reader, windows[:9], windows[9:])
    assert set(results) == set(expected)
    for number, result in results.items():
        assert_equal_spans(result, expected[number])
    if groups < 6:
        assert any(len(depth) > 1 for depth in depths), "no batch mixed depths"


def assert_equal_spans(one: WindowSpans, other: WindowSpans) -> None:
    assert one.layer == other.layer
    assert one.null_score == pytest.approx(other.null_score, abs=1e-5)
    places = [(span.start_token, span.end_token) for span in one.spans]
    assert places == [(span.start_token, span.end_token) for span in other.spans]
    for mine, theirs in zip(one.spans, other.spans, strict=True):
        assert mine.start_logit == pytest.approx(theirs.start_logit, abs=1e-5)
        assert mine.end_logit == pytest.approx(theirs.end_logit, abs=1e-5)
