"""The search for the best pairs of a start and an end token, for many windows at once.

In: start and end logits. Out: the best pairs with their scores. Neighbours: `spans` makes
candidates of them, `exits` asks only for the best score.

Shapes: B windows, T tokens, C candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_SPANS = 20
MAX_ANSWER_TOKENS = 30


@dataclass(frozen=True)
class TokenPairs:
    """The best pairs of each window, best first; scores are -inf where there are fewer."""

    scores: Tensor  # [B, C] start logit + end logit
    start_tokens: Tensor  # [B, C] int64
    end_tokens: Tensor  # [B, C] int64, inclusive
    start_logits: Tensor  # [B, C]
    end_logits: Tensor  # [B, C]


def find_best_pairs(
    start_logits: Tensor, end_logits: Tensor, max_spans: int = MAX_SPANS
) -> TokenPairs:
    """Pairs of the `max_spans` best starts and ends, none longer than `MAX_ANSWER_TOKENS`.

    Logits `[B, T]` float32 are -inf where no answer can be; token 0, the null span, is no pair.
    """
    count = min(max_spans, start_logits.shape[1] - 1)
    starts, start_places = start_logits[:, 1:].topk(count, dim=1)  # [B, C]
    ends, end_places = end_logits[:, 1:].topk(count, dim=1)
    scores = starts.unsqueeze(2) + ends.unsqueeze(1)  # [B, C, C]
    length = end_places.unsqueeze(1) - start_places.unsqueeze(2)
    scores = scores.masked_fill((length < 0) | (length >= MAX_ANSWER_TOKENS), -math.inf)
    top, places = scores.flatten(1).topk(min(max_spans, count * count), dim=1)  # [B, C]
    first = torch.div(places, count, rounding_mode="floor")
    last = places % count
    return TokenPairs(
        scores=top,
        start_tokens=start_places.gather(1, first) + 1,
        end_tokens=end_places.gather(1, last) + 1,
        start_logits=starts.gather(1, first),
        end_logits=ends.gather(1, last),
    )
