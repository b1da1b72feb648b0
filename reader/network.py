"""ALBERT with an exit head after every layer (Lan et al. 2019; exits as in DeeBERT, 2020).

In: token ids, or the state after any layer. Out: the state after any later layer, and the exit's
start and end logits there. Neighbours: `weights` fills it, `model` drives it, training trains it.

Shapes: B windows, T tokens, H hidden, E embedding, N heads, D head size.
Layers are numbered 1..layers; "the state after layer 0" is the embedding.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from reader.config import ReaderConfig


class AlbertReader(nn.Module):
    """The network alone: tensors in, tensors out; no text, no settings."""

    def __init__(self, config: ReaderConfig, *, dropout: float = 0.0) -> None:
        """`dropout` acts on embeddings and sub-layer outputs while training (0 <= p < 1)."""
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config, dropout)
        self.groups = nn.ModuleList(Layer(config, dropout) for _ in range(config.groups))
        self.exits = nn.ModuleList(ExitHead(config) for _ in range(config.layers))

    def embed(self, token_ids: Tensor, token_types: Tensor) -> Tensor:
        """Token ids and types `[B, T]` int64 to the state after layer 0, `[B, T, H]`."""
        embedded: Tensor = self.embeddings(token_ids, token_types)
        return embedded

    def run_layer(self, layer: int, hidden: Tensor, valid: Tensor | None) -> Tensor:
        """One layer: state `[B, T, H]` after `layer - 1` to the state after `layer`.

        `valid` is `[B, T]` bool, false on padding; None when no token is padding.
        """
        after: Tensor = self.layer(layer)(hidden, valid)
        return after

    def run(self, hidden: Tensor, valid: Tensor | None, from_layer: int, to_layer: int) -> Tensor:
        """Layers `from_layer + 1 .. to_layer` over the state after `from_layer`."""
        if not 0 <= from_layer <= to_layer <= self.config.layers:
            raise ValueError(
                f"cannot run from layer {from_layer} to {to_layer}; "
                f"this reader has layers 0..{self.config.layers}"
            )
        for layer in range(from_layer + 1, to_layer + 1):
            hidden = self.run_layer(layer, hidden, valid)
        return hidden

    def exit_logits(self, layer: int, hidden: Tensor) -> Tensor:
        """The exit behind `layer`: state `[B, T, H]` to start and end logits `[B, T, 2]`."""
        logits: Tensor = self.exit_head(layer).span(hidden)
        return logits

    def certainty_logit(self, layer: int, hidden: Tensor) -> Tensor:
        """The learned exit's logit that this exit is right, `[B]` (BERxiT, Xin et al. 2021)."""
        logit: Tensor = self.exit_head(layer).certainty(hidden[:, 0])  # [B, 1]
        return logit.squeeze(-1)

    def layer(self, number: int) -> Layer:
        """The parameters of layer `number` (1-based), shared with the others of its group."""
        return cast(Layer, self.groups[self.config.group_of(number)])

    def exit_head(self, layer: int) -> ExitHead:
        """The exit behind `layer` (1-based)."""
        return cast(ExitHead, self.exits[layer - 1])


class Embeddings(nn.Module):
    """Word, position and type embeddings of width E, normalised, projected to H."""

    def __init__(self, config: ReaderConfig, dropout: float) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.embedding_size)
        self.position = nn.Embedding(config.max_positions, config.embedding_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.embedding_size)
        self.norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(config.embedding_size, config.hidden_size)

    def forward(self, token_ids: Tensor, token_types: Tensor) -> Tensor:
        positions = self.position.weight[: token_ids.shape[1]]  # [T, E]
        summed = self.word(token_ids) + positions + self.token_type(token_types)  # [B, T, E]
        projected: Tensor = self.project(self.dropout(self.norm(summed)))  # [B, T, H]
        return projected


class Layer(nn.Module):
    """One post-norm transformer layer; every layer of its group calls this same object."""

    def __init__(self, config: ReaderConfig, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_size = config.heads, config.head_size
        hidden, inner = config.hidden_size, config.intermediate_size
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.attention_output = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.up = nn.Linear(hidden, inner)
        self.down = nn.Linear(inner, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.activation = _activation(config.hidden_act)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, valid: Tensor | None) -> Tensor:
        attended = self.dropout(self.attention_output(self._attend(hidden, valid)))
        hidden = self.attention_norm(hidden + attended)  # [B, T, H]
        inner = self.activation(self.up(hidden))  # [B, T, 4H]
        after: Tensor = self.output_norm(hidden + self.dropout(self.down(inner)))  # [B, T, H]
        return after

    def _attend(self, hidden: Tensor, valid: Tensor | None) -> Tensor:
        """Scaled dot-product attention, `[B, T, H]` to `[B, T, H]`."""
        batch, tokens, width = hidden.shape
        split = self.query_key_value(hidden).view(batch, tokens, 3, self.heads, self.head_size)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each [B, N, T, D]
        if torch.is_grad_enabled():
            mixed = _attend_for_training(query, key, value, valid)
        else:
            mask = None if valid is None else valid[:, None, None, :]  # [B, 1, 1, T]
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return mixed.transpose(1, 2).reshape(batch, tokens, width)


class ExitHead(nn.Module):
    """What an exit adds to a layer: a span head, and a guess whether that span is right."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.span = nn.Linear(config.hidden_size, 2)
        self.certainty = nn.Linear(config.hidden_size, 1)
        nn.init.zeros_(self.certainty.weight)
        nn.init.zeros_(self.certainty.bias)


def _attend_for_training(query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None) -> Tensor:
    """The same attention written out: on a CPU its backward pass takes a third of the time of
    `scaled_dot_product_attention`'s (32 x 184 tokens, bf16: 29 against 86 ms a layer)."""
    batch, heads, tokens, head_size = query.shape
    flat = (batch * heads, tokens, head_size)
    bias = query.new_zeros((batch, 1, 1, tokens))
    if valid is not None:
        bias = bias.masked_fill(~valid[:, None, None, :], -1e4)
    bias = bias.expand(batch, heads, tokens, tokens).reshape(batch * heads, tokens, tokens)
    scores = torch.baddbmm(  # [B*N, T, T]
        bias, query.reshape(flat), key.reshape(flat).transpose(1, 2), alpha=1 / math.sqrt(head_size)
    )
    return torch.bmm(scores.softmax(-1).to(value.dtype), value.reshape(flat)).view(query.shape)


def _activation(name: str) -> nn.Module:
    if name == "relu":
        return nn.ReLU()
    return nn.GELU(approximate="tanh" if name == "gelu_new" else "none")
