"""Finite-sample bounds on a mean, and the test that picks a policy with them.

Input: one loss per question, in a known range, and a confidence. Output: a number that the true
mean exceeds with probability at most 1 - confidence, whatever the distribution of the losses.
Neighbours: `calibration` bounds the F1 that early exits cost.

The bounds hold for independent losses, or any losses whose mean given the earlier ones is the
same. Questions of one article are alike, so on question files the stated confidence is
approximate; see `calibration`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from cloud_worker.training.squad_metrics import FloatArray

# Bets stay below this share of the largest that could lose everything (WSR 2024, section 3.2).
LARGEST_BET_SHARE = 0.75
SHUFFLE_SEED = 20_240_101
Candidate = TypeVar("Candidate")


def betting_upper_bound(
    losses: FloatArray, *, confidence: float, low: float = -1.0, high: float = 1.0
) -> float:
    """Upper confidence bound on the mean of `losses` [N], each within `low`..`high`.

    The predictable plug-in betting bound of Waudby-Smith and Ramdas ("Estimating means of bounded
    random variables by betting", JRSS B 86(1), 2024), one-sided: with losses x scaled to 0..1, a
    gambler who believes the mean is below m multiplies her capital by 1 + bet (m - x) at each
    question. Were the mean m or more, her capital would ever reach 1 / (1 - confidence) with
    probability at most 1 - confidence (Ville), so every m at which it does is ruled out; the bound
    is the smallest. Bets depend on earlier losses only. The order of the questions is shuffled by a
    fixed seed, because files list them by article.
    """
    _check(losses, confidence, low, high)
    scaled = (losses - low) / (high - low)
    scaled = np.random.default_rng(SHUFFLE_SEED).permutation(scaled)
    bets = _plug_in_bets(scaled, confidence)
    wanted_log_capital = -np.log1p(-confidence)

    def is_ruled_out(mean: float) -> bool:
        # Capital rises with `mean` for every sequence of losses, so bisection finds the edge.
        if mean >= 1.0:
            return True
        stakes = np.minimum(bets, LARGEST_BET_SHARE / (1.0 - mean))
        log_capital = np.cumsum(np.log1p(stakes * (mean - scaled)))
        return bool(log_capital.max() >= wanted_log_capital)

    ruled_out, possible = 1.0, 0.0
    for _ in range(40):  # halves the interval to 1e-12
        middle = (ruled_out + possible) / 2
        if is_ruled_out(middle):
            ruled_out = middle
        else:
            possible = middle
    return low + (high - low) * ruled_out


def weighted_bound_holds(
    losses: FloatArray, weights: FloatArray, limit: float, *, confidence: float
) -> bool:
    """Whether the weighted mean of `losses` [N], each in 0..1, is shown to be at most `limit`.

    The mean of a sample in which a question is drawn with a probability that is proportional to
    1 / weight: E[w x] / E[w] <= m is the same as E[w (x - m)] <= 0, a plain mean of bounded values
    that the betting bound tests. So the chance in which questions were drawn is in the test, too.
    Where the sample's own mean is above the limit, nothing is shown, whatever an early part of it
    had promised.
    """
    _check(losses, confidence, 0.0, 1.0)
    if float(np.average(losses, weights=weights)) > limit:
        return False
    largest = float(weights.max())
    shifted = weights * (losses - limit)
    low, high = -largest * limit, largest * (1.0 - limit)
    return betting_upper_bound(shifted, confidence=confidence, low=low, high=high) <= 0.0


def weighted_upper_bound(losses: FloatArray, weights: FloatArray, *, confidence: float) -> float:
    """The smallest limit, 0..1, that `weighted_bound_holds` for with `losses` and `weights` `[N]`,
    by bisection; 1 where none does."""
    possible, shown = 0.0, 1.0
    for _ in range(20):  # to 1e-6
        middle = (possible + shown) / 2
        if weighted_bound_holds(losses, weights, middle, confidence=confidence):
            shown = middle
        else:
            possible = middle
    return shown


def hoeffding_upper_bound(
    losses: FloatArray, *, confidence: float, low: float = -1.0, high: float = 1.0
) -> float:
    """Hoeffding's upper bound (1963, theorem 2) on the mean of `losses` [N], for comparison."""
    _check(losses, confidence, low, high)
    margin = (high - low) * np.sqrt(-np.log1p(-confidence) / (2 * len(losses)))
    return min(high, float(losses.mean() + margin))


def last_certified(
    candidates: Sequence[Candidate], bound_of: Callable[[Candidate], float], largest_mean: float
) -> tuple[Candidate, float] | None:
    """The last candidate before the first whose bound exceeds `largest_mean`, with its bound.

    Fixed-sequence testing as in Learn then Test (Angelopoulos et al. 2022, section 2.3): candidates
    come in an order that the tested losses did not choose, from the most careful to the boldest,
    and testing ends at the first failure, so no correction for their number is needed. None when
    the first fails.
    """
    certified: tuple[Candidate, float] | None = None
    for candidate in candidates:
        bound = bound_of(candidate)
        if bound > largest_mean:
            break
        certified = (candidate, bound)
    return certified


def _plug_in_bets(scaled: FloatArray, confidence: float) -> FloatArray:
    """[N] bets before capping: equation 26 of the paper, with the sample size fixed in advance."""
    n = len(scaled)
    seen = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(scaled)) / (seen + 1)
    variances = (0.25 + np.cumsum((scaled - means) ** 2)) / (seen + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    bets: FloatArray = np.sqrt(-2 * np.log1p(-confidence) / (n * before))
    return bets


def _check(losses: FloatArray, confidence: float, low: float, high: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1")
    if len(losses) == 0:
        raise ValueError("no loss to bound; give at least one question")
    if losses.min() < low or losses.max() > high:
        raise ValueError(
            f"losses span {losses.min()}..{losses.max()}, outside the promised {low}..{high}"
        )
