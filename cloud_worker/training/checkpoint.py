"""A training run's memory: written every few minutes, read by `--resume`.

In: the network, its running average, the optimiser and the step. Out: one safetensors file with
the settings in its metadata, replaced atomically. Neighbours: `trainer`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from cloud_worker.training.settings import TrainingError, TrainSettings
from reader.network import AlbertReader

CHECKPOINT_FILE = "checkpoint.safetensors"
# Settings that may differ between a run and its continuation: the length may, the data may not.
_FREE = ("checkpoint_seconds", "out", "steps", "epochs")


def save_checkpoint(
    folder: Path,
    settings: TrainSettings,
    network: AlbertReader,
    average: dict[str, Tensor],
    optimizer: Optimizer,
    *,
    step: int,
    seconds: float,
) -> None:
    """Write everything that the next step depends on; an interruption leaves the old file."""
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors.update({f"average.{name}": value for name, value in average.items()})
    for number, state in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{number}.{name}": value for name, value in state.items()})
    tensors = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    metadata = {
        "settings": json.dumps(settings.as_json()),
        "step": str(step),
        "seconds": str(seconds),
    }
    temporary = folder / f"{CHECKPOINT_FILE}.new"
    save_file(tensors, temporary, metadata=metadata)
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(folder / CHECKPOINT_FILE)


def load_checkpoint(
    folder: Path,
    settings: TrainSettings,
    network: AlbertReader,
    average: dict[str, Tensor],
    optimizer: Optimizer,
) -> tuple[int, float]:
    """Fill all four and return the step to go on from and the seconds spent so far.

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
    network.load_state_dict(_under("network.", tensors))
    average.update(_under("average.", tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _under("optimizer.", tensors).items():
        number, part = name.split(".", 1)
        state.setdefault(int(number), {})[part] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(metadata["step"]), float(metadata["seconds"])


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value.clone()
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


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
