"""The bound holds as often as it says, is tighter than Hoeffding's, and ends at a failure."""

from __future__ import annotations

import numpy as np
import pytest

from cloud_worker.training.bounds import (
    betting_upper_bound,
    hoeffding_upper_bound,
    last_certified,
)

# Shares of questions with loss -1, 0, 1 and 0.5: policies that differ rarely, often, one-sidedly.
LOSSES = np.array([-1.0, 0.0, 1.0, 0.5])
MIXTURES = [(0.01, 0.96, 0.02, 0.01), (0.2, 0.5, 0.2, 0.1), (0.0, 0.97, 0.01, 0.02)]


@pytest.mark.parametrize("shares", MIXTURES)
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_true_mean_exceeds_the_bound_no_more_often_than_promised(
    shares: tuple[float, ...], confidence: float
) -> None:
    random = np.random.default_rng(11)
    true_mean = float(LOSSES @ np.array(shares))
    repetitions = 400

    misses = 0
    for _ in range(repetitions):
        losses = random.choice(LOSSES, p=shares, size=300)
        misses += betting_upper_bound(losses, confidence=confidence) < true_mean

    # Three standard errors above the promised rate: a correct bound fails this one time in 700.
    allowed = 1 - confidence
    slack = 3 * np.sqrt(allowed * confidence / repetitions)
    assert misses / repetitions <= allowed + slack


def test_it_is_far_tighter_than_hoeffding_where_losses_rarely_differ() -> None:
    losses = np.random.default_rng(5).choice(LOSSES, p=MIXTURES[0], size=2000)
    mean = float(losses.mean())

    betting = betting_upper_bound(losses, confidence=0.9) - mean
    hoeffding = hoeffding_upper_bound(losses, confidence=0.9) - mean

    assert 0 < betting < hoeffding / 4


def test_more_confidence_or_fewer_questions_widen_it() -> None:
    losses = np.random.default_rng(6).choice(LOSSES, p=MIXTURES[1], size=2000)

    bound = betting_upper_bound(losses, confidence=0.9)

    assert betting_upper_bound(losses, confidence=0.99) > bound
    assert betting_upper_bound(np.tile(losses, 4), confidence=0.9) < bound


def test_it_does_not_depend_on_the_scale_of_the_losses() -> None:
    losses = np.random.default_rng(7).choice(LOSSES, p=MIXTURES[1], size=500)

    bound = betting_upper_bound(losses, confidence=0.9)
    scaled = betting_upper_bound(50 + 50 * losses, confidence=0.9, low=0.0, high=100.0)

    assert scaled == pytest.approx(50 + 50 * bound)


@pytest.mark.parametrize("loss", [-1.0, 1.0])
def test_it_stays_in_range_at_the_extremes(loss: float) -> None:
    bound = betting_upper_bound(np.full(50, loss), confidence=0.9)

    assert loss <= bound <= 1.0


def test_losses_outside_the_promised_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"outside the promised -1.0..1.0"):
        betting_upper_bound(np.array([0.0, 1.5]), confidence=0.9)


def test_testing_ends_at_the_first_failure() -> None:
    bounds = {"none": 0.001, "few": 0.004, "some": 0.02, "many": 0.003}

    assert last_certified(list(bounds), bounds.__getitem__, 0.01) == ("few", 0.004)
    assert last_certified(list(bounds), bounds.__getitem__, 0.0001) is None
