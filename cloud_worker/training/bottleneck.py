"""Learns the `bottleneck` codec of a reader: narrow projections between device and worker.

In: a model folder and training questions. Out: `bottleneck.safetensors` in that folder, and what
was measured on windows that were held out. Neighbours: `reader.bottleneck` says what the tensors
mean and packs the bits; `elma compress bottleneck` is the command.

Two stages, for each layer after which a device may hand over:

1. The start is transform coding from statistics alone (`transform_coding`).
2. Distillation through the frozen layers that the worker runs (`bottleneck_distilling`), kept where
   it lowers the divergence on held-out windows.

The reader itself is not changed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from cloud_worker.training.bottleneck_distilling import (
    BATCH_WINDOWS,
    Progress,
    Recorded,
    distil,
    divergence_of,
    record,
    through,
)
from cloud_worker.training.data import load_questions
from cloud_worker.training.features import TrainingWindow, make_training_windows
from cloud_worker.training.settings import TrainingError
from cloud_worker.training.transform_coding import fit_transform
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
        codec, report = _learn_layer(network, layer, windows, settings, progress)
        _keep(folder, layer, codec, network.config.hidden_size)
        reports.append(report)
    return reports


def _learn_layer(
    network: AlbertReader,
    layer: int,
    windows: Sequence[TrainingWindow],
    settings: BottleneckSettings,
    progress: Progress | None,
) -> tuple[Bottleneck, LayerReport]:
    """Both stages after one layer; what was learned is kept only where it is better."""
    recorded = record(network, windows, layer)
    held_out, seen = recorded[: len(recorded) // 10], recorded[len(recorded) // 10 :]
    fitted = fit_transform([item.state for item in seen], settings.bits, settings.one_in)
    kept = Bottleneck(_as_stored(fitted))
    before = after = divergence_of(network, layer, kept, held_out)
    if settings.steps:
        tensors = distil(
            network,
            layer,
            kept,
            seen,
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            seed=settings.seed,
            progress=progress,
        )
        learned = Bottleneck(_as_stored(tensors))
        divergence = divergence_of(network, layer, learned, held_out)
        if divergence < before:
            kept, after = learned, divergence
    report = LayerReport(
        layer=layer,
        bytes_a_token=_bytes_a_token(kept, held_out),
        relative_error=_relative_error(kept, held_out),
        divergence_before=before,
        divergence_after=after,
    )
    return kept, report


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


def _bytes_a_token(codec: Bottleneck, items: Sequence[Recorded]) -> float:
    tokens = [len(item.state) for item in items]
    return sum(codec.size(count) for count in tokens) / sum(tokens)


def _relative_error(codec: Bottleneck, items: Sequence[Recorded]) -> float:
    """Squared error over the states' variance."""
    states = np.concatenate([item.state for item in items])
    back = np.concatenate([through(codec, item.state) for item in items])
    return float(((back - states) ** 2).sum() / ((states - states.mean(0)) ** 2).sum())
