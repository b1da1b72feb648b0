"""What an attention head sees under its span (Sukhbaatar et al. 2019).

In: the spans of a layer's heads and the shape of a window. Out: a mask. Neighbours: every engine
asks here, so that they agree.

Distance is counted between tokens; question tokens are visible to all and see all. A head of span 0
is not computed at all, so it has no row in the mask.

Shapes: N heads, T tokens of one window.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from reader.arrays import BoolArray


def visible_tokens(spans: Sequence[int], tokens: int, question_tokens: int) -> BoolArray | None:
    """`[N, T, T]`: whether head n lets token i (rows) look at token j; None when all see all."""
    if min(spans, default=tokens) >= tokens - 1:
        return None
    reach = np.minimum(spans, tokens).astype(np.int16)[:, None, None]  # [N, 1, 1]
    mask: BoolArray = _distances(tokens, question_tokens) <= reach
    return mask


@lru_cache(maxsize=4)  # every layer asks for those of the window at hand
def _distances(tokens: int, question_tokens: int) -> NDArray[np.int16]:
    """`[T, T]` distances between tokens, 0 where one of the two is in the question."""
    place = np.arange(tokens, dtype=np.int16)
    distance: NDArray[np.int16] = np.abs(place[:, None] - place[None, :])
    distance[:question_tokens] = 0
    distance[:, :question_tokens] = 0
    distance.flags.writeable = False
    return distance
