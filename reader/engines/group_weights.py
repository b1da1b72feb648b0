"""What an engine multiplies with: one parameter group's tensors, read once, in the form it needs.

In: `ModelTensors`. Out: matrices as float32 or as int8 codes, norms, exits, embedded tokens, all
numpy. Neighbours: every engine loads through this, so that they agree on what is left of a group.

Heads that are silent (span 0) in every layer of their group are left out here: they cost nothing.

Shapes: R rows (tokens), H hidden, E embedding, N heads left, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from reader.arrays import FloatArray
from reader.config import ReaderConfig
from reader.encodings import encode_int8_rows
from reader.storage import StoredTensor
from reader.weights import ModelTensors

IntCodes = NDArray[np.int8]
Kind = TypeVar("Kind", bound=np.generic)


@dataclass(frozen=True)
class Matrix:
    """A linear map `rows @ weight.T + bias`, as it was stored."""

    stored: FloatArray | tuple[IntCodes, FloatArray]  # [out, in], or codes and their scales [out]
    bias: FloatArray  # [out]

    @classmethod
    def read(cls, tensors: ModelTensors, name: str) -> Matrix:
        """The matrix `name` `[out, in]` of a folder; raises `ModelFolderError`."""
        return _matrix(tensors, name)

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        weight = self.stored[0] if isinstance(self.stored, tuple) else self.stored
        return weight.shape[0], weight.shape[1]

    def floats(self) -> FloatArray:
        """The weight `[out, in]` in float32."""
        if isinstance(self.stored, tuple):
            return self.stored[0] * self.stored[1][:, None]
        return self.stored

    def codes(self) -> tuple[IntCodes, FloatArray]:
        """The weight as int8 `[out, in]` and one scale an output; those of the file if it has them,
        which changes nothing, else rounded."""
        if isinstance(self.stored, tuple):
            return self.stored
        codes, scales = encode_int8_rows(self.stored)
        return codes, scales[:, 0].astype(np.float32)


@dataclass(frozen=True)
class NormVectors:
    """Layer normalisation."""

    weight: FloatArray  # [H]
    bias: FloatArray


@dataclass(frozen=True)
class GroupWeights:
    """One parameter group. Without heads, `attention_output` is its bias alone; without inner
    units, `down` is."""

    heads: tuple[int, ...]  # places of the heads kept here among `ReaderConfig.heads_of(group)`
    query_key_value: Matrix  # [3 * N * D, H]: queries, then keys, then values
    attention_output: Matrix  # [H, N * D]
    attention_norm: NormVectors
    up: Matrix  # [inner, H]
    down: Matrix  # [H, inner]
    output_norm: NormVectors


def read_group(tensors: ModelTensors, group: int) -> GroupWeights:
    """A group's weights without the heads that no layer of it uses; raises `ModelFolderError`."""
    config, prefix = tensors.config, f"groups.{group}"
    heads = audible_heads(config, group)
    size, left = config.head_size, len(config.heads_of(group))
    columns = [head * size + d for head in heads for d in range(size)]
    rows = [part * left * size + column for part in range(3) for column in columns]
    every = len(heads) == left
    return GroupWeights(
        heads=heads,
        query_key_value=_matrix(tensors, f"{prefix}.query_key_value", rows=None if every else rows),
        attention_output=_matrix(
            tensors, f"{prefix}.attention_output", columns=None if every else columns
        ),
        attention_norm=read_norm(tensors, f"{prefix}.attention_norm"),
        up=_matrix(tensors, f"{prefix}.up"),
        down=_matrix(tensors, f"{prefix}.down"),
        output_norm=read_norm(tensors, f"{prefix}.output_norm"),
    )


def audible_heads(config: ReaderConfig, group: int) -> tuple[int, ...]:
    """The heads of a group, by their place, whose span is not 0 in every layer of the group."""
    layers = [each for each in range(1, config.layers + 1) if config.group_of(each) == group]
    places = range(len(config.heads_of(group)))
    return tuple(head for head in places if any(config.spans_of(each)[head] for each in layers))


def read_norm(tensors: ModelTensors, name: str) -> NormVectors:
    """A normalisation's weight and bias, `[H]` each; raises `ModelFolderError`."""
    return NormVectors(tensors.read(f"{name}.weight"), tensors.read(f"{name}.bias"))


def read_exit(tensors: ModelTensors, layer: int) -> Matrix:
    """The exit behind a layer as one matrix `[3, H]`: start, end, certainty."""
    parts = [f"exits.{layer - 1}.{head}" for head in ("span", "certainty")]
    return Matrix(
        np.concatenate([tensors.read(f"{part}.weight") for part in parts]),
        np.concatenate([tensors.read(f"{part}.bias") for part in parts]),
    )


class TokenTable:
    """Word, position and type embeddings; words stay packed, and only those of a text are decoded.

    For 30,522 words of 384 that is 8 MB instead of 47.
    """

    def __init__(self, tensors: ModelTensors) -> None:
        """Read the tables; raises `ModelFolderError`."""
        self._words = tensors.stored("embeddings.word.weight") or StoredTensor(
            "float32", tensors.read("embeddings.word.weight")
        )
        self._positions = tensors.read("embeddings.position.weight")  # [max_positions, E]
        self._types = tensors.read("embeddings.token_type.weight")  # [2, E]

    def sums(
        self, token_ids: Sequence[Sequence[int]], question_tokens: Sequence[int]
    ) -> FloatArray:
        """`[R, E]`: word + position + type of every token of every window, not yet normalised."""
        words = np.concatenate([np.asarray(ids, np.int64) for ids in token_ids])
        summed = self._words.decode_rows(words)
        first = 0
        for ids, heads in zip(token_ids, question_tokens, strict=True):
            last = first + len(ids)
            summed[first:last] += self._positions[: len(ids)]
            summed[first : first + heads] += self._types[0]
            summed[first + heads : last] += self._types[1]
            first = last
        return summed


def _matrix(
    tensors: ModelTensors,
    name: str,
    *,
    rows: list[int] | None = None,
    columns: list[int] | None = None,
) -> Matrix:
    bias = tensors.read(f"{name}.bias")
    stored = tensors.stored(f"{name}.weight")
    if stored is None or stored.scales is None or stored.encoding != "int8":
        weight = _cut(tensors.read(f"{name}.weight"), rows, columns)
        return Matrix(weight, bias if rows is None else bias[rows])
    scales = stored.scales[:, 0].astype(np.float32)
    codes = _cut(stored.codes, rows, columns)
    if rows is not None:
        scales, bias = scales[rows], bias[rows]
    return Matrix((codes, scales), bias)


def _cut(weight: NDArray[Kind], rows: list[int] | None, columns: list[int] | None) -> NDArray[Kind]:
    if rows is not None:
        weight = weight[rows]
    return weight if columns is None else np.ascontiguousarray(weight[:, columns])
