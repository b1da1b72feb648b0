"""When a compressing run does what: shares of the run become steps, and a step a density.

Neighbours: `pruning` and `learned_spans` ask it, `trainer` acts at the boundaries.
"""

from __future__ import annotations


def step_at(share: float, steps: int) -> int:
    """The step (0-based) at which a share 0..1 of a run of `steps` is over."""
    return round(share * steps)


def cubic_density(step: int, *, begin: int, end: int, final: float) -> float:
    """The share that is left at a step: 1 before `begin`, `final` from `end` on.

    Between, it falls fast at first and slowly at last: Zhu and Gupta (2017), "To prune, or not to
    prune", equation 1, with initial sparsity 0.
    """
    if step < begin:
        return 1.0
    if step >= end:
        return final
    left = 1 - (step - begin) / (end - begin)
    return final + (1 - final) * left**3
