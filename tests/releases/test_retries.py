"""The waits after failures grow, up to a bound, and are shorter or longer for their reasons."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from releases.errors import FetchFailed, NotEnoughSpace, ProofStarved
from releases.retries import Retries


class Middle(random.Random):
    """Draws the mean, so that waits can be told exactly."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def retries(first: float = 5.0, longest: float = 600.0) -> Retries:
    return Retries((first, longest), lambda: 0.0, Middle())


def test_each_wait_is_twice_the_last_up_to_the_longest() -> None:
    waits = retries(longest=30.0)
    seen = []
    for _ in range(5):
        waits.failed(FetchFailed("nobody sends it"))
        seen.append(waits.due_in())
    assert seen == [5.0, 10.0, 20.0, 30.0, 30.0]
    assert not waits.is_due


def test_a_wait_is_drawn_around_its_mean() -> None:
    drawn = set()
    for seed in range(20):
        waits = Retries((10.0, 600.0), lambda: 0.0, random.Random(seed))
        waits.failed(FetchFailed("nobody sends it"))
        drawn.add(waits.due_in())
    assert len(drawn) > 1
    assert all(5.0 <= seconds <= 15.0 for seconds in drawn)


def test_space_on_the_disk_is_looked_for_more_often() -> None:
    waits = retries()
    for _ in range(10):
        waits.failed(NotEnoughSpace("the disk is full"))
    assert waits.due_in() == 60.0


def test_memory_is_not_hoped_for_in_the_first_minute() -> None:
    waits = retries()
    waits.failed(ProofStarved("there is no memory"))
    assert waits.due_in() == 60.0


@pytest.mark.parametrize("change", [Retries.succeeded, Retries.begin])
def test_after_a_success_or_for_something_else_the_waits_begin_anew(
    change: Callable[[Retries], None],
) -> None:
    waits = retries()
    for _ in range(4):
        waits.failed(FetchFailed("nobody sends it"))
    change(waits)
    waits.failed(FetchFailed("nobody sends it"))
    assert waits.due_in() == 5.0


def test_a_new_connection_ends_the_wait_but_not_the_count() -> None:
    waits = retries()
    waits.failed(FetchFailed("nobody sends it"))
    waits.forget_wait()
    assert waits.is_due
    waits.failed(FetchFailed("nobody sends it"))
    assert waits.due_in() == 10.0
