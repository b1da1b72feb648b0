"""The scheduler: what runs next, what never waits too long, and what a choice costs."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from cloud_worker.pace import Pace
from cloud_worker.scheduler import AGED_SHARE, BatchLimits, Scheduler, WaitingWindow
from tests.cloud_worker.simulation import Asked, Simulation

LIMITS = BatchLimits(
    max_windows=4, max_tokens=1_000, step_seconds=1.0, urgent_seconds=1.0, max_wait_seconds=5.0
)
# A token of a layer takes a millisecond, so a step of at most a second has at most 1000.
PACE = Pace(0.001, 0.0)
ONE_THREAD = Pace(45e-6, 10.0)  # about one core in float32
FOUR_THREADS = Pace(6e-6, 80.0)  # about four in bfloat16: a lone short window wastes much
Window = WaitingWindow[object]


def window(
    name: object = "request",
    *,
    group: int = 0,
    layer: int = 0,
    due: float = 100.0,
    arrived: float = 0.0,
    tokens: int = 10,
    rank: int = 0,
    release: str = "release",
) -> Window:
    """A window of which only the numbers matter, with one layer to go."""
    return WaitingWindow(
        name, 0, release, layer, layer + 1, group, rank, due, arrived, tokens, 2, None
    )


def scheduler_with(
    *windows: Window, limits: BatchLimits = LIMITS, pace: Pace = PACE
) -> Scheduler[object]:
    scheduler: Scheduler[object] = Scheduler(limits, lambda _release: pace)
    scheduler.add(windows)
    return scheduler


def names(batch: list[Window]) -> list[object]:
    return [one.request for one in batch]


def test_nothing_waits_nothing_runs() -> None:
    assert scheduler_with().next_batch(0.0) == []


def test_windows_that_were_taken_are_not_given_out_again() -> None:
    scheduler = scheduler_with(window("a"), window("b"))
    assert len(scheduler.next_batch(0.0)) == 2
    assert len(scheduler) == 0
    assert scheduler.next_batch(0.0) == []


def test_of_equal_requests_the_first_to_come_is_the_first_to_run() -> None:
    arrivals = {"d": 4.0, "a": 1.0, "c": 3.0, "b": 2.0, "e": 4.5}
    scheduler = scheduler_with(*(window(name, arrived=at) for name, at in arrivals.items()))
    assert names(scheduler.next_batch(4.6)) == ["a", "b", "c", "d"]
    assert names(scheduler.next_batch(4.6)) == ["e"]


def test_a_smaller_request_goes_before_a_larger_one_that_came_a_little_earlier() -> None:
    large = window("large", group=0, tokens=900)
    small = window("small", group=1, tokens=10, arrived=1.0)
    scheduler = scheduler_with(large, small)
    assert names(scheduler.next_batch(1.0)) == ["small"]


def test_a_larger_request_goes_before_a_smaller_one_that_came_much_later() -> None:
    large = window("large", group=0, tokens=100)
    small = window("small", group=1, tokens=10, arrived=3.0)
    scheduler = scheduler_with(large, small)
    assert names(scheduler.next_batch(3.0)) == ["large"]


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


def test_windows_of_one_group_share_a_batch_whatever_their_depth() -> None:
    windows = [window(layer, layer=layer) for layer in range(3)]
    assert len(scheduler_with(*windows).next_batch(0.0)) == 3
    apart = scheduler_with(*windows, limits=replace(LIMITS, mixes_depths=False))
    assert [len(apart.next_batch(0.0)) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("limits", "pace"),
    [
        pytest.param(replace(LIMITS, max_windows=3), PACE, id="windows"),
        pytest.param(replace(LIMITS, max_windows=100, max_tokens=60), PACE, id="tokens"),
        pytest.param(
            replace(LIMITS, max_windows=100, step_seconds=0.1), Pace(0.001, 40.0), id="seconds"
        ),
    ],
)
def test_a_batch_keeps_to_each_of_its_bounds(limits: BatchLimits, pace: Pace) -> None:
    windows = [window(number, tokens=20) for number in range(5)]
    scheduler = scheduler_with(*windows, limits=limits, pace=pace)
    assert [len(scheduler.next_batch(0.0)) for _ in range(2)] == [3, 2]


def test_a_window_over_the_bound_runs_alone() -> None:
    scheduler = scheduler_with(
        window("large", tokens=2_000), window("small", tokens=900, arrived=99.0, due=200.0)
    )
    assert names(scheduler.next_batch(99.0)) == ["large"]


def test_a_window_that_fits_takes_the_room_of_an_earlier_one_that_does_not() -> None:
    first, second = window("first", tokens=600), window("second", tokens=500)
    third = window("third", tokens=390, arrived=90.0)
    scheduler = scheduler_with(first, second, third, limits=replace(LIMITS, max_wait_seconds=200.0))
    assert names(scheduler.next_batch(90.0)) == ["second", "third"]
    assert names(scheduler.next_batch(90.0)) == ["first"]


def test_a_fuller_batch_goes_first_where_the_first_one_alone_would_waste_the_machine() -> None:
    alone = window("alone", group=0)
    many = [window("many", group=1, arrived=0.5) for _ in range(4)]
    wasteful, thrifty = Pace(0.001, 100.0), Pace(0.001, 1.0)
    assert names(scheduler_with(alone, *many, pace=wasteful).next_batch(1.0)) == ["many"] * 4
    assert names(scheduler_with(alone, *many, pace=thrifty).next_batch(1.0)) == ["alone"]


def test_a_higher_priority_goes_first_however_much_waits_below_it() -> None:
    scheduler = scheduler_with(
        *(window("low", group=0, rank=1) for _ in range(4)),
        window("high", group=1, rank=0, arrived=4.0),
        pace=Pace(0.001, 100.0),
    )
    assert names(scheduler.next_batch(4.0)) == ["high"]


def test_requests_near_their_deadline_go_first_the_nearest_one_before_the_others() -> None:
    scheduler = scheduler_with(
        *(window("many", group=0) for _ in range(4)),
        window("near", group=1, due=4.4, arrived=3.0),
        window("nearer", group=2, due=4.2, arrived=3.2),
    )
    assert [names(scheduler.next_batch(3.5))[0] for _ in range(3)] == ["nearer", "near", "many"]


def test_a_large_request_near_its_deadline_stops_nobody() -> None:
    large = [window("large", group=0, due=4.2, tokens=600) for _ in range(3)]
    scheduler = scheduler_with(*large, window("small", group=1, arrived=3.0))
    assert names(scheduler.next_batch(3.5)) == ["small"]


def test_what_is_past_its_deadline_runs_when_nothing_else_waits() -> None:
    scheduler = scheduler_with(
        window("late", group=0, due=2.0, tokens=10),
        window("later", group=1, arrived=3.0, tokens=900),
    )
    assert [names(scheduler.next_batch(3.0)) for _ in range(2)] == [["later"], ["late"]]


def test_a_dropped_request_takes_all_its_windows_along() -> None:
    gone, kept = object(), object()
    scheduler = scheduler_with(window(gone), window(kept), window(gone), window(gone, group=1))
    assert scheduler.drop(gone) == 3
    assert len(scheduler) == 1
    assert names(scheduler.next_batch(0.0)) == [kept]
    assert scheduler.drop(gone) == 0


def test_windows_of_a_large_request_make_a_small_ones_step_little_longer() -> None:
    small = window("small", tokens=100)
    large = [window("large", tokens=300) for _ in range(3)]
    assert names(scheduler_with(small, *large).next_batch(0.0)) == ["small"]
    # Where a step costs as much as 2000 tokens anyway, 300 more are nothing.
    costly = scheduler_with(small, *large, pace=Pace(0.0001, 2_000.0))
    assert names(costly.next_batch(0.0)) == ["small", "large"]


def short_questions(load: float, pace: Pace, *, count: int, seed: int = 5) -> list[Asked]:
    """Questions of one window, arriving at random, that take `load` of the machine."""
    chance = random.Random(seed)
    rate = load / (180 * 6 * pace.seconds_per_token)  # 180 tokens and 6 layers on the average
    now, questions = 0.0, []
    for _ in range(count):
        now += chance.expovariate(rate)
        questions.append(Asked(now, tokens=chance.randint(60, 300), layer=chance.randint(1, 11)))
    return questions


def p95(questions: list[Asked]) -> float:
    return float(np.percentile([question.seconds for question in questions], 95))


@pytest.mark.parametrize("groups", [1, 12])
@pytest.mark.parametrize("load", [0.6, 0.8])
@pytest.mark.parametrize("pace", [ONE_THREAD, FOUR_THREADS])
def test_a_long_passage_at_most_doubles_the_p95_of_short_questions(
    pace: Pace, load: float, groups: int
) -> None:
    alone = short_questions(load, pace, count=600)
    Simulation(pace, groups=groups).run(alone)
    beside = short_questions(load, pace, count=600)
    passage = Asked(beside[100].arrived, windows=50, tokens=384)
    Simulation(pace, groups=groups).run([*beside, passage])
    assert p95(beside) <= 2 * p95(alone)
    assert passage.answered < float("inf")


def test_a_long_passage_before_a_hundred_short_questions_lets_them_pass() -> None:
    passage = Asked(0.0, windows=50, tokens=384)
    short = [Asked(0.001, layer=number % 11 + 1) for number in range(100)]
    Simulation(ONE_THREAD).run([passage, *short])
    together = [Asked(0.0, layer=number % 11 + 1) for number in range(100)]
    Simulation(ONE_THREAD).run(together)
    assert p95(short) <= 1.2 * p95(together)
    assert passage.answered > max(question.answered for question in short)


@pytest.mark.parametrize("rank", [0, 1])
def test_under_endless_load_the_oldest_gets_its_share(rank: int) -> None:
    """A large request, or one of a lower priority, behind more short ones than can be computed."""
    stream = short_questions(1.5, ONE_THREAD, count=4_000)
    passage = Asked(0.0, windows=50, tokens=300, rank=rank, allowed_seconds=1e6)
    Simulation(ONE_THREAD).run([passage, *stream], until=stream[-1].arrived)
    work = 50 * 300 * 9 * ONE_THREAD.seconds_per_token
    assert passage.seconds <= BatchLimits().max_wait_seconds + 1.2 * work / AGED_SHARE


def test_at_saturation_batches_are_full() -> None:
    waiting = [Asked(0.0, tokens=100, layer=number % 11 + 1) for number in range(128)]
    simulation = Simulation(FOUR_THREADS)
    simulation.run(waiting)
    full = FOUR_THREADS.tokens_within(BatchLimits().step_seconds)
    assert simulation.batch_tokens[0] > 0.95 * full


def test_the_cost_of_a_choice_does_not_grow_with_what_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counted in comparisons of places in a lane, so that no clock decides."""
    from cloud_worker.scheduler import _Place

    compared = 0
    whole = _Place.__lt__

    def less(one: object, other: object) -> bool:
        nonlocal compared
        compared += 1
        return bool(whole(one, other))  # type: ignore[operator]

    monkeypatch.setattr(_Place, "__lt__", less)
    counts = {}
    for waiting in (250, 4_000):
        scheduler = scheduler_with(
            *(window(number, arrived=number % 7, tokens=90) for number in range(waiting))
        )
        compared = 0
        for _ in range(50):
            assert len(scheduler.next_batch(3.0)) == 4
        counts[waiting] = compared
    assert counts[4_000] < 2.5 * counts[250]
