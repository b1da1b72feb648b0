"""The state: what is known of a batch of windows after some layer.

In: windows' hidden states, unpadded. Out: one padded batch that layers run on, and back.
Neighbours: `model` makes and runs it, `state_codecs` turns a row into bytes.

Shapes: B windows, T tokens of the longest, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reader.errors import StateShapeError


@dataclass(frozen=True)
class StateBatch:
    """B windows after the same layer. Rows of padding hold no meaning."""

    hidden: Tensor  # [B, T, H] float
    lengths: Tensor  # [B] int64, tokens of each window
    question_tokens: Tensor  # [B] int64, leading [CLS] question [SEP]

    def __len__(self) -> int:
        return self.hidden.shape[0]

    @property
    def valid(self) -> Tensor | None:
        """`[B, T]` bool, false on padding; None when there is no padding."""
        tokens = self.hidden.shape[1]
        if bool((self.lengths == tokens).all()):
            return None
        return torch.arange(tokens, device=self.lengths.device) < self.lengths.unsqueeze(1)

    @property
    def answerable(self) -> Tensor:
        """`[B, T]` bool: where an answer can start or end, token 0 (no answer) and the passage."""
        position = torch.arange(self.hidden.shape[1], device=self.lengths.device).unsqueeze(0)
        passage = (position >= self.question_tokens.unsqueeze(1)) & (
            position < self.lengths.unsqueeze(1) - 1
        )
        return passage | (position == 0)

    def select(self, rows: Sequence[int]) -> StateBatch:
        """Some rows, in the given order, padded no further than their longest."""
        chosen = torch.as_tensor(list(rows), dtype=torch.int64, device=self.lengths.device)
        lengths = self.lengths[chosen]
        tokens = int(lengths.max()) if len(chosen) else 0
        return StateBatch(self.hidden[chosen, :tokens], lengths, self.question_tokens[chosen])

    def state(self, row: int) -> Tensor:
        """One window's state `[T_row, H]`, unpadded."""
        return self.hidden[row, : int(self.lengths[row])]

    def with_hidden(self, hidden: Tensor) -> StateBatch:
        """The same windows after another layer."""
        return StateBatch(hidden, self.lengths, self.question_tokens)

    @classmethod
    def of(cls, states: Sequence[Tensor], question_tokens: Sequence[int]) -> StateBatch:
        """Pad states `[T_i, H]` into a batch; raises `StateShapeError` for none or unequal H."""
        if not states or len(states) != len(question_tokens):
            raise StateShapeError(
                f"{len(states)} states with {len(question_tokens)} question lengths; "
                "give as many of each, at least one"
            )
        widths = {state.shape[-1] for state in states}
        if len(widths) != 1 or any(state.dim() != 2 for state in states):
            raise StateShapeError(f"states of widths {sorted(widths)} cannot share a batch")
        for state, head in zip(states, question_tokens, strict=True):
            if not 2 <= head < state.shape[0]:
                raise StateShapeError(
                    f"a state of {state.shape[0]} tokens cannot have {head} question tokens"
                )
        return cls(
            torch.nn.utils.rnn.pad_sequence(list(states), batch_first=True),
            torch.tensor([state.shape[0] for state in states]),
            torch.tensor(list(question_tokens)),
        )
