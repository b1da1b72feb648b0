"""What an attention head sees under its span (Sukhbaatar et al. 2019).

In: the spans of a layer's heads and the shape of a window. Out: a mask. Neighbours: every engine
asks here, so that they agree.

Distance is counted between tokens; question tokens are visible to all and see all. A head of span 0
is not computed at all, so it has no row in the mask.

Shapes: N heads, T tokens of one window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reader.arrays import BoolArray


def visible_tokens(spans: Sequence[int], tokens: int, question_tokens: int) -> BoolArray | None:
    """`[N, T, T]`: whether head n lets token i (rows) look at token j; None when all see all."""
    if min(spans, default=tokens) >= tokens - 1:
        return None
    place = np.arange(tokens)
    distance = np.abs(place[:, None] - place[None, :])  # [T, T]
    in_question = place < question_tokens
    always = in_question[:, None] | in_question[None, :]
    near = distance[None] <= np.array(spans)[:, None, None]  # [N, T, T]
    mask: BoolArray = near | always
    return mask
