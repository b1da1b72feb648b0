"""What a teacher says of a batch, and how far a learner is from it.

In: a network and a batch. Out: its logits at every exit and its states, and losses against them.
Neighbours: `objective` weighs the losses.

Shapes: B windows, T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cloud_worker.training.batches import Batch
from reader.network import AlbertReader


@dataclass(frozen=True)
class Teaching:
    """A teacher's answer to a batch, without gradients."""

    logits: tuple[Tensor, ...]  # each [B, T, 2] float32, masked; by exit
    states: tuple[Tensor, ...]  # each [B, T, H]; after each layer


@torch.no_grad()
def ask_teacher(teacher: AlbertReader, batch: Batch) -> Teaching:
    """Run the teacher over a batch."""
    hidden = teacher.embed(batch.token_ids, batch.token_types)
    logits: list[Tensor] = []
    states: list[Tensor] = []
    for layer in range(1, teacher.config.layers + 1):
        hidden = teacher.run_layer(layer, hidden, batch.valid, batch.question_tokens)
        states.append(hidden)
        logits.append(masked_logits(teacher.exit_logits(layer, hidden), batch))
    return Teaching(tuple(logits), tuple(states))


def masked_logits(logits: Tensor, batch: Batch) -> Tensor:
    """Float32 logits `[B, T, 2]` with a large negative (not infinite: KL must stay finite) where no
    answer can be."""
    return logits.float().masked_fill(~batch.answerable_positions.unsqueeze(-1), -1e4)


def divergence(learner: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """temperature^2 * KL(teacher || learner) of masked logits `[B, T, 2]`, mean over windows and
    over start and end (Hinton, Vinyals and Dean 2015)."""
    log_learner = (learner / temperature).log_softmax(1)
    log_teacher = (teacher / temperature).log_softmax(1)
    summed = functional.kl_div(log_learner, log_teacher, reduction="sum", log_target=True)
    return summed * temperature**2 / (2 * len(learner))


def state_distance(
    learner: Sequence[Tensor], teacher: Teaching, layers: Sequence[int], valid: Tensor
) -> Tensor:
    """Mean squared error of states over `layers` (the learner's, 1-based), in units of the
    teacher's variance; a teacher of another depth is asked at the same share of it.

    `learner`: a state `[B, T, H]` a layer; `valid` `[B, T]` leaves the padding out. After the
    hidden-state loss of TinyBERT (Jiao et al. 2020), without a projection: both are H wide.
    """
    distances: list[Tensor] = []
    for layer in layers:
        depth = max(1, round(layer * len(teacher.states) / len(learner)))
        wanted = teacher.states[depth - 1][valid].float()  # [tokens, H]
        found = learner[layer - 1][valid].float()
        distances.append((found - wanted).square().mean() / wanted.var())
    return torch.stack(distances).mean()
