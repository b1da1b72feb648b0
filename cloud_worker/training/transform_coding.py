"""Transform coding of states: a bottleneck from statistics alone, before anything is learned.

In: states of training windows. Out: `BottleneckTensors`. Neighbours: `bottleneck` starts from it
and learns on.

Components are the eigenvectors of the states' covariance (KLT; Goyal 2001, "Theoretical foundations
of transform coding", section III). Each class of tokens gets its bits where they lower the squared
error most, one after another: greedy reverse water-filling with the distortions of Max 1960.
Classes and quantisers are found in turn, as in Lloyd's algorithm.

Shapes: T tokens, R rows (tokens of all windows), H hidden, K components, C classes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from reader.arrays import FloatArray, IntArray
from reader.bottleneck import MAX_BITS, Bottleneck, BottleneckTensors

# Max 1960, table I and its uniform counterpart: squared error and step of the best uniform
# quantiser of 2^bits levels for a Gaussian of variance 1.
DISTORTIONS = (1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.00349, 0.00104, 0.0003, 0.00009)
STEPS = (1.0, 1.596, 0.9957, 0.586, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308)
# States have longer tails than a Gaussian; wider steps clip less (measured: 1.25 beats 1 and 1.5).
WIDER = 1.25
ROUNDS = 3


def fit_transform(
    states: Sequence[FloatArray], bits: Sequence[int], one_in: Sequence[int]
) -> BottleneckTensors:
    """Eigenvectors, bits, steps and offsets from states `[T_i, H]` of windows.

    `bits` of a token and its share, `one_in`, by class, plainest first.
    """
    rows = np.concatenate(states)  # [R, H]
    mean = rows.mean(0)
    centred = rows - mean
    classes = np.zeros(len(rows), np.int64)  # [R]
    lengths = np.cumsum([0, *(len(state) for state in states)])
    for _ in range(ROUNDS if len(bits) > 1 else 1):
        tensors = _fit_classes(mean, centred, classes, bits, one_in)
        bottleneck = Bottleneck(tensors)
        classes = np.concatenate(
            [
                bottleneck.assign(centred[first:last] @ tensors.down)
                for first, last in pairwise(lengths)
            ]
        )
    return _fit_classes(mean, centred, classes, bits, one_in)


def allocate_bits(variances: FloatArray, total: int) -> IntArray:
    """Bits `[K]` of components `[K]`: each next bit goes where it lowers the error most."""
    bits = np.zeros(len(variances), np.int64)

    def gain(component: int) -> float:
        have = int(bits[component])
        return float(variances[component]) * (DISTORTIONS[have] - DISTORTIONS[have + 1])

    waiting = [(-gain(component), component) for component in range(len(variances))]
    heapq.heapify(waiting)
    for _ in range(min(total, MAX_BITS * len(variances))):
        _, component = heapq.heappop(waiting)
        bits[component] += 1
        if bits[component] < MAX_BITS:
            heapq.heappush(waiting, (-gain(component), component))
    return bits


def _fit_classes(
    mean: FloatArray,
    centred: FloatArray,
    classes: IntArray,
    totals: Sequence[int],
    one_in: Sequence[int],
) -> BottleneckTensors:
    """Every class counts alike in the covariance, however few its tokens are."""
    present = [number for number in range(len(totals)) if (classes == number).any()]
    covariance = sum(
        (centred[classes == number].T @ centred[classes == number]) / (classes == number).sum()
        for number in present
    )
    _, vectors = np.linalg.eigh(covariance)
    down = np.ascontiguousarray(vectors[:, ::-1]).astype(np.float32)  # [H, K]
    components = centred @ down  # [R, K]
    bits, steps, offsets = [], [], []
    for number, total in enumerate(totals):
        chosen = components[classes == number] if number in present else components
        variances = np.maximum(chosen.var(0), 1e-12)
        bits.append(allocate_bits(variances, total))
        steps.append(np.array(STEPS)[bits[-1]] * np.sqrt(variances) * WIDER)
        offsets.append(chosen.mean(0))
    used = np.array(bits).any(0)
    return BottleneckTensors(
        mean=mean,
        down=down[:, used],
        up=np.ascontiguousarray(down[:, used].T),
        bits=np.array(bits)[:, used],
        steps=np.array(steps, np.float32)[:, used],
        offsets=np.array(offsets, np.float32)[:, used],
        one_in=tuple(one_in),
    )
