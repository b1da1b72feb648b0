"""The order of training: which windows make which batch in which epoch.

In: the windows of every question, with their weights. Out: batches of nearly equal
length, the same ones in the same order for the same seed, so that a resumed run goes on exactly.
Neighbours: `features` makes the windows, `trainer` consumes the batches.

Shapes: B windows, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cloud_worker.training.features import TrainingWindow

SHUFFLE_BATCHES = 64


@dataclass(frozen=True)
class Batch:
    """Tensors of one training step."""

    token_ids: Tensor  # [B, T] int64
    token_types: Tensor  # [B, T] int64, 0 for the question
    valid: Tensor  # [B, T] bool, false on padding
    question_tokens: Tensor  # [B] int64: leading tokens up to the passage
    answerable_positions: Tensor  # [B, T] bool: token 0 and passage tokens
    starts: Tensor  # [B] int64
    ends: Tensor  # [B] int64


@dataclass(frozen=True)
class EpochPlan:
    """The batches of one epoch as indexes into the windows."""

    batches: tuple[tuple[int, ...], ...]


def plan_epoch(
    windows: Sequence[TrainingWindow],
    *,
    epoch: int,
    seed: int,
    batch_windows: int,
    batch_tokens: int,
) -> EpochPlan:
    """Draw, shuffle and bucket one epoch.

    A window of weight w appears floor(w) times, and once more with the chance of the rest. Within
    `SHUFFLE_BATCHES` batches windows are sorted by length; a batch has at most `batch_windows`
    windows and `batch_tokens` tokens, padding included.
    """
    chance = random.Random(f"{seed}:{epoch}")  # noqa: S311  # no secret hangs on it
    drawn: list[int] = []
    for index, window in enumerate(windows):
        whole = int(window.weight)
        times = whole + (chance.random() < window.weight - whole)
        drawn.extend([index] * times)
    chance.shuffle(drawn)
    batches: list[tuple[int, ...]] = []
    block = SHUFFLE_BATCHES * batch_windows
    for first in range(0, len(drawn), block):
        alike = sorted(drawn[first : first + block], key=lambda index: len(windows[index]))
        part = _fill(alike, windows, batch_windows, batch_tokens)
        chance.shuffle(part)
        batches.extend(part)
    return EpochPlan(tuple(batches))


def collate(windows: Sequence[TrainingWindow], *, pad_token_id: int) -> Batch:
    """Pad windows to the longest; raises `ValueError` for none."""
    tokens = max(len(window) for window in windows)
    token_ids = torch.full((len(windows), tokens), pad_token_id)  # [B, T]
    lengths = torch.tensor([len(window) for window in windows])
    heads = torch.tensor([window.question_tokens for window in windows])
    for row, window in enumerate(windows):
        token_ids[row, : len(window)] = torch.tensor(window.token_ids)
    position = torch.arange(tokens).unsqueeze(0)  # [1, T]
    valid = position < lengths.unsqueeze(1)
    passage = (position >= heads.unsqueeze(1)) & (position < lengths.unsqueeze(1) - 1)
    return Batch(
        token_ids=token_ids,
        token_types=((position >= heads.unsqueeze(1)) & valid).long(),
        valid=valid,
        question_tokens=heads,
        answerable_positions=passage | (position == 0),
        starts=torch.tensor([window.start for window in windows]),
        ends=torch.tensor([window.end for window in windows]),
    )


def _fill(
    alike: Sequence[int],
    windows: Sequence[TrainingWindow],
    batch_windows: int,
    batch_tokens: int,
) -> list[tuple[int, ...]]:
    batches: list[tuple[int, ...]] = []
    current: list[int] = []
    for index in alike:  # ascending length: the newest is the longest
        grown = (len(current) + 1) * len(windows[index])
        if current and (len(current) == batch_windows or grown > batch_tokens):
            batches.append(tuple(current))
            current = []
        current.append(index)
    if current:
        batches.append(tuple(current))
    return batches
