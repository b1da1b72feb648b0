"""What can be pruned: entries of a matrix, attention heads, feed-forward units, each with a score.

In: a network. Out: one `Candidates` object a matrix (single weights) or two a parameter group
(heads and units). Neighbours: `pruning` chooses among them.

A mask of heads or units is put on the columns of the matrix that reads them, which is the same as
a gate on their outputs.

Shapes: N heads left, D head size, H hidden, I inner width left.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from reader.network import AlbertReader, Layer

MATRICES = ("query_key_value", "attention_output", "up", "down")


class Candidates(ABC):
    """Candidates that share one masked matrix; `score`, `fisher` and `mask` have one entry each."""

    kind: str

    def __init__(self, name: str, group: int, weight: Tensor, shape: tuple[int, ...]) -> None:
        """`name` is the masked parameter's in the network; `weight` the parameter itself."""
        self.name, self.group, self.weight = name, group, weight
        self.score = nn.Parameter(torch.zeros(shape, device=weight.device))
        self.fisher = torch.zeros(shape, device=weight.device)  # summed squared gradients
        self.mask = torch.ones(shape, device=weight.device, dtype=torch.bool)  # true: stays
        self.dense: Tensor | None = None  # the weights while the masked ones are in place

    @abstractmethod
    def expand(self, mask: Tensor) -> Tensor:
        """A tensor of the scores' shape as one to multiply the matrix `[out, in]` with."""

    @abstractmethod
    def reduce(self, values: Tensor) -> Tensor:
        """A tensor of the matrix's shape `[out, in]`, summed to the scores' shape."""

    @abstractmethod
    def magnitude(self) -> Tensor:
        """How large each candidate is now, 0 or more, in the scores' shape."""

    @property
    @abstractmethod
    def weights_each(self) -> float:
        """How many weights one candidate stands for."""


class SingleWeights(Candidates):
    """Every entry of a matrix: the scores have its shape `[out, in]`."""

    kind = "weights"

    def __init__(self, name: str, group: int, weight: Tensor) -> None:
        super().__init__(name, group, weight, tuple(weight.shape))

    def expand(self, mask: Tensor) -> Tensor:
        return mask

    def reduce(self, values: Tensor) -> Tensor:
        return values

    def magnitude(self) -> Tensor:
        return self.weight.abs()

    @property
    def weights_each(self) -> float:
        return 1.0


class Heads(Candidates):
    """The heads of a group, scores `[N]`; masked in the attention's output matrix `[H, N * D]`."""

    kind = "heads"

    def __init__(self, name: str, group: int, layer: Layer) -> None:
        super().__init__(name, group, layer.attention_output.weight, (layer.heads,))
        self._layer = layer

    def expand(self, mask: Tensor) -> Tensor:
        return mask.repeat_interleave(self._layer.head_size).unsqueeze(0)  # [1, N * D]

    def reduce(self, values: Tensor) -> Tensor:
        return values.sum(0).view(self._layer.heads, self._layer.head_size).sum(1)  # [N]

    def magnitude(self) -> Tensor:
        """The L2 norm of all weights that a head owns, `[N]`."""
        heads, size = self._layer.heads, self._layer.head_size
        made = self._layer.query_key_value.weight.square().sum(1).view(3, heads, size).sum((0, 2))
        return (made + self.reduce(self.weight.square())).sqrt()

    @property
    def weights_each(self) -> float:
        return 4.0 * self._layer.head_size * self.weight.shape[0]


class Units(Candidates):
    """The feed-forward units of a group, scores `[I]`; masked in the second matrix `[H, I]`."""

    kind = "units"

    def __init__(self, name: str, group: int, layer: Layer) -> None:
        super().__init__(name, group, layer.down.weight, (layer.down.weight.shape[1],))
        self._layer = layer

    def expand(self, mask: Tensor) -> Tensor:
        return mask.unsqueeze(0)  # [1, I]

    def reduce(self, values: Tensor) -> Tensor:
        return values.sum(0)  # [I]

    def magnitude(self) -> Tensor:
        """The product of the norms of what goes into a unit and what comes out of it, `[I]`."""
        going_in = self._layer.up.weight.square().sum(1).sqrt()
        return going_in * self.reduce(self.weight.square()).sqrt()

    @property
    def weights_each(self) -> float:
        return 2.0 * self.weight.shape[0]


def single_weights(network: AlbertReader) -> list[Candidates]:
    """The entries of every layer matrix."""
    found: list[Candidates] = []
    for group in range(network.config.groups):
        for matrix in MATRICES:
            name = f"groups.{group}.{matrix}.weight"
            weight = network.get_parameter(name)
            if weight.numel():
                found.append(SingleWeights(name, group, weight))
    return found


def heads_and_units(network: AlbertReader) -> list[Candidates]:
    """The heads and the feed-forward units of every group."""
    found: list[Candidates] = []
    for group in range(network.config.groups):
        layer = network.group(group)
        found.append(Heads(f"groups.{group}.attention_output.weight", group, layer))
        found.append(Units(f"groups.{group}.down.weight", group, layer))
    return found
