"""Learns the `bottleneck` codec of a reader: narrow projections between device and worker.

In: a model folder and training questions. Out: `bottleneck.safetensors` in that folder, and what
was measured on windows that were held out. Neighbours: `reader.bottleneck` says what the tensors
mean and packs the bits; `elma compress bottleneck` is the command.

Two stages, for each layer after which a device may hand over:

1. The start is transform coding from statistics alone (`transform_coding`).
2. Distillation (Hinton et al. 2015) through the frozen layers that the worker runs: the last exit's
   start and end distributions shall stay what they are without the codec. Rounding is in the loop,
   with straight-through gradients and learned steps (LSQ, Esser et al. 2020).

The reader itself is not changed. Shapes: B windows, T tokens, R rows (tokens of all windows of a
batch), H hidden, K components, C classes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn import functional

from cloud_worker.training.batches import collate
from cloud_worker.training.data import load_questions
from cloud_worker.training.features import TrainingWindow, make_training_windows
from cloud_worker.training.settings import TrainingError
from cloud_worker.training.transform_coding import fit_transform
from reader.arrays import FloatArray
from reader.bottleneck import (
    BOTTLENECK_FILE,
    Bottleneck,
    BottleneckTensors,
    load_bottlenecks,
    stored_tensors,
)
from reader.network import AlbertReader
from reader.network_files import load_network
from reader.windows import WindowSplitter

BATCH_WINDOWS = 16

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class BottleneckSettings:
    """What to learn and on what.

    `bits` of a token, by class, plainest first, and `one_in`, the share of each class (its first
    number is 1): 128, 320, 768 and 1, 4, 16 are 128 bits for 11 tokens of 16, 320 for 4 of them
    (one in 4), 768 for one. `windows` are drawn from `data` (SQuAD files), a tenth of them is held
    out. `steps` of distillation; 0 leaves the start as it is.
    """

    data: tuple[str, ...]
    layers: tuple[int, ...]
    bits: tuple[int, ...] = (128, 320, 768)
    one_in: tuple[int, ...] = (1, 4, 16)
    windows: int = 1_500
    max_tokens: int = 256
    steps: int = 200
    learning_rate: float = 2e-4
    seed: int = 0


@dataclass(frozen=True)
class LayerReport:
    """What the codec of one layer costs and loses, on windows that were held out.

    `divergence_*`: Kullback-Leibler divergence of the last exit's start and end distributions
    together, in nats, at the start of distillation and of what was kept.
    """

    layer: int
    bytes_a_token: float
    relative_error: float
    divergence_before: float
    divergence_after: float


@dataclass(frozen=True)
class _Recorded:
    """A window, its state after the layer, and what full depth says of it."""

    window: TrainingWindow
    state: FloatArray  # [T, H]
    logits: Tensor  # [T, 2] of the last exit


def train_bottleneck(
    folder: Path, settings: BottleneckSettings, *, progress: Progress | None = None
) -> list[LayerReport]:
    """Learn a codec for each layer and keep it in the folder, beside those of other layers.

    The file is written after every layer. `progress(step, steps, divergence)` hears of
    distillation. Raises `TrainingError`, `ModelFolderError`, `SquadFileError`.
    """
    network = load_network(folder).requires_grad_(False)
    wrong = [layer for layer in settings.layers if not 1 <= layer < network.config.layers]
    if wrong or not settings.layers:
        raise TrainingError(
            f"layers {wrong or '(none)'}: a device hands over after one of "
            f"1..{network.config.layers - 1}; give --layer in that range"
        )
    windows = _choose_windows(folder, settings)
    reports = []
    for layer in settings.layers:
        recorded = _record(network, windows, layer)
        held_out, seen = recorded[: len(recorded) // 10], recorded[len(recorded) // 10 :]
        fitted = fit_transform([item.state for item in seen], settings.bits, settings.one_in)
        started = Bottleneck(_as_stored(fitted))
        before = _divergence(network, layer, started, held_out)
        kept, after = started, before
        if settings.steps:
            learned = _distil(network, layer, started, seen, settings, progress)
            divergence = _divergence(network, layer, learned, held_out)
            if divergence < before:
                kept, after = learned, divergence
        _keep(folder, layer, kept, network.config.hidden_size)
        reports.append(
            LayerReport(
                layer=layer,
                bytes_a_token=_bytes_a_token(kept, held_out),
                relative_error=_relative_error(kept, held_out),
                divergence_before=before,
                divergence_after=after,
            )
        )
    return reports


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


def _distil(
    network: AlbertReader,
    layer: int,
    start: Bottleneck,
    seen: Sequence[_Recorded],
    settings: BottleneckSettings,
    progress: Progress | None,
) -> Bottleneck:
    """Learn on with the worker's layers behind the codec."""
    learned = _Learned(start.tensors)
    rate = settings.learning_rate
    optimizer = torch.optim.Adam(
        [
            {"params": [learned.down, learned.up, learned.mean], "lr": rate},
            {"params": [learned.log_steps, learned.offsets], "lr": 10 * rate},
        ]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    )
    chance = random.Random(f"{settings.seed}:{layer}")  # noqa: S311  # no secret hangs on it
    ordered = sorted(seen, key=lambda item: len(item.window))
    for step in range(settings.steps):
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
            progress(step + 1, settings.steps, divergence.item())
    return Bottleneck(_as_stored(learned.tensors()))


