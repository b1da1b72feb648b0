"""Heads and feed-forward units taken out of a network for real: smaller matrices, not zeros.

In: a network and what to keep. Out: a smaller network, and any tensors that go with its parameters
(running average, optimiser moments) cut alike. Neighbours: `pruning` chooses, `trainer` goes on.

Shapes: N heads left, D head size, H hidden, I inner width left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reader.config import ReaderConfig
from reader.network import AlbertReader


@dataclass(frozen=True)
class Cut:
    """What stays, per group: places among the heads and among the inner units there are now."""

    heads: tuple[tuple[int, ...], ...]
    units: tuple[tuple[int, ...], ...]

    @classmethod
    def nothing(cls, config: ReaderConfig) -> Cut:
        """The cut that keeps everything."""
        groups = range(config.groups)
        return cls(
            heads=tuple(tuple(range(len(config.heads_of(group)))) for group in groups),
            units=tuple(tuple(range(config.inner_of(group))) for group in groups),
        )


def cut_network(network: AlbertReader, cut: Cut, *, dropout: float = 0.0) -> AlbertReader:
    """The smaller network that computes what `network` would with everything else at zero."""
    smaller = AlbertReader(cut_config(network.config, cut), dropout=dropout)
    smaller.load_state_dict(cut_tensors(network.state_dict(), network.config, cut))
    return smaller.train(network.training)


def cut_config(config: ReaderConfig, cut: Cut) -> ReaderConfig:
    """The configuration after the cut; heads keep their original numbers, and spans are named only
    where one that is left is limited."""
    kept_heads = tuple(
        tuple(config.heads_of(group)[place] for place in cut.heads[group])
        for group in range(config.groups)
    )
    spans = tuple(
        tuple(config.spans_of(layer)[place] for place in cut.heads[config.group_of(layer)])
        for layer in range(1, config.layers + 1)
    )
    limited = any(span < config.max_positions for row in spans for span in row)
    return replace(
        config,
        kept_heads=kept_heads,
        inner_sizes=tuple(len(units) for units in cut.units),
        spans=spans if limited else (),
    )


def cut_tensors(tensors: Mapping[str, Tensor], config: ReaderConfig, cut: Cut) -> dict[str, Tensor]:
    """Tensors named and shaped like the parameters of a network of `config`, cut alike."""
    done = dict(tensors)
    for group in range(config.groups):
        rows = _head_rows(cut.heads[group], config.head_size)
        width = len(config.heads_of(group)) * config.head_size
        three = torch.cat([rows, rows + width, rows + 2 * width])  # query, key, value
        units = torch.tensor(cut.units[group], dtype=torch.int64)
        for name, dimension, kept in (
            ("query_key_value.weight", 0, three),
            ("query_key_value.bias", 0, three),
            ("attention_output.weight", 1, rows),
            ("up.weight", 0, units),
            ("up.bias", 0, units),
            ("down.weight", 1, units),
        ):
            full = f"groups.{group}.{name}"
            if full in tensors and tensors[full].dim() > 0:  # not an optimiser's step count
                value = tensors[full]
                done[full] = value.index_select(dimension, kept.to(value.device)).contiguous()
    return done


def _head_rows(places: Sequence[int], head_size: int) -> Tensor:
    """The rows of the heads at `places`, `[len(places) * D]`."""
    first = torch.tensor(places, dtype=torch.int64) * head_size
    return (first.unsqueeze(1) + torch.arange(head_size)).flatten()
