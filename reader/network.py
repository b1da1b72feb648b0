"""ALBERT with an exit head after every layer (Lan et al. 2019; exits as in DeeBERT, 2020).

In: token ids, or the state after any layer. Out: the state after any later layer, and the exit's
start and end logits there. Neighbours: `weights` fills it, `model` drives it, training trains it.

A compressed network has fewer heads or a narrower feed-forward block in some groups, and heads
that see only so far (adaptive attention span, Sukhbaatar et al. 2019); `ReaderConfig` says which.

Shapes: B windows, T tokens, H hidden, E embedding, N heads left, D head size, I inner width left.
Layers are numbered 1..layers; "the state after layer 0" is the embedding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from reader.config import ReaderConfig

HIDDEN = -1e4  # added to the score of what must not be seen; finite, so that bf16 stays exact


@dataclass(frozen=True)
class HeadLimits:
    """How far the heads of a layer see, and how much each of them counts.

    `bias` [N, T, T] is added to the scores wherever neither token belongs to the question (0 shows,
    `HIDDEN` hides); `scale` [N] multiplies the heads' outputs.
    """

    bias: Tensor
    scale: Tensor


def hard_limits(spans: Sequence[int], tokens: int, *, device: torch.device) -> HeadLimits:
    """The limits of whole-number spans: keys further than the span are hidden, span 0 is silent."""
    longest = torch.tensor(spans, device=device)  # [N]
    far = token_distances(tokens, device=device) > longest[:, None, None]  # [N, T, T]
    return HeadLimits(bias=far * HIDDEN, scale=(longest > 0).float())


def token_distances(tokens: int, *, device: torch.device) -> Tensor:
    """How far each key is from each query, `[T, T]` int64."""
    position = torch.arange(tokens, device=device)
    return (position.unsqueeze(1) - position.unsqueeze(0)).abs()


class AlbertReader(nn.Module):
    """The network alone: tensors in, tensors out; no text, no settings."""

    def __init__(self, config: ReaderConfig, *, dropout: float = 0.0) -> None:
        """`dropout` acts on embeddings and sub-layer outputs while training (0 <= p < 1)."""
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config, dropout)
        self.groups = nn.ModuleList(Layer(config, group, dropout) for group in range(config.groups))
        self.exits = nn.ModuleList(ExitHead(config) for _ in range(config.layers))

    def embed(self, token_ids: Tensor, token_types: Tensor) -> Tensor:
        """Token ids and types `[B, T]` int64 to the state after layer 0, `[B, T, H]`."""
        embedded: Tensor = self.embeddings(token_ids, token_types)
        return embedded

    def run_layer(
        self,
        layer: int,
        hidden: Tensor,
        valid: Tensor | None,
        question_tokens: Tensor | None = None,
        *,
        limits: HeadLimits | None = None,
    ) -> Tensor:
        """One layer: state `[B, T, H]` after `layer - 1` to the state after `layer`.

        `valid` is `[B, T]` bool, false on padding; None when no token is padding.
        `question_tokens` `[B]` is the number of leading tokens that every head sees and that see
        all; needed when a span is limited. `limits` stand in for the configuration's spans
        (training learns them).
        """
        if limits is None and any(self._is_limited(span) for span in self.config.spans_of(layer)):
            spans = self.config.spans_of(layer)
            limits = hard_limits(spans, hidden.shape[1], device=hidden.device)
        bias = attention_bias(hidden, valid, question_tokens, limits)
        scale = None if limits is None else limits.scale
        after: Tensor = self.layer(layer)(hidden, bias, scale)
        return after

    def run(
        self,
        hidden: Tensor,
        valid: Tensor | None,
        from_layer: int,
        to_layer: int,
        question_tokens: Tensor | None = None,
    ) -> Tensor:
        """Layers `from_layer + 1 .. to_layer` over the state `[B, T, H]` after `from_layer`.

        `valid` and `question_tokens` as for `run_layer`. Raises ValueError for layers that there
        are not.
        """
        if not 0 <= from_layer <= to_layer <= self.config.layers:
            raise ValueError(
                f"cannot run from layer {from_layer} to {to_layer}; "
                f"this reader has layers 0..{self.config.layers}"
            )
        for layer in range(from_layer + 1, to_layer + 1):
            hidden = self.run_layer(layer, hidden, valid, question_tokens)
        return hidden

    def _is_limited(self, span: int) -> bool:
        return span < self.config.max_positions

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
        return self.group(self.config.group_of(number))

    def group(self, number: int) -> Layer:
        """The parameters of a parameter group (0-based)."""
        return cast(Layer, self.groups[number])

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
        """Ids and types `[B, T]` to the state after layer 0, `[B, T, H]`."""
        positions = self.position.weight[: token_ids.shape[1]]  # [T, E]
        summed = self.word(token_ids) + positions + self.token_type(token_types)  # [B, T, E]
        projected: Tensor = self.project(self.dropout(self.norm(summed)))  # [B, T, H]
        return projected


class Layer(nn.Module):
    """One post-norm transformer layer; every layer of its group calls this same object.

    Without heads the attention gives its output's bias alone, and without inner units the
    feed-forward block does, as the full layer with those weights at zero would.
    """

    def __init__(self, config: ReaderConfig, group: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_size = len(config.heads_of(group)), config.head_size
        hidden, inner = config.hidden_size, config.inner_of(group)
        width = self.heads * self.head_size
        self.query_key_value = _linear(hidden, 3 * width)
        self.attention_output = _linear(width, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.up = _linear(hidden, inner)
        self.down = _linear(inner, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.activation = _activation(config.hidden_act)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
        """State `[B, T, H]`, score bias `[B, 1 or N, 1 or T, T]` and head scale `[N]` to state."""
        attended = self.dropout(self.attention_output(self._attend(hidden, bias, scale)))
        hidden = self.attention_norm(hidden + attended)  # [B, T, H]
        inner = self.activation(self.up(hidden))  # [B, T, I]
        after: Tensor = self.output_norm(hidden + self.dropout(self.down(inner)))  # [B, T, H]
        return after

    def _attend(self, hidden: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
        """Scaled dot-product attention, `[B, T, H]` to `[B, T, N * D]`."""
        batch, tokens, _ = hidden.shape
        width = self.heads * self.head_size
        if not self.heads:
            return cast(Tensor, self.query_key_value(hidden))  # [B, T, 0]
        split = self.query_key_value(hidden).view(batch, tokens, 3, self.heads, self.head_size)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each [B, N, T, D]
        bias = None if bias is None else bias.to(query.dtype)
        if torch.is_grad_enabled():
            mixed = _attend_for_training(query, key, value, bias)
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        if scale is not None:
            mixed = mixed * scale.to(mixed.dtype)[:, None, None]
        return mixed.transpose(1, 2).reshape(batch, tokens, width)


class ExitHead(nn.Module):
    """What an exit adds to a layer: a span head, and a guess whether that span is right."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.span = nn.Linear(config.hidden_size, 2)
        self.certainty = nn.Linear(config.hidden_size, 1)
        nn.init.zeros_(self.certainty.weight)
        nn.init.zeros_(self.certainty.bias)


