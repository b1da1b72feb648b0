"""The bound on agreement: silent on chance and small counts, loud on a real fall."""

from __future__ import annotations

import random

import pytest

from publisher.drift import DriftBound, find_drift, least_difference, wilson_interval

BOUND = DriftBound(max_drop=0.02, least_count=100, confidence=0.999)


def test_wilson_interval_is_that_of_the_literature() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857-872, table I: 81 of 263, score method.
    low, high = wilson_interval(81, 263, 0.975)
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_difference_is_newcombes_method_10() -> None:
    # Newcombe 1998, table II, 56/70 - 48/80: 0.0524 to 0.3339.
    assert least_difference(56, 70, 48, 80, 0.975) == pytest.approx(0.0524, abs=1e-4)


def test_a_real_fall_is_found_and_named() -> None:
    drifts = find_drift({(4, "offload"): (930, 1000)}, {(4, "offload"): (800, 1000)}, BOUND)
    assert [drift.layer for drift in drifts] == [4]
    assert "exit 4 (offload)" in drifts[0].describe()
    assert 0.02 < drifts[0].least_drop < 0.13


def test_a_fall_within_the_bound_is_none() -> None:
    assert not find_drift({(4, "audit"): (9900, 10000)}, {(4, "audit"): (9800, 10000)}, BOUND)


def test_a_rise_is_none() -> None:
    assert not find_drift({(4, "audit"): (500, 1000)}, {(4, "audit"): (990, 1000)}, BOUND)


def test_too_few_answers_are_not_judged() -> None:
    assert not find_drift({(4, "audit"): (99, 99)}, {(4, "audit"): (0, 1000)}, BOUND)


def test_exits_are_compared_with_themselves_only() -> None:
    # Sums would show 0.90 against 0.60: only because more is answered at the earlier exit.
    old = {(3, "audit"): (50, 100), (6, "audit"): (950, 1000)}
    new = {(3, "audit"): (500, 1000), (6, "audit"): (95, 100)}
    assert not find_drift(old, new, BOUND)


def test_equal_releases_hardly_ever_alarm() -> None:
    generator = random.Random(7)
    alarms = 0
    bound = DriftBound(max_drop=0.0, least_count=1, confidence=0.99)
    for _ in range(400):
        counts = [sum(generator.random() < 0.95 for _ in range(200)) for _ in range(2)]
        old, new = ({(4, "audit"): (count, 200)} for count in counts)
        alarms += bool(find_drift(old, new, bound))
    assert alarms <= 12
