"""The state: what is known of a batch of windows after some layer.

In: windows' hidden states. Out: one batch without padding, the rows of all windows next to each
other, as an engine runs layers on it. Neighbours: `engines` make and run it, `state_codecs` turns
one window's state into bytes.

Shapes: B windows, T_i tokens of window i, T of the longest, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from reader.arrays import BoolArray, FloatArray
from reader.errors import StateShapeError


@dataclass(frozen=True)
class StateBatch:
    """B windows, each after some layer; what it is, the owner knows."""

    rows: Any  # [sum of T_i, H], an array of the engine's own kind
    lengths: tuple[int, ...]  # T_i
    question_tokens: tuple[int, ...]  # leading [CLS] question [SEP] of each window

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def token_count(self) -> int:
        """Rows of the batch."""
        return sum(self.lengths)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """B + 1 offsets: window i has the rows `boundaries[i] .. boundaries[i + 1] - 1`."""
        return (0, *accumulate(self.lengths))

    @property
    def answerable(self) -> BoolArray:
        """`[B, T]`: where an answer can start or end, token 0 (no answer) and the passage."""
        position = np.arange(max(self.lengths))[None, :]
        heads = np.array(self.question_tokens)[:, None]
        passage = (position >= heads) & (position < np.array(self.lengths)[:, None] - 1)
        answerable: BoolArray = passage | (position == 0)
        return answerable

    def with_rows(self, rows: Any) -> StateBatch:  # the engine's own kind
        """The same windows after another layer."""
        return StateBatch(rows, self.lengths, self.question_tokens)


def check_states(states: Sequence[FloatArray], question_tokens: Sequence[int]) -> None:
    """Raise `StateShapeError` unless states `[T_i, H]` and question lengths can make a batch."""
    if not states or len(states) != len(question_tokens):
        raise StateShapeError(
            f"{len(states)} states with {len(question_tokens)} question lengths; "
            "give as many of each, at least one"
        )
    widths = {state.shape[-1] for state in states}
    if len(widths) != 1 or any(state.ndim != 2 for state in states):
        raise StateShapeError(f"states of widths {sorted(widths)} cannot share a batch")
    for state, head in zip(states, question_tokens, strict=True):
        if not 2 <= head < state.shape[0]:
            raise StateShapeError(
                f"a state of {state.shape[0]} tokens cannot have {head} question tokens"
            )
