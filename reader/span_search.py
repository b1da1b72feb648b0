"""The search for the best pairs of a start and an end token, for many windows at once.

In: start and end logits. Out: the best pairs with their scores. Neighbours: `spans` makes
candidates of them, `exits` asks only for the best score.

Shapes: B windows, T tokens, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reader.arrays import FloatArray, IntArray

MAX_SPANS = 20
MAX_ANSWER_TOKENS = 30


@dataclass(frozen=True)
class TokenPairs:
    """The best pairs of each window, best first; scores are -inf where there are fewer."""

    scores: FloatArray  # [B, C] start logit + end logit
    start_tokens: IntArray  # [B, C]
    end_tokens: IntArray  # [B, C], inclusive
    start_logits: FloatArray  # [B, C]
    end_logits: FloatArray  # [B, C]


def find_best_pairs(
    start_logits: FloatArray, end_logits: FloatArray, max_spans: int = MAX_SPANS
) -> TokenPairs:
    """Pairs of the `max_spans` best starts and ends, none longer than `MAX_ANSWER_TOKENS`.

    Logits `[B, T]` float32 are -inf where no answer can be; token 0, the null span, is no pair.
    Among equals the earlier token goes first.
    """
    count = min(max_spans, start_logits.shape[1] - 1)
    start_places = _largest(start_logits[:, 1:], count) + 1  # [B, C]
    end_places = _largest(end_logits[:, 1:], count) + 1
    starts = np.take_along_axis(start_logits, start_places, 1)  # [B, C]
    ends = np.take_along_axis(end_logits, end_places, 1)
    length = end_places[:, None, :] - start_places[:, :, None]  # [B, C, C]
    allowed = (length >= 0) & (length < MAX_ANSWER_TOKENS)
    scores = np.where(allowed, starts[:, :, None] + ends[:, None, :], -np.inf)
    flat = scores.reshape(len(scores), count * count).astype(np.float32)
    places = _largest(flat, min(max_spans, count * count))  # [B, C]
    first, last = places // count, places % count
    return TokenPairs(
        scores=np.take_along_axis(flat, places, 1),
        start_tokens=np.take_along_axis(start_places, first, 1),
        end_tokens=np.take_along_axis(end_places, last, 1),
        start_logits=np.take_along_axis(starts, first, 1),
        end_logits=np.take_along_axis(ends, last, 1),
    )


def _largest(values: FloatArray, count: int) -> IntArray:
    """The places of the `count` largest of each row, largest first, earlier before later."""
    if count >= values.shape[1]:
        return np.argsort(-values, axis=1, kind="stable")
    # The stable sort of everything above the count-th largest; far fewer than a whole row.
    border = -np.partition(-values, count - 1, axis=1)[:, count - 1]  # [B]
    places = np.empty((len(values), count), dtype=np.int64)
    for row, limit in enumerate(border):
        # "Not smaller" keeps rows of NaN whole: a broken state fails later, by its name.
        candidates = np.flatnonzero(~(values[row] < limit))
        order = np.argsort(-values[row, candidates], kind="stable")[:count]
        places[row] = candidates[order]
    return places