def _batch_divergence(
    network: AlbertReader, layer: int, batch: Sequence[_Recorded], received: Sequence[Tensor]
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


@torch.no_grad()
def _divergence(
    network: AlbertReader, layer: int, codec: Bottleneck, items: Sequence[_Recorded]
) -> float:
    """The same over many windows, through the codec's very bytes."""
    total = 0.0
    ordered = sorted(items, key=lambda item: len(item.window))
    for first in range(0, len(ordered), BATCH_WINDOWS):
        batch = ordered[first : first + BATCH_WINDOWS]
        received = [torch.from_numpy(_through(codec, item.state)) for item in batch]
        total += float(_batch_divergence(network, layer, batch, received)) * len(batch)
    return total / len(items)


@torch.no_grad()
def _record(
    network: AlbertReader, windows: Sequence[TrainingWindow], layer: int
) -> list[_Recorded]:
    """Each window's state after `layer` and its last logits, in the given order."""
    recorded: dict[int, _Recorded] = {}
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
            recorded[number] = _Recorded(windows[number], state, logits[row, :tokens].clone())
    return [recorded[number] for number in range(len(windows))]


def _choose_windows(folder: Path, settings: BottleneckSettings) -> list[TrainingWindow]:
    """Windows of questions drawn from the data, in an order of chance."""
    questions = [question for name in settings.data for question in load_questions(name)]
    random.Random(settings.seed).shuffle(questions)  # noqa: S311  # no secret hangs on it
    splitter = WindowSplitter(folder / "tokenizer.json", window_tokens=settings.max_tokens)
    drawn = ((question, 1.0) for question in questions[: settings.windows])
    windows = list(make_training_windows(drawn, splitter, max_tokens=settings.max_tokens))
    if len(windows) < 2 * BATCH_WINDOWS:
        raise TrainingError(
            f"{len(windows)} questions of {', '.join(settings.data)} can be read; "
            f"give at least {2 * BATCH_WINDOWS}"
        )
    return windows


def _keep(folder: Path, layer: int, codec: Bottleneck, hidden_size: int) -> None:
    kept = {**load_bottlenecks(folder, hidden_size), layer: codec}
    path = folder / BOTTLENECK_FILE
    unfinished = path.with_suffix(".unfinished")
    save_file(stored_tensors(kept), unfinished)
    unfinished.chmod(0o644)  # safetensors makes it 0600
    unfinished.replace(path)


def _as_stored(tensors: BottleneckTensors) -> BottleneckTensors:
    """The tensors as they come back from their file."""
    return replace(
        tensors,
        down=tensors.down.astype(np.float16).astype(np.float32),
        up=tensors.up.astype(np.float16).astype(np.float32),
    )


def _bytes_a_token(codec: Bottleneck, items: Sequence[_Recorded]) -> float:
    tokens = [len(item.state) for item in items]
    return sum(codec.size(count) for count in tokens) / sum(tokens)


def _relative_error(codec: Bottleneck, items: Sequence[_Recorded]) -> float:
    """Squared error over the states' variance."""
    states = np.concatenate([item.state for item in items])
    back = np.concatenate([_through(codec, item.state) for item in items])
    return float(((back - states) ** 2).sum() / ((states - states.mean(0)) ** 2).sum())


def _through(codec: Bottleneck, state: FloatArray) -> FloatArray:
    return codec.decode(codec.encode(state), len(state))


def _array(parameter: Tensor) -> FloatArray:
    array: FloatArray = parameter.detach().numpy().copy()
    return array
