"""Is a new release's agreement with the workers really lower than the old one's?

In: counts by exit, of the old release and the new one. Out: the exits where the difference is
certain enough. Neighbours: `fleet` adds the workers' counts up, `watching` pauses by the result.

An exit's agreement is a proportion: of so many answers that edges gave there, so many were the
worker's too. Two of them are compared by Newcombe's hybrid score interval for a difference
(Newcombe 1998, Statistics in Medicine 17:873-890, method 10), made of two Wilson intervals (Wilson
1927): with p old, q new and their Wilson limits (l, u),

    lower limit of p - q  =  p - q - sqrt((p - l_p)^2 + (u_q - q)^2)

It holds its level for small counts and for proportions near 1, where agreement lives and where the
textbook interval does not. An exit has drifted when that lower limit is above the drop allowed.
Each exit and kind is compared with itself, never the sums: another share of early exits alone would
shift those. The level is divided by the number of comparisons (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

Exit = tuple[int, str]
"""Layer, and kind of question: "offload" or "audit"."""
Counts = Mapping[Exit, tuple[int, int]]
"""(agreed, total) by exit."""


@dataclass(frozen=True)
class DriftBound:
    """`max_drop` of agreement (0 to 1) that is tolerated, `least_count` answers that either release
    must have at an exit before it is judged, and `confidence` (0.5 to 1) over all exits together.
    """

    max_drop: float = 0.02
    least_count: int = 100
    confidence: float = 0.999


@dataclass(frozen=True)
class Drift:
    """An exit at which the new release agrees less; `least_drop` is the interval's lower limit."""

    layer: int
    kind: str
    old_agreement: float
    new_agreement: float
    old_count: int
    new_count: int
    least_drop: float

    def describe(self) -> str:
        """One line for a person."""
        return (
            f"exit {self.layer} ({self.kind}): agreement {self.new_agreement:.3f} of "
            f"{self.new_count}, was {self.old_agreement:.3f} of {self.old_count}; "
            f"the drop is at least {self.least_drop:.3f}"
        )


def find_drift(old: Counts, new: Counts, bound: DriftBound) -> list[Drift]:
    """The exits that have drifted, the worst first."""
    judged = [
        place
        for place in sorted(old.keys() & new.keys())
        if min(old[place][1], new[place][1]) >= max(1, bound.least_count)
    ]
    if not judged:
        return []
    confidence = 1 - (1 - bound.confidence) / len(judged)
    found = []
    for layer, kind in judged:
        old_agreed, old_count = old[layer, kind]
        new_agreed, new_count = new[layer, kind]
        least_drop = least_difference(old_agreed, old_count, new_agreed, new_count, confidence)
        if least_drop > bound.max_drop:
            found.append(
                Drift(
                    layer,
                    kind,
                    old_agreed / old_count,
                    new_agreed / new_count,
                    old_count,
                    new_count,
                    least_drop,
                )
            )
    return sorted(found, key=lambda drift: -drift.least_drop)


def least_difference(
    agreed: int, total: int, other_agreed: int, other_total: int, confidence: float
) -> float:
    """The lower limit, one-sided, of agreed / total - other_agreed / other_total."""
    p, q = agreed / total, other_agreed / other_total
    low, _ = wilson_interval(agreed, total, confidence)
    _, high = wilson_interval(other_agreed, other_total, confidence)
    return p - q - math.hypot(p - low, high - q)


def wilson_interval(successes: int, total: int, confidence: float) -> tuple[float, float]:
    """Both limits of a proportion, each one-sided at `confidence`."""
    z = NormalDist().inv_cdf(confidence)
    p = successes / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, centre - half), min(1.0, centre + half)