def attention_bias(
    hidden: Tensor,
    valid: Tensor | None,
    question_tokens: Tensor | None,
    limits: HeadLimits | None,
) -> Tensor | None:
    """What is added to the scores, `[B, 1 or N, 1 or T, T]`; None when every token sees all.

    Raises `ValueError` when heads are limited and the questions' lengths are not given.
    """
    if limits is None:
        if valid is None:
            return None
        return ((~valid) * HIDDEN)[:, None, None, :]
    if question_tokens is None:
        raise ValueError("a head's span is limited, so question_tokens [B] must be given")
    batch, tokens, _ = hidden.shape
    asked = torch.arange(tokens, device=hidden.device) < question_tokens[:, None]  # [B, T]
    whatever_the_span = asked[:, None, :, None] | asked[:, None, None, :]  # [B, 1, T, T]
    value = hidden.new_zeros((batch, 1, 1, tokens))
    if valid is not None:
        padding = (~valid)[:, None, None, :]
        whatever_the_span = whatever_the_span | padding
        value = padding * HIDDEN
    dtype = (
        torch.get_autocast_dtype(hidden.device.type)
        if torch.is_autocast_enabled(hidden.device.type)
        else hidden.dtype
    )
    return torch.where(whatever_the_span, value.to(dtype), limits.bias.to(dtype))  # [B, N, T, T]


def _attend_for_training(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """The same attention written out: on a CPU its backward pass takes a third of the time of
    `scaled_dot_product_attention`'s (32 x 184 tokens, bf16: 29 against 86 ms a layer)."""
    batch, heads, tokens, head_size = query.shape
    flat = (batch * heads, tokens, head_size)
    if bias is None:
        bias = query.new_zeros((batch, 1, 1, tokens))
    bias = bias.expand(batch, heads, tokens, tokens).reshape(batch * heads, tokens, tokens)
    scores = torch.baddbmm(  # [B*N, T, T]
        bias, query.reshape(flat), key.reshape(flat).transpose(1, 2), alpha=1 / math.sqrt(head_size)
    )
    return torch.bmm(scores.softmax(-1).to(value.dtype), value.reshape(flat)).view(query.shape)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear map of which one side may be empty, of which torch would warn."""
    with warnings.catch_warnings():
        if not (inputs and outputs):
            warnings.simplefilter("ignore", UserWarning)
        return nn.Linear(inputs, outputs)


def _activation(name: str) -> nn.Module:
    if name == "relu":
        return nn.ReLU()
    return nn.GELU(approximate="tanh" if name == "gelu_new" else "none")
