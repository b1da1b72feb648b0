"""Which weights, heads and feed-forward units a run takes away, by magnitude or by movement.

In: the network around every step. Out: masks, growing by a schedule, at last final: entries that
stay zero, or a `Cut`. Neighbours: `candidates` knows what can be masked, `schedules` gives the
density, `cutting` makes a cut real, `compressing` calls `mask` before and `unmask` after each step.

A step runs on masked weights W' = W * M. Afterwards dL/dW' is known, and from it

    dL/dW = dL/dW' * M        and, straight through the choice of M,        dL/dS = dL/dW' * W

for the scores S (Sanh et al. 2020, "Movement pruning", section 4). The weights of a head or unit
share one score, whose gradient is the sum over the block (block movement pruning, Lagunas et al.
2021), which is the gradient of a gate on the head's or unit's output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cloud_worker.training.candidates import Candidates, heads_and_units, single_weights
from cloud_worker.training.cutting import Cut
from cloud_worker.training.schedules import cubic_density, step_at
from cloud_worker.training.settings import PruneSettings
from reader.network import AlbertReader


class Pruner:
    """The masks of one run."""

    def __init__(self, network: AlbertReader, settings: PruneSettings, steps: int) -> None:
        """`steps` is the whole run's length, which the schedule divides."""
        self.settings, self.config = settings, network.config
        self.begin = step_at(settings.begin_share, steps)
        self.end = step_at(settings.end_share, steps)
        by_weights = settings.structure == "weights"
        self._candidates = single_weights(network) if by_weights else heads_and_units(network)
        self.optimizer = torch.optim.Adam(
            [each.score for each in self._candidates], lr=settings.score_learning_rate
        )

    @torch.no_grad()
    def mask(self, step: int) -> None:
        """Choose what counts at this step and put the masked weights into the network."""
        if step == self.begin and self.settings.start_from_fisher:
            self._start_from_fisher()
        self._choose(step)
        for each in self._candidates:
            each.dense = each.weight.clone()
            each.weight.mul_(each.expand(each.mask))

    @torch.no_grad()
    def unmask(self, step: int) -> None:
        """After the backward pass: put the weights back, mask their gradients, step the scores.

        The network's own optimiser steps after this. Raises RuntimeError where `mask` was not
        called before, or a masked weight is frozen.
        """
        for each in self._candidates:
            gradient = each.weight.grad
            if gradient is None:
                raise RuntimeError(f"{each.name} has no gradient; is it frozen?")
            if each.dense is None:
                raise RuntimeError(f"{each.name} was not masked; call mask before unmask")
            each.weight.copy_(each.dense)
            moved = each.reduce(gradient * each.dense)
            each.dense = None
            if step < self.begin:
                each.fisher += moved.square()
            each.score.grad = moved + self._soft_gradient(each.score, step)
            gradient.mul_(each.expand(each.mask))
        gathers = self.settings.start_from_fisher and step < self.begin
        if not (gathers or self.settings.method == "magnitude"):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def finish(self, step: int) -> None:
        """Choose for the last time, as at `step`; normally the schedule's end."""
        self._choose(step)

    @torch.no_grad()
    def zero(self, tensors: Mapping[str, Tensor]) -> None:
        """Zero what is pruned in tensors named like the network's parameters (after `finish`)."""
        for each in self._candidates:
            value = tensors.get(each.name)
            if value is not None and value.dim() > 0:  # not an optimiser's step count
                value.mul_(each.expand(each.mask))

    def cut(self) -> Cut | None:
        """What stays of heads and units; None when single weights are pruned."""
        if self.settings.structure == "weights":
            return None
        kept = {
            (each.kind, each.group): tuple(int(place) for place in each.mask.nonzero())
            for each in self._candidates
        }
        groups = range(self.config.groups)
        return Cut(
            heads=tuple(kept["heads", group] for group in groups),
            units=tuple(kept["units", group] for group in groups),
        )

    def sparsity(self) -> float:
        """The share of the layers' weights that is masked."""
        masked = sum(float((~each.mask).sum()) * each.weights_each for each in self._candidates)
        every = sum(each.mask.numel() * each.weights_each for each in self._candidates)
        return masked / max(1.0, every)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, the optimiser apart."""
        tensors: dict[str, Tensor] = {}
        for number, each in enumerate(self._candidates):
            tensors[f"{number}.score"] = each.score.detach()
            tensors[f"{number}.fisher"] = each.fisher
        return tensors

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `state`."""
        for number, each in enumerate(self._candidates):
            each.score.copy_(tensors[f"{number}.score"])
            each.fisher.copy_(tensors[f"{number}.fisher"])

    def _soft_gradient(self, score: Tensor, step: int) -> Tensor | float:
        """Of `soft_penalty` times the mean sigmoid, growing as the schedule's sparsity does."""
        if self.settings.method != "soft_movement":
            return 0.0
        sigmoid = score.sigmoid()
        grown = 1 - cubic_density(step, begin=self.begin, end=self.end, final=0.0)
        return self.settings.soft_penalty * grown * sigmoid * (1 - sigmoid) / score.numel()

    def _start_from_fisher(self) -> None:
        """Scores become the ranks (0..1) of the Fisher information, over all that compete."""
        for rivals in self._rivals():
            fisher = torch.cat([each.fisher.flatten() for each in rivals])
            ranks = fisher.argsort().argsort().float() / max(1, len(fisher) - 1)
            for each, part in zip(rivals, _split_like(rivals, ranks), strict=True):
                each.score.copy_(part)

    @torch.no_grad()
    def _choose(self, step: int) -> None:
        """Set every mask for a step."""
        by_magnitude = self.settings.method == "magnitude"
        for rivals in self._rivals():
            worth = torch.cat(
                [(each.magnitude() if by_magnitude else each.score).flatten() for each in rivals]
            )
            kept = top_mask(worth, self._count(rivals[0].kind, worth, step))
            for each, part in zip(rivals, _split_like(rivals, kept), strict=True):
                each.mask.copy_(part)

    def _count(self, kind: str, worth: Tensor, step: int) -> int:
        """How many of these candidates stay at a step."""
        if self.settings.method == "soft_movement":
            above = int((worth.sigmoid() > self.settings.soft_threshold).sum())
            count = above if step >= self.begin else len(worth)
        else:
            final = {
                "weights": self.settings.keep,
                "heads": self.settings.keep_heads,
                "units": self.settings.keep_units,
            }[kind]
            density = cubic_density(step, begin=self.begin, end=self.end, final=final)
            count = round(density * len(worth))
        if kind == "units" and step >= self.end:
            multiple = self.settings.unit_multiple
            count = min(len(worth), multiple * math.ceil(count / multiple))
        return count

    def _rivals(self) -> list[list[Candidates]]:
        """The candidates that share one budget."""
        heads = [each for each in self._candidates if each.kind == "heads"]
        if not (heads and self.settings.heads_compete_globally):
            return [[each] for each in self._candidates]
        return [heads, *([each] for each in self._candidates if each.kind != "heads")]


