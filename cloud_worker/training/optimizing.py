"""The optimiser of a run, and its moments by the names of what they belong to.

In: a network, or an optimiser. Out: AdamW, or its moments as named tensors, so that a checkpoint
can keep them and a cut can shrink them. Neighbours: `trainer`, `compressing`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from cloud_worker.training.settings import TrainSettings
from reader.network import AlbertReader


def make_optimizer(network: AlbertReader, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW without weight decay on biases and norms; parameters in `parameter_names`' order."""
    trained = [value for value in network.parameters() if value.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def parameter_names(network: AlbertReader) -> list[str]:
    """The trained parameters, as the optimiser numbers them."""
    trained = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
    return [name for name, value in trained if value.dim() > 1] + [
        name for name, value in trained if value.dim() <= 1
    ]


def moments_by_name(network: AlbertReader, optimizer: Optimizer) -> dict[str, dict[str, Tensor]]:
    """For each part of the optimiser's state ("exp_avg" ...), its tensors by parameter."""
    parts: dict[str, dict[str, Tensor]] = {}
    names = parameter_names(network)
    for number, state in optimizer.state_dict()["state"].items():
        for part, value in state.items():
            parts.setdefault(part, {})[names[number]] = value
    return parts


def load_moments(
    network: AlbertReader, optimizer: Optimizer, moments: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Fill the optimiser with what `moments_by_name` gave."""
    states: dict[int, dict[str, Tensor]] = {}
    for number, name in enumerate(parameter_names(network)):
        found = {part: values[name] for part, values in moments.items() if name in values}
        if found:
            states[number] = found
    load_states(optimizer, states)


def optimizer_tensors(prefix: str, optimizer: Optimizer) -> dict[str, Tensor]:
    """An optimiser's moments as `prefix.NUMBER.PART` tensors, for a checkpoint."""
    return {
        f"{prefix}.{number}.{part}": value
        for number, state in optimizer.state_dict()["state"].items()
        for part, value in state.items()
    }


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Fill an optimiser from `NUMBER.PART` tensors."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, part = name.split(".", 1)
        states.setdefault(int(number), {})[part] = value
    load_states(optimizer, states)


def load_states(optimizer: Optimizer, states: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Give an optimiser the moments of its parameters, by their number."""
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def tensors_under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it, in memory of their own."""
    return {
        name.removeprefix(prefix): value.clone()
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
