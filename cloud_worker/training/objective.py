"""What training minimises: all exits at once, the last one or a teacher teaching the others.

In: the network and a batch. Out: one loss and each exit's own. Neighbours: `distillation` asks the
teacher, `learned_spans` limits the heads, `trainer` steps.

For exit k with weight w_k (rising with depth, summing to 1):

    loss_k = (1 - rate) * CE(k) + rate * temperature^2 * KL(target_k || k)

Without a teacher the target is the last exit (self-distillation, Phuong and Lampert 2019), which
itself learns from the labels alone. With one, it is the teacher's last exit or its exit of the same
layer, both in the shares that `DistillationSettings` gives, for every exit; the distance to the
teacher's states may be added. The learned exits' certainty heads get binary cross entropy on "this
exit's argmax span is right" from a detached state (BERxiT, Xin et al. 2021).

Shapes: B windows, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloud_worker.training.batches import Batch
from cloud_worker.training.distillation import (
    Teaching,
    ask_teacher,
    divergence,
    masked_logits,
    state_distance,
)
from cloud_worker.training.learned_spans import LearnedSpans
from cloud_worker.training.settings import (
    DistillationSettings,
    ObjectiveSettings,
    TrainingError,
)
from reader.network import AlbertReader


class Objective(nn.Module):
    """The network wrapped so that one forward call gives the loss (as data parallel wants it)."""

    def __init__(
        self,
        network: AlbertReader,
        settings: ObjectiveSettings,
        teacher: AlbertReader | None = None,
        *,
        distillation: DistillationSettings | None = None,
        spans: LearnedSpans | None = None,
    ) -> None:
        """Raises `TrainingError` when the teacher has not the shape that `distillation` needs."""
        super().__init__()
        self.network, self.settings, self.spans = network, settings, spans
        self.distillation = distillation or DistillationSettings()
        self._teacher = [teacher] if teacher is not None else []  # hidden from parameters()
        self.exit_weights = exit_weights(network.config.layers, settings)
        self._check_teacher()

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss to step on, and each exit's plain cross entropy `[layers]`, detached."""
        logits, states = self._run(batch)
        teaching = ask_teacher(self._teacher[0], batch) if self._teacher else None
        rate = self.settings.distillation_rate
        total = torch.zeros((), device=states[0].device)
        plain: list[Tensor] = []
        for index, (exit_logits, weight) in enumerate(zip(logits, self.exit_weights, strict=True)):
            cross_entropy = span_cross_entropy(exit_logits, batch)
            plain.append(cross_entropy.detach())
            loss = cross_entropy
            if rate > 0 and (teaching is not None or index < len(logits) - 1):
                taught = self._taught(exit_logits, index, teaching, logits[-1].detach())
                loss = (1 - rate) * cross_entropy + rate * taught
            certainty = self.network.certainty_logit(index + 1, states[index].detach()).float()
            total = total + weight * loss
            total = total + certainty_loss(certainty, exit_logits, batch) / len(logits)
        if teaching is not None and self.distillation.hidden_weight:
            layers = self.distillation.hidden_layers or range(1, len(states) + 1)
            distance = state_distance(states, teaching, tuple(layers), batch.valid)
            total = total + self.distillation.hidden_weight * distance
        if self.spans is not None:
            total = total + self.spans.penalty()
        return total, torch.stack(plain)

    def _run(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Every exit's masked logits `[B, T, 2]` and the state after every layer `[B, T, H]`."""
        hidden = self.network.embed(batch.token_ids, batch.token_types)
        tokens = hidden.shape[1]
        logits: list[Tensor] = []
        states: list[Tensor] = []
        for layer in range(1, self.network.config.layers + 1):
            limits = None if self.spans is None else self.spans.limits(layer, tokens)
            hidden = self.network.run_layer(
                layer, hidden, batch.valid, batch.question_tokens, limits=limits
            )
            states.append(hidden)
            logits.append(masked_logits(self.network.exit_logits(layer, hidden), batch))
        return logits, states

    def _taught(
        self, exit_logits: Tensor, index: int, teaching: Teaching | None, last: Tensor
    ) -> Tensor:
        """How far an exit is from whoever teaches it."""
        temperature = self.settings.distillation_temperature
        if teaching is None:
            return divergence(exit_logits, last, temperature)
        same = self.distillation.same_exit_share
        taught = torch.zeros((), device=exit_logits.device)
        if same < 1:
            taught = (1 - same) * divergence(exit_logits, teaching.logits[-1], temperature)
        if same > 0:
            taught = taught + same * divergence(exit_logits, teaching.logits[index], temperature)
        return taught

    def _check_teacher(self) -> None:
        if not self._teacher:
            return
        own, theirs = self.network.config, self._teacher[0].config
        if self.distillation.same_exit_share > 0 and own.layers != theirs.layers:
            raise TrainingError(
                f"the teacher has {theirs.layers} layers and the learner {own.layers}, so there "
                "is no exit of the same layer; set same_exit_share to 0"
            )
        if self.distillation.hidden_weight > 0 and own.hidden_size != theirs.hidden_size:
            raise TrainingError(
                f"the teacher's states are {theirs.hidden_size} wide and the learner's "
                f"{own.hidden_size}; set hidden_weight to 0"
            )
        if any(not 1 <= layer <= own.layers for layer in self.distillation.hidden_layers):
            raise TrainingError(
                f"hidden_layers {list(self.distillation.hidden_layers)} are not all in "
                f"1..{own.layers}"
            )


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
