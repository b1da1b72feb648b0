"""Exit policies as arrays: where each window would stop, and families of thresholds to pick from.

Input: the uncertainty of every window at every exit, recorded once. Output: exit layers, and
per-layer thresholds from the most careful to the boldest.
Neighbours: `recording` makes the arrays, `evaluation` measures a policy, `calibration` picks one.

Shapes: W windows, L layers. Layer k stands at column k - 1.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cloud_worker.training.squad_metrics import FloatArray

IntArray: TypeAlias = NDArray[np.int64]


def exit_layers(uncertainty: FloatArray, thresholds: FloatArray) -> IntArray:
    """[W] the layer, 1..L, at which each window stops.

    A window stops at the first layer whose `uncertainty` [W, L] is at most `thresholds` [L], and
    at the last layer whatever the threshold.
    """
    stops = uncertainty <= thresholds[None, :]
    stops[:, -1] = True
    layers: IntArray = stops.argmax(axis=1).astype(np.int64) + 1
    return layers


def shared_threshold_family(uncertainty: FloatArray, count: int = 40) -> list[FloatArray]:
    """At most `count` policies with one threshold for all layers, from never to at once.

    The thresholds are quantiles of `uncertainty` [W, L] before the last layer.
    """
    before_last = uncertainty[:, :-1]
    levels = np.unique(np.quantile(before_last, np.linspace(0, 1, max(count - 1, 1))))
    layers = uncertainty.shape[1]
    return [_with_open_end(np.full(layers, level)) for level in (-np.inf, *levels)]


def equal_loss_family(
    uncertainty: FloatArray,
    losses: FloatArray,
    count: int = 120,
    *,
    weights: FloatArray | None = None,
) -> list[FloatArray]:
    """At most `count` policies, each stopping at every layer where the expected loss is the same.

    `losses` [W, L] is what stopping a window at each layer costs against the last one (negative
    where it gains). Per layer, the expected loss as a function of uncertainty is fitted by isotonic
    regression: more uncertain is never safer. The policy of level x puts each layer's threshold
    where that function passes x, so that no layer stops windows whose expected loss another layer
    would not accept. Levels are quantiles of the fitted losses; the first policy never stops early.
    A window counts `weights` [W] times (None: once).
    """
    layers = uncertainty.shape[1]
    fits = [isotonic_fit(uncertainty[:, k], losses[:, k], weights) for k in range(layers - 1)]
    every_level = np.concatenate([np.zeros(0), *(fitted for _, fitted in fits)])
    if len(every_level) == 0:  # a reader of one layer has nothing to choose
        return [np.full(layers, np.inf)]
    family = [_with_open_end(np.full(layers, -np.inf))]
    for level in np.unique(np.quantile(every_level, np.linspace(0, 1, max(count - 1, 1)))):
        thresholds = np.full(layers, -np.inf)
        for k, (values, fitted) in enumerate(fits):
            thresholds[k] = _between(values, int(np.searchsorted(fitted, level, side="right")))
        family.append(_with_open_end(thresholds))
    return family


def isotonic_fit(
    x: FloatArray, y: FloatArray, weights: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """The non-decreasing function of `x` [W] closest to `y` [W] in squares.

    Each point counts `weights` [W] times (None: once). Returns the distinct values of x in rising
    order, and the fitted value at each. Pool adjacent violators (Ayer et al. 1955).
    """
    values, where = np.unique(x, return_inverse=True)
    counts = np.ones_like(y) if weights is None else weights
    totals = np.bincount(where, weights=counts)
    means = np.bincount(where, weights=counts * y) / totals
    # Blocks of pooled neighbours: each has a mean, a weight and a number of distinct values.
    block_means: list[float] = []
    block_weights: list[float] = []
    block_sizes: list[int] = []
    for mean, weight in zip(means.tolist(), totals.tolist(), strict=True):
        size = 1
        while block_means and block_means[-1] >= mean:
            earlier_weight = block_weights.pop()
            mean = (mean * weight + block_means.pop() * earlier_weight) / (weight + earlier_weight)
            weight += earlier_weight
            size += block_sizes.pop()
        block_means.append(mean)
        block_weights.append(weight)
        block_sizes.append(size)
    return values, np.repeat(block_means, block_sizes)


def _between(values: FloatArray, count: int) -> float:
    """A threshold that lets the first `count` of the rising `values` pass.

    It lies halfway to the next value, so that rounding on another machine moves no window.
    """
    if count == 0:
        return -np.inf
    if count == len(values):
        return np.inf
    return float((values[count - 1] + values[count]) / 2)


def _with_open_end(thresholds: FloatArray) -> FloatArray:
    """The same thresholds, with the last layer's at +inf: there is nowhere further to go."""
    thresholds[-1] = np.inf
    return thresholds
