"""Bytes a second and quiet hours, by injected clocks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from releases.pacing import LONGEST_WAIT_SECONDS, Pacer
from releases.settings import FollowSettings


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def at(hour: int, minute: int) -> float:
    """A wall clock's value at this local time."""
    return time.mktime((2026, 11, 22, hour, minute, 0, 0, 0, -1))


def test_asking_keeps_within_the_bytes_per_second() -> None:
    clock = Clock()
    pacer = Pacer(1000, clock=clock)
    asked = 0
    while clock.now < 100.0:
        if pacer.wait_seconds() <= 0:
            pacer.spend(700)
            asked += 700
        clock.now += 0.05
    assert 95_000 <= asked <= 100_700


def test_idle_time_is_not_saved_up() -> None:
    clock = Clock()
    pacer = Pacer(1000, clock=clock)
    clock.now = 1000.0
    pacer.spend(500)
    assert pacer.wait_seconds() == pytest.approx(0.5)


def test_without_a_bound_nothing_waits() -> None:
    pacer = Pacer(clock=Clock())
    pacer.spend(10**9)
    assert pacer.wait_seconds() == 0


@pytest.mark.parametrize(
    ("hours", "moment", "is_quiet"),
    [
        ("22:00-06:00", (21, 59), False),
        ("22:00-06:00", (22, 0), True),
        ("22:00-06:00", (0, 0), True),
        ("22:00-06:00", (5, 59), True),
        ("22:00-06:00", (6, 0), False),
        ("09:30-17:00", (9, 29), False),
        ("09:30-17:00", (12, 0), True),
        ("09:30-17:00", (17, 0), False),
    ],
)
def test_quiet_hours_begin_and_end_at_their_minute(
    hours: str, moment: tuple[int, int], is_quiet: bool
) -> None:
    pacer = Pacer(None, hours, clock=Clock(), wall_clock=Clock(at(*moment)))
    assert (pacer.wait_seconds() > 0) == is_quiet
    assert pacer.wait_seconds() <= LONGEST_WAIT_SECONDS


@pytest.mark.parametrize("hours", ["22-6", "24:00-06:00", "06:00-06:00", "", "22:60-06:00"])
def test_hours_that_are_none_are_refused(hours: str) -> None:
    with pytest.raises(ValidationError, match="quiet_hours"):
        FollowSettings(publisher_public_key_file=Path("p.json"), quiet_hours=hours)
