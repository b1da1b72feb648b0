"""A training run's memory: written every few minutes, read by `--resume`.

In: the network, its running average, the optimiser, what is being compressed, and the step. Out:
one safetensors file with settings and shape in its metadata, replaced atomically. Neighbours:
`trainer`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cloud_worker.training.settings import TrainingError, TrainSettings
from reader.config import ReaderConfig

CHECKPOINT_FILE = "checkpoint.safetensors"
# Settings that may differ between a run and its continuation: the length may, the data may not.
_FREE = ("checkpoint_seconds", "out", "steps", "epochs")


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps: the network's shape as it is by now, and every tensor."""

    config: ReaderConfig
    step: int
    seconds: float
    tensors: Mapping[str, Tensor]


def save_checkpoint(folder: Path, settings: TrainSettings, checkpoint: Checkpoint) -> None:
    """Write everything that the next step depends on; an interruption leaves the old file."""
    tensors = {
        name: value.detach().clone().contiguous() for name, value in checkpoint.tensors.items()
    }
    metadata = {
        "settings": json.dumps(settings.as_json()),
        "config": json.dumps(checkpoint.config.to_hugging_face()),
        "step": str(checkpoint.step),
        "seconds": str(checkpoint.seconds),
    }
    temporary = folder / f"{CHECKPOINT_FILE}.new"
    save_file(tensors, temporary, metadata=metadata)
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(folder / CHECKPOINT_FILE)


def load_checkpoint(folder: Path, settings: TrainSettings) -> Checkpoint:
    """What `save_checkpoint` wrote there.

    Raises `TrainingError` when there is no checkpoint, or one of other settings.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        raise TrainingError(f"{folder} holds no checkpoint; start without --resume")
    try:
        with safe_open(path, "pt") as stream:
            metadata = stream.metadata()
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TrainingError(f"{path} cannot be read: {error}; start without --resume") from error
    _check_same_settings(json.loads(metadata["settings"]), settings)
    return Checkpoint(
        config=ReaderConfig.from_hugging_face(json.loads(metadata["config"])),
        step=int(metadata["step"]),
        seconds=float(metadata["seconds"]),
        tensors=tensors,
    )


def _check_same_settings(stored: dict[str, object], settings: TrainSettings) -> None:
    current = json.loads(json.dumps(settings.as_json()))
    other = [
        name
        for name in current
        if name not in _FREE and stored.get(name, current[name]) != current[name]
    ]
    if other:
        raise TrainingError(
            f"the checkpoint was made with another {', '.join(other)}; "
            "use the same settings, or start without --resume in another --out"
        )


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of torch's generator for one step of one process: dropout then does not depend on
    where a run was interrupted."""
    return (seed * 1_000_003 + step * 1_009 + rank) % (2**63)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step."""
    torch.manual_seed(step_seed(seed, step, rank))
