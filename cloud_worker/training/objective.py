"""What training minimises: all exits at once, the last one teaching the others.

In: the network and a batch. Out: one loss and each exit's own. Neighbours: `trainer` steps on it.

For exit k with weight w_k (rising with depth, summing to 1):

    loss_k = (1 - rate) * CE(k) + rate * temperature^2 * KL(last exit || k)

Self-distillation as in Phuong and Lampert (2019); with a teacher, its logits stand in for the last
exit's and the last exit learns from it too. The learned exits' certainty heads get binary cross
entropy on "this exit's argmax span is right" from a detached state (BERxiT, Xin et al. 2021).

Shapes: B windows, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloud_worker.training.batches import Batch
from reader.network import AlbertReader


@dataclass(frozen=True)
class ObjectiveSettings:
    """How the exits' losses are weighed.

    `exit_weight_power` p makes w_k proportional to k^p; `last_exit_share` of the whole goes to the
    last exit on top of its own part.
    """

    distillation_rate: float = 0.3
    distillation_temperature: float = 2.0
    exit_weight_power: float = 1.0
    last_exit_share: float = 0.3


class Objective(nn.Module):
    """The network wrapped so that one forward call gives the loss (as data parallel wants it)."""

    def __init__(
        self,
        network: AlbertReader,
        settings: ObjectiveSettings,
        teacher: AlbertReader | None = None,
    ) -> None:
        super().__init__()
        self.network, self.settings = network, settings
        self._teacher = [teacher] if teacher is not None else []  # hidden from parameters()
        self.exit_weights = exit_weights(network.config.layers, settings)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss to step on, and each exit's plain cross entropy `[layers]`, detached."""
        hidden = self.network.embed(batch.token_ids, batch.token_types)
        logits: list[Tensor] = []  # each [B, T, 2] float32
        certainties: list[Tensor] = []  # each [B]
        for layer in range(1, self.network.config.layers + 1):
            hidden = self.network.run_layer(layer, hidden, batch.valid)
            logits.append(_masked(self.network.exit_logits(layer, hidden), batch))
            certainties.append(self.network.certainty_logit(layer, hidden.detach()).float())
        target = self._target(batch, logits[-1].detach())
        total = torch.zeros(())
        plain: list[Tensor] = []
        for index, (exit_logits, certainty) in enumerate(zip(logits, certainties, strict=True)):
            cross_entropy = span_cross_entropy(exit_logits, batch)
            plain.append(cross_entropy.detach())
            taught = index < len(logits) - 1 or bool(self._teacher)
            loss = cross_entropy
            if taught and self.settings.distillation_rate > 0:
                rate = self.settings.distillation_rate
                loss = (1 - rate) * cross_entropy + rate * self._divergence(exit_logits, target)
            total = total + self.exit_weights[index] * loss
            total = total + certainty_loss(certainty, exit_logits, batch) / len(logits)
        return total, torch.stack(plain)

    def _target(self, batch: Batch, last: Tensor) -> Tensor:
        if not self._teacher:
            return last
        teacher = self._teacher[0]
        with torch.no_grad():
            hidden = teacher.embed(batch.token_ids, batch.token_types)
            hidden = teacher.run(hidden, batch.valid, 0, teacher.config.layers)
            return _masked(teacher.exit_logits(teacher.config.layers, hidden), batch)

    def _divergence(self, exit_logits: Tensor, target: Tensor) -> Tensor:
        """temperature^2 * KL(target || exit), mean over windows and over start and end."""
        temperature = self.settings.distillation_temperature
        learner = (exit_logits / temperature).log_softmax(1)  # [B, T, 2]
        teacher = (target / temperature).log_softmax(1)
        summed = functional.kl_div(learner, teacher, reduction="sum", log_target=True)
        return summed * temperature**2 / (2 * len(exit_logits))


def exit_weights(layers: int, settings: ObjectiveSettings) -> list[float]:
    """One weight a layer, summing to 1."""
    rising = [(layer + 1) ** settings.exit_weight_power for layer in range(layers)]
    share = [(1 - settings.last_exit_share) * value / sum(rising) for value in rising]
    share[-1] += settings.last_exit_share
    return share


def span_cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Mean of start and end cross entropy; `logits` `[B, T, 2]`, masked."""
    start = functional.cross_entropy(logits[..., 0], batch.starts)
    return (start + functional.cross_entropy(logits[..., 1], batch.ends)) / 2


def certainty_loss(certainty: Tensor, logits: Tensor, batch: Batch) -> Tensor:
    """Binary cross entropy of `certainty` `[B]` against "both argmaxes are right"."""
    best = logits.detach().argmax(1)  # [B, 2]
    right = (best[:, 0] == batch.starts) & (best[:, 1] == batch.ends)
    return functional.binary_cross_entropy_with_logits(certainty, right.float())


def _masked(logits: Tensor, batch: Batch) -> Tensor:
    """Float32 logits with a large negative (not infinite: KL must stay finite) where no answer
    can be."""
    return logits.float().masked_fill(~batch.answerable_positions.unsqueeze(-1), -1e4)