class KeptZeros:
    """Weights of the layers' matrices that are exactly 0, and stay so while training goes on."""

    def __init__(self, network: AlbertReader) -> None:
        """Matrices without a zero are left alone."""
        self._masks: list[tuple[Tensor, Tensor]] = []  # the matrix and where it is not 0
        self._weights = 0
        for each in single_weights(network):
            self._weights += each.weight.numel()
            if bool((each.weight == 0).any()):
                self._masks.append((each.weight, (each.weight != 0).detach()))

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Nothing pulls a zero away; call between the backward pass and the optimiser's step."""
        for weight, mask in self._masks:
            if weight.grad is not None:
                weight.grad.mul_(mask)

    def sparsity(self) -> float:
        """The share of the layers' weights that is 0."""
        zeros = sum(float((~mask).sum()) for _, mask in self._masks)
        return zeros / max(1, self._weights)


def top_mask(worth: Tensor, count: int) -> Tensor:
    """True for exactly the `count` highest of `worth` `[M]`; of equals the first ones."""
    if count >= len(worth):
        return torch.ones_like(worth, dtype=torch.bool)
    if count <= 0:
        return torch.zeros_like(worth, dtype=torch.bool)
    threshold = worth.kthvalue(len(worth) - count + 1).values
    above = worth > threshold
    equal = worth == threshold
    return above | (equal & (equal.cumsum(0) <= count - above.sum()))


def _split_like(rivals: Sequence[Candidates], values: Tensor) -> list[Tensor]:
    """Values of all rivals together `[M]`, as one tensor each in its scores' shape."""
    sizes = [each.mask.numel() for each in rivals]
    parts = torch.split(values, sizes)
    return [part.view_as(each.mask) for each, part in zip(rivals, parts, strict=True)]
