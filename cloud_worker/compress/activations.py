"""What goes into every matrix of a network when it reads text.

In: a network and training windows. Out: mean and covariance of the inputs of each linear layer.
Neighbours: `rounding` weighs its errors by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cloud_worker.training.batches import collate
from cloud_worker.training.features import TrainingWindow
from reader.network import AlbertReader

MATRICES = ("query_key_value", "attention_output", "up", "down")
BATCH_WINDOWS = 16


@dataclass(frozen=True)
class InputStatistics:
    """What a matrix is multiplied with: mean `[columns]` and covariance `[columns, columns]`."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


@torch.no_grad()
def input_statistics(
    network: AlbertReader,
    windows: Sequence[TrainingWindow],
    *,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, InputStatistics]:
    """The inputs of each layer matrix over all tokens of the text, by the name of its weight.

    A matrix that several layers share sees the inputs of them all. `progress(done, total)` counts
    windows.
    """
    sums: dict[str, Tensor] = {}
    valid = torch.empty(0)

    def add(name: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0][valid]  # [tokens, columns]
        rows = torch.cat((rows, rows.new_ones(len(rows), 1)), dim=1)  # the last column counts
        product = (rows.T @ rows).double()
        sums[name] = product if name not in sums else sums[name] + product

    hooks = [
        getattr(network.group(group), matrix).register_forward_pre_hook(
            partial(add, f"groups.{group}.{matrix}.weight")
        )
        for group in range(network.config.groups)
        for matrix in MATRICES
    ]
    ordered = sorted(windows, key=len)
    try:
        for first in range(0, len(ordered), BATCH_WINDOWS):
            chosen = ordered[first : first + BATCH_WINDOWS]
            batch = collate(chosen, pad_token_id=network.config.pad_token_id)
            valid = batch.valid
            hidden = network.embed(batch.token_ids, batch.token_types)
            network.run(hidden, valid, 0, network.config.layers, batch.question_tokens)
            progress(first + len(chosen), len(ordered))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: _statistics(total.numpy()) for name, total in sums.items()}


def _statistics(sums: NDArray[np.float64]) -> InputStatistics:
    """From the sums of products of `[inputs, 1]`."""
    mean = sums[-1, :-1] / sums[-1, -1]
    return InputStatistics(mean, sums[:-1, :-1] / sums[-1, -1] - np.outer(mean, mean))
