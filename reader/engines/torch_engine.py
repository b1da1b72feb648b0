"""The reader's layers in PyTorch, over rows without padding.

In: token ids or states. Out: states and exit logits. Neighbours: `group_weights` reads the tensors,
`torch_linear` and `torch_attention` compute; `network` is the same mathematics as a module that
can be trained, and tests hold the two together.

Shapes: R rows (tokens of all windows of a batch), H hidden, N heads left in the group, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from reader.arrays import FloatArray
from reader.engines.engine import EngineChoice, ExitScores, check_layers, check_one_group
from reader.engines.group_weights import (
    Matrix,
    NormVectors,
    TokenTable,
    read_exit,
    read_group,
    read_norm,
)
from reader.engines.torch_attention import (
    Attention,
    attend_bfloat16,
    attend_float32,
    attend_padded,
)
from reader.engines.torch_linear import Linear, PlainLinear, can_prepack, make_linear
from reader.states import StateBatch, check_states
from reader.weights import ModelTensors

ROW_STEP = 16
"""Rows of a batch are filled up to a multiple of this: oneDNN compiles every matrix shape once (0.5
to 1 ms each), and so there are few shapes."""


@dataclass(frozen=True)
class Norm:
    """Layer normalisation."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, rows: Tensor) -> Tensor:
        return functional.layer_norm(rows, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True)
class Group:
    """One parameter group: what its layers do."""

    heads: tuple[int, ...]  # places among `ReaderConfig.heads_of(group)`
    query_key_value: Linear
    attention_output: Linear
    attention_norm: Norm
    up: Linear  # with the activation
    down: Linear
    output_norm: Norm


