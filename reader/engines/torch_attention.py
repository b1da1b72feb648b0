"""Attention in PyTorch over rows without padding, every window over itself alone.

In: fused queries, keys and values of all windows of a batch. Out: the heads' outputs. Neighbours:
`torch_engine` calls this between two linear maps, `visibility` says what a limited head sees.

Shapes: R rows of the batch, R' with those that fill it up, T tokens of one window, B windows,
N heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from reader.engines.visibility import visible_tokens
from reader.states import StateBatch

Attention = Callable[[Tensor, StateBatch, Sequence[Sequence[int]]], Tensor]
"""`(fused [R', 3, N, D], batch, spans of the N heads for each window)` to `[R', N * D]` float32."""

LARGE = 1e30
TOKEN_STEP = 16
"""A window's scores are filled up to a multiple of this, so that oneDNN compiles few shapes."""


def attend_float32(fused: Tensor, batch: StateBatch, spans: Sequence[Sequence[int]]) -> Tensor:
    """Window by window, by torch's own kernel; see `Attention`."""
    return _window_by_window(fused, batch, spans, _attend_float32)


def attend_bfloat16(fused: Tensor, batch: StateBatch, spans: Sequence[Sequence[int]]) -> Tensor:
    """Window by window with bfloat16 products, written out; see `Attention`.

    Where a processor multiplies bfloat16, this takes two thirds of the time of `attend_float32`
    (torch's own kernel in bfloat16 takes longer than in float32).
    """
    return _window_by_window(fused, batch, spans, _attend_bfloat16)


def attend_padded(fused: Tensor, batch: StateBatch, spans: Sequence[Sequence[int]]) -> Tensor:
    """All windows in one call, padded to the longest: for a GPU; see `Attention`."""
    lengths = torch.tensor(batch.lengths)
    place = torch.arange(int(lengths.max()))
    valid = (place < lengths[:, None]).to(fused.device, non_blocking=True)  # [B, T]
    padded = fused.new_zeros((*valid.shape, *fused.shape[1:]))  # [B, T, 3, N, D]
    padded[valid] = fused[: batch.token_count]
    query, key, value = padded.permute(2, 0, 3, 1, 4)  # each [B, N, T, D]
    seen = _padded_mask(batch, spans, len(place))
    visible = valid[:, None, None] if seen is None else seen.to(fused.device, non_blocking=True)
    attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    mixed = fused.new_zeros((len(fused), *fused.shape[2:]))  # [R', N, D]
    mixed[: batch.token_count] = attended.transpose(1, 2)[valid]
    _silence(mixed, batch, spans)
    return mixed.flatten(1).float()


def _window_by_window(
    fused: Tensor,
    batch: StateBatch,
    spans: Sequence[Sequence[int]],
    attend: Callable[[Tensor, Tensor | None], Tensor],
) -> Tensor:
    mixed = fused.new_zeros((len(fused), *fused.shape[2:]))  # [R', N, D]
    for window, (first, last) in enumerate(pairwise(batch.boundaries)):
        heads, limits = _seeing_heads(spans[window])
        if limits:
            visible = visible_tokens(limits, last - first, batch.question_tokens[window])
            mask = None if visible is None else torch.from_numpy(visible)  # [heads, T, T]
            mixed[first:last, heads] = attend(fused[first:last, :, heads], mask).to(mixed.dtype)
    return mixed.flatten(1)


def _seeing_heads(spans: Sequence[int]) -> tuple[slice | list[int], Sequence[int]]:
    """The heads that are not silent, and their spans."""
    if all(spans):
        return slice(None), spans
    seeing = [head for head, span in enumerate(spans) if span]
    return seeing, [spans[head] for head in seeing]


def _attend_float32(fused: Tensor, visible: Tensor | None) -> Tensor:
    """`[T, 3, N, D]` to `[T, N, D]`."""
    query, key, value = fused.permute(1, 2, 0, 3).unsqueeze(1)  # each [1, N, T, D]
    bias = None if visible is None else _hidden(visible, fused.dtype)[None]
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return mixed[0].transpose(0, 1)


def _attend_bfloat16(fused: Tensor, visible: Tensor | None) -> Tensor:
    """`[T, 3, N, D]` float32 to `[T, N, D]` bfloat16."""
    tokens, _, heads, size = fused.shape
    filled = -(-tokens // TOKEN_STEP) * TOKEN_STEP
    parts = fused.new_zeros((3, heads, filled, size), dtype=torch.bfloat16)
    parts[:, :, :tokens] = fused.permute(1, 2, 0, 3)
    query, key, value = parts  # each [N, T', D]
    scores = torch.bmm(query.mul_(1 / math.sqrt(size)), key.transpose(1, 2))  # [N, T', T']
    scores[:, :, tokens:] = -torch.inf
    if visible is not None:
        scores[:, :tokens, :tokens].add_(_hidden(visible, scores.dtype))
    return torch.bmm(torch.softmax(scores, dim=-1), value)[:, :tokens].transpose(0, 1)


def _hidden(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to scores: 0 where `visible` `[N, T, T]`, else so little that softmax gives 0.

    By bits: of a number's pattern either all stay or none. Filling by a mask of bools, or turning
    them into numbers, takes ten to fifty times as long.
    """
    whole = torch.int32 if dtype == torch.float32 else torch.int16
    pattern = torch.tensor(-LARGE, dtype=dtype).view(whole)
    return (visible.view(torch.int8).to(whole) - 1).bitwise_and_(pattern).view(dtype)


def _padded_mask(batch: StateBatch, spans: Sequence[Sequence[int]], tokens: int) -> Tensor | None:
    """`[B, N, T, T]`, or None when no head is limited. Rows of padding see token 0."""
    visible = [
        visible_tokens(each, batch.lengths[window], batch.question_tokens[window])
        for window, each in enumerate(spans)
    ]
    if all(each is None for each in visible):
        return None
    mask = torch.zeros((len(batch), len(spans[0]), tokens, tokens), dtype=torch.bool)
    for window, each in enumerate(visible):
        length = batch.lengths[window]
        mask[window, :, :length, :length] = True if each is None else torch.from_numpy(each)
        mask[window, :, length:, 0] = True
    return mask


def _silence(mixed: Tensor, batch: StateBatch, spans: Sequence[Sequence[int]]) -> None:
    """Heads of span 0 contribute nothing to `[R', N, D]`."""
    for window, (first, last) in enumerate(pairwise(batch.boundaries)):
        silent = [head for head, span in enumerate(spans[window]) if not span]
        if silent:
            mixed[first:last, silent] = 0
