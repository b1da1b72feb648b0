"""Repeated requests: same bytes, other bytes, bounds and time."""

from __future__ import annotations

import threading

import pytest

from protocol.duplicates import DuplicateGuard, Seen, Verdict
from protocol.errors import ConflictingDuplicate
from protocol.sealing import CLOCK_SKEW_SECONDS


class Clock:
    """Unix seconds that move only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_copy_is_in_progress_and_then_gets_the_cached_answer() -> None:
    guard = DuplicateGuard(clock=Clock())
    assert guard.check("kitchen", "r1", b"bytes", 1030.0).seen is Seen.NEW
    assert guard.check("kitchen", "r1", b"bytes", 1030.0).seen is Seen.IN_PROGRESS
    guard.remember("kitchen", "r1", b"answer")
    assert guard.check("kitchen", "r1", b"bytes", 1030.0) == Verdict(Seen.ANSWERED, b"answer")


def test_the_same_id_with_other_bytes_is_refused_before_and_after_the_answer() -> None:
    guard = DuplicateGuard(clock=Clock())
    guard.check("kitchen", "r1", b"bytes", 1030.0)
    with pytest.raises(ConflictingDuplicate, match="r1"):
        guard.check("kitchen", "r1", b"other", 1030.0)
    guard.remember("kitchen", "r1", b"answer")
    with pytest.raises(ConflictingDuplicate):
        guard.check("kitchen", "r1", b"other", 1030.0)
    assert guard.check("kitchen", "r1", b"bytes", 1030.0).answer == b"answer"


def test_edges_do_not_share_ids() -> None:
    guard = DuplicateGuard(clock=Clock())
    guard.check("kitchen", "r1", b"bytes", 1030.0)
    assert guard.check("cellar", "r1", b"other", 1030.0).seen is Seen.NEW


def test_a_request_is_remembered_as_long_as_it_could_be_accepted() -> None:
    clock = Clock()
    guard = DuplicateGuard(clock=clock)
    guard.check("kitchen", "r1", b"bytes", 1030.0)
    guard.remember("kitchen", "r1", b"answer")
    clock.now = 1030.0 + CLOCK_SKEW_SECONDS
    assert guard.check("kitchen", "r1", b"bytes", 1030.0).seen is Seen.ANSWERED
    clock.now += 0.001
    guard.check("kitchen", "r2", b"bytes", 1100.0)
    assert len(guard) == 1
    assert guard.held_bytes == 0


def test_a_request_that_was_not_taken_counts_as_new_again() -> None:
    guard = DuplicateGuard(clock=Clock())
    guard.check("kitchen", "r1", b"bytes", 1030.0)
    guard.forget("kitchen", "r1")
    guard.forget("kitchen", "never-seen")
    assert guard.check("kitchen", "r1", b"bytes", 1030.0).seen is Seen.NEW


def test_the_number_of_entries_is_bounded_and_answered_ones_go_first() -> None:
    guard = DuplicateGuard(capacity=3, clock=Clock())
    for number in range(3):
        guard.check("kitchen", f"r{number}", b"bytes", 1030.0)
    guard.remember("kitchen", "r1", b"answer")
    guard.check("kitchen", "r3", b"bytes", 1030.0)
    assert len(guard) == 3
    assert guard.check("kitchen", "r0", b"bytes", 1030.0).seen is Seen.IN_PROGRESS
    assert guard.check("kitchen", "r1", b"bytes", 1030.0).seen is Seen.NEW


def test_the_bytes_of_cached_answers_are_bounded() -> None:
    guard = DuplicateGuard(answer_bytes=10, clock=Clock())
    for number in range(4):
        guard.check("kitchen", f"r{number}", b"bytes", 1030.0)
        guard.remember("kitchen", f"r{number}", b"four")
        assert guard.held_bytes <= 10
    assert guard.check("kitchen", "r3", b"bytes", 1030.0).answer == b"four"
    assert guard.check("kitchen", "r0", b"bytes", 1030.0).seen is Seen.NEW


def test_an_answer_over_the_whole_bound_is_not_kept() -> None:
    guard = DuplicateGuard(answer_bytes=3, clock=Clock())
    guard.check("kitchen", "r1", b"bytes", 1030.0)
    guard.remember("kitchen", "r1", b"four")
    assert guard.held_bytes == 0
    assert guard.check("kitchen", "r1", b"bytes", 1030.0).seen is Seen.NEW


def test_an_answer_to_a_forgotten_request_is_ignored() -> None:
    guard = DuplicateGuard(clock=Clock())
    guard.remember("kitchen", "r1", b"answer")
    assert len(guard) == 0


def test_a_replaced_answer_is_counted_once() -> None:
    guard = DuplicateGuard(clock=Clock())
    guard.check("kitchen", "r1", b"bytes", 1030.0)
    guard.remember("kitchen", "r1", b"accepted")
    guard.remember("kitchen", "r1", b"answer")
    assert guard.held_bytes == len(b"answer")


def test_of_many_threads_with_one_request_exactly_one_is_told_that_it_is_new() -> None:
    guard = DuplicateGuard(clock=Clock())
    barrier = threading.Barrier(8)
    seen: list[Seen] = []

    def ask() -> None:
        barrier.wait(timeout=10)
        seen.append(guard.check("kitchen", "r1", b"bytes", 1030.0).seen)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert sorted(item.value for item in seen) == ["in_progress"] * 7 + ["new"]