class TorchEngine:
    """`Engine` on PyTorch; see `engine.Engine` for what it promises."""

    def __init__(self, tensors: ModelTensors, choice: EngineChoice) -> None:
        """Lay the weights out; raises `ModelFolderError`. Sets torch's threads in this process."""
        self.config, self.choice = tensors.config, choice
        self._device = torch.device(choice.device)
        torch.set_num_threads(choice.threads)
        self._tokens = TokenTable(tensors)
        self._embedding_norm = self._norm(read_norm(tensors, "embeddings.norm"))
        self._project = self._linear(Matrix.read(tensors, "embeddings.project"))
        self._groups = [self._group(tensors, group) for group in range(self.config.groups)]
        self._exits = [
            PlainLinear(read_exit(tensors, layer), torch.float32, self._device, "")
            for layer in range(1, self.config.layers + 1)
        ]
        self._attention = self._fastest_attention()

    @torch.inference_mode()
    def embed(
        self, token_ids: Sequence[Sequence[int]], question_tokens: Sequence[int]
    ) -> StateBatch:
        """See `Engine.embed`."""
        summed = self._to_device(self._tokens.sums(token_ids, question_tokens))  # [R, E]
        rows = self._project(self._embedding_norm(summed))  # [R, H]
        return StateBatch(rows, tuple(map(len, token_ids)), tuple(question_tokens))

    def run(self, batch: StateBatch, from_layer: int, to_layer: int) -> StateBatch:
        """See `Engine.run`."""
        check_layers(self.config, from_layer, to_layer)
        for layer in range(from_layer + 1, to_layer + 1):
            batch = self.run_mixed(batch, [layer] * len(batch))
        return batch

    @torch.inference_mode()
    def run_mixed(self, batch: StateBatch, layers: Sequence[int]) -> StateBatch:
        """See `Engine.run_mixed`."""
        group = self._groups[check_one_group(self.config, layers)]
        rows = _fill_up(batch.rows)  # [R', H]
        mixed = self._mix(group, rows, batch, layers)  # [R', N * D]
        rows = group.attention_norm(rows + group.attention_output(mixed))
        rows = group.output_norm(rows + group.down(group.up(rows)))
        return batch.with_rows(rows[: batch.token_count])

    @torch.inference_mode()
    def exit_scores(self, batch: StateBatch, layer: int) -> ExitScores:
        """See `Engine.exit_scores`."""
        scores = self._exits[layer - 1](batch.rows).cpu().numpy()  # [R, 3]
        return ExitScores(scores[:, :2], scores[list(batch.boundaries[:-1]), 2])

    @torch.inference_mode()
    def select(self, batch: StateBatch, windows: Sequence[int]) -> StateBatch:
        """See `Engine.select`."""
        bounds = batch.boundaries
        rows = torch.cat([batch.rows[bounds[window] : bounds[window + 1]] for window in windows])
        return StateBatch(
            rows,
            tuple(batch.lengths[window] for window in windows),
            tuple(batch.question_tokens[window] for window in windows),
        )

    @torch.inference_mode()
    def join(self, batches: Sequence[StateBatch]) -> StateBatch:
        """See `Engine.join`."""
        return StateBatch(
            torch.cat([batch.rows for batch in batches]),
            tuple(length for batch in batches for length in batch.lengths),
            tuple(head for batch in batches for head in batch.question_tokens),
        )

    def pack(self, states: Sequence[FloatArray], question_tokens: Sequence[int]) -> StateBatch:
        """See `Engine.pack`."""
        check_states(states, question_tokens)
        rows = self._to_device(np.concatenate(states).astype(np.float32, copy=False))
        return StateBatch(rows, tuple(map(len, states)), tuple(question_tokens))

    def states(self, batch: StateBatch) -> list[FloatArray]:
        """See `Engine.states`."""
        rows: FloatArray = batch.rows.cpu().numpy()
        return [rows[first:last].copy() for first, last in pairwise(batch.boundaries)]

    def _mix(self, group: Group, rows: Tensor, batch: StateBatch, layers: Sequence[int]) -> Tensor:
        """The heads' outputs for every window over itself: `[R', H]` to `[R', N * D]`."""
        if not group.heads:
            return rows.new_zeros((len(rows), 0))
        spans = {layer: self._spans(group, layer) for layer in set(layers)}
        fused = group.query_key_value(rows)
        fused = fused.view(-1, 3, len(group.heads), self.config.head_size)  # [R', 3, N, D]
        return self._attention(fused, batch, [spans[layer] for layer in layers])

    def _fastest_attention(self) -> Attention:
        if self._device.type != "cpu":
            return attend_padded
        if self.choice.precision == "fp32" or not can_prepack(torch.bfloat16):
            return attend_float32  # bfloat16 in software takes ten times as long
        return attend_bfloat16

    def _spans(self, group: Group, layer: int) -> list[int]:
        spans = self.config.spans_of(layer)
        return [spans[head] for head in group.heads]

    def _to_device(self, rows: FloatArray) -> Tensor:
        tensor = torch.from_numpy(rows)
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _linear(self, matrix: Matrix, activation: str = "") -> Linear:
        return make_linear(matrix, self.choice.precision, self._device, activation)

    def _norm(self, vectors: NormVectors) -> Norm:
        weight, bias = (torch.from_numpy(each).to(self._device) for each in vars(vectors).values())
        return Norm(weight, bias, self.config.layer_norm_eps)

    def _group(self, tensors: ModelTensors, number: int) -> Group:
        weights = read_group(tensors, number)
        return Group(
            heads=weights.heads,
            query_key_value=self._linear(weights.query_key_value),
            attention_output=self._linear(weights.attention_output),
            attention_norm=self._norm(weights.attention_norm),
            up=self._linear(weights.up, self.config.hidden_act),
            down=self._linear(weights.down),
            output_norm=self._norm(weights.output_norm),
        )


def _fill_up(rows: Tensor) -> Tensor:
    """`[R, H]` to `[R', H]`: rows of zeros behind it, up to a multiple of `ROW_STEP`."""
    return functional.pad(rows, (0, 0, 0, -len(rows) % ROW_STEP))
