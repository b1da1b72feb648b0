"""Learns a bottleneck on through the worker's layers, so that the answers stay what they were.

In: a frozen reader, windows and their states, a start (`transform_coding`). Out: what was learned,
and what a codec costs the last exit's distributions. Neighbour: `bottleneck` runs both stages,
decides what is kept and writes it.

Distillation (Hinton et al. 2015) through the frozen layers that the worker runs: the last exit's
start and end distributions shall stay what they are without the codec. Rounding is in the loop,
with straight-through gradients and learned steps (LSQ, Esser et al. 2020).

Shapes: B windows, T tokens, R rows (tokens of all windows of a batch), H hidden, K components,
C classes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cloud_worker.training.batches import collate
from cloud_worker.training.features import TrainingWindow
from reader.arrays import FloatArray
from reader.bottleneck import Bottleneck, BottleneckTensors
from reader.network import AlbertReader

BATCH_WINDOWS = 16

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Recorded:
    """A window, its state after the layer, and what full depth says of it."""

    window: TrainingWindow
    state: FloatArray  # [T, H]
    logits: Tensor  # [T, 2] of the last exit


@torch.no_grad()
def record(network: AlbertReader, windows: Sequence[TrainingWindow], layer: int) -> list[Recorded]:
    """Each window's state after `layer` and its last logits, in the given order."""
    recorded: dict[int, Recorded] = {}
    order = sorted(range(len(windows)), key=lambda number: len(windows[number]))
    last = network.config.layers
    for first in range(0, len(order), BATCH_WINDOWS):
        numbers = order[first : first + BATCH_WINDOWS]
        batch = [windows[number] for number in numbers]
        inputs = collate(batch, pad_token_id=network.config.pad_token_id)
        heads = torch.tensor([window.question_tokens for window in batch])
        hidden = network.embed(inputs.token_ids, inputs.token_types)
        hidden = network.run(hidden, inputs.valid, 0, layer, heads)
        logits = network.exit_logits(last, network.run(hidden, inputs.valid, layer, last, heads))
        for row, number in enumerate(numbers):
            tokens = len(windows[number])
            state = hidden[row, :tokens].numpy().copy()
            recorded[number] = Recorded(windows[number], state, logits[row, :tokens].clone())
    return [recorded[number] for number in range(len(windows))]


def distil(
    network: AlbertReader,
    layer: int,
    start: Bottleneck,
    seen: Sequence[Recorded],
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    progress: Progress | None,
) -> BottleneckTensors:
    """Learn on with the worker's layers behind the codec, from `start`.

    `layer`: the device's last. `progress(step, steps, divergence)` hears of every step.
    """
    learned = _Learned(start.tensors)
    optimizer = torch.optim.Adam(
        [
            {"params": [learned.down, learned.up, learned.mean], "lr": learning_rate},
            {"params": [learned.log_steps, learned.offsets], "lr": 10 * learning_rate},
        ]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    chance = random.Random(f"{seed}:{layer}")  # noqa: S311  # no secret hangs on it
    ordered = sorted(seen, key=lambda item: len(item.window))
    for step in range(steps):
        first = chance.randrange(max(1, len(ordered) - BATCH_WINDOWS + 1))  # of like length
        batch = ordered[first : first + BATCH_WINDOWS]
        states = [torch.from_numpy(item.state) for item in batch]
        received = learned(states)
        divergence = _batch_divergence(network, layer, batch, received)
        error = functional.mse_loss(torch.cat(received), torch.cat(states))
        optimizer.zero_grad()
        torch.autograd.backward(divergence + 0.1 * error)
        nn.utils.clip_grad_norm_(learned.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, steps, divergence.item())
    return learned.tensors()


@torch.no_grad()
def divergence_of(
    network: AlbertReader, layer: int, codec: Bottleneck, items: Sequence[Recorded]
) -> float:
    """What the last exit's distributions lose through the codec's very bytes, in nats a window."""
    total = 0.0
    ordered = sorted(items, key=lambda item: len(item.window))
    for first in range(0, len(ordered), BATCH_WINDOWS):
        batch = ordered[first : first + BATCH_WINDOWS]
        received = [torch.from_numpy(through(codec, item.state)) for item in batch]
        total += float(_batch_divergence(network, layer, batch, received)) * len(batch)
    return total / len(items)


def through(codec: Bottleneck, state: FloatArray) -> FloatArray:
    """A state `[T, H]` as a worker gets it."""
    return codec.decode(codec.encode(state), len(state))


class _Learned(nn.Module):
    """A bottleneck whose matrices and quantisers can be learned; bits and classes' shares stay."""

    def __init__(self, start: BottleneckTensors) -> None:
        super().__init__()
        self._start = start
        self.mean = nn.Parameter(torch.tensor(start.mean))
        self.down = nn.Parameter(torch.tensor(start.down))
        self.up = nn.Parameter(torch.tensor(start.up))
        self.log_steps = nn.Parameter(torch.tensor(start.steps).log())
        self.offsets = nn.Parameter(torch.tensor(start.offsets))
        half = np.where(start.bits > 0, 2.0**start.bits / 2, 0.5)  # [C, K]
        self.register_buffer("half_levels", torch.tensor(half, dtype=torch.float32))

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """States `[T_i, H]` as a worker gets them."""
        lengths = [len(state) for state in states]
        components = (torch.cat(list(states)) - self.mean) @ self.down  # [R, K]
        plain = self.tensors()
        codec = Bottleneck(plain)
        parts = torch.split(components.detach(), lengths)
        classes = torch.from_numpy(np.concatenate([codec.assign(part.numpy()) for part in parts]))
        half = cast(Tensor, self.half_levels)[classes]  # [R, K]
        steps, offsets = self.log_steps.exp()[classes], self.offsets[classes]
        scaled = ((components - offsets) / steps).maximum(-half).minimum(half)
        # The middle of the step that it falls into: a whole number and a half for an even count.
        rounded = (torch.floor(scaled.detach() + half).minimum(2 * half - 1) + 0.5) - half
        straight = scaled + (rounded - scaled).detach()
        back = (straight * steps + offsets) @ self.up + self.mean
        return list(torch.split(back, lengths))

    def tensors(self) -> BottleneckTensors:
        """What was learned so far."""
        return replace(
            self._start,
            mean=_array(self.mean),
            down=_array(self.down),
            up=_array(self.up),
            steps=_array(self.log_steps.exp()),
            offsets=_array(self.offsets),
        )


def _batch_divergence(
    network: AlbertReader, layer: int, batch: Sequence[Recorded], received: Sequence[Tensor]
) -> Tensor:
    """Mean divergence of start and end distributions from those of full depth."""
    inputs = collate([item.window for item in batch], pad_token_id=network.config.pad_token_id)
    hidden = nn.utils.rnn.pad_sequence(list(received), batch_first=True)  # [B, T, H]
    heads = torch.tensor([item.window.question_tokens for item in batch])
    last = network.config.layers
    after = network.run(hidden, inputs.valid, layer, last, heads)
    found = network.exit_logits(last, after)  # [B, T, 2]
    wanted = nn.utils.rnn.pad_sequence([item.logits for item in batch], batch_first=True)
    hidden_positions = ~inputs.answerable_positions.unsqueeze(-1)
    found = functional.log_softmax(found.masked_fill(hidden_positions, -1e4), dim=1)
    wanted = functional.log_softmax(wanted.masked_fill(hidden_positions, -1e4), dim=1)
    return (wanted.exp() * (wanted - found)).sum((1, 2)).mean()


def _array(parameter: Tensor) -> FloatArray:
    array: FloatArray = parameter.detach().numpy().copy()
    return array
