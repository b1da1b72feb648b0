"""Spans: an exit's logits become candidate spans, and windows' candidates become answers.

In: start and end logits of windows. Out: `WindowSpans`, then `Answer`s in characters of the
passage. Neighbours: `model` calls `best_spans`; edge and evaluation call `choose_answers`, on
results of their own and of workers alike.

SQuAD 2.0: token 0 is the null span. Over a question's windows the best span competes with the
lowest null score (Devlin et al. 2019, section 4.3).

Shapes: B windows, T tokens, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from reader.arrays import FloatArray
from reader.exits import ExitSettings
from reader.span_search import MAX_SPANS, find_best_pairs
from reader.windows import Window


@dataclass(frozen=True)
class Span:
    """A candidate: tokens `start_token .. end_token` (inclusive) of a window."""

    start_token: int
    end_token: int
    start_logit: float
    end_logit: float

    @property
    def score(self) -> float:
        """Sum of both logits."""
        return self.start_logit + self.end_logit


@dataclass(frozen=True)
class WindowSpans:
    """What one exit says of one window: candidates best first, and the score of no answer."""

    window_index: int
    layer: int
    null_score: float
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Answer:
    """Characters `start .. end - 1` of the passage; `text` is "" and both are -1 for no answer.

    `score` is the calibrated probability that this answer is right, `no_answer_score` that the
    passage holds none.
    """

    text: str
    start: int
    end: int
    score: float
    no_answer_score: float


def best_spans(
    start_logits: FloatArray,
    end_logits: FloatArray,
    *,
    window_indexes: Sequence[int],
    layer: int,
    max_spans: int = MAX_SPANS,
) -> list[WindowSpans]:
    """The best candidates of B windows; logits `[B, T]` float32 are -inf where no answer can be.

    See `span_search.find_best_pairs` for what is searched.
    """
    null_scores = (start_logits[:, 0] + end_logits[:, 0]).tolist()
    pairs = find_best_pairs(start_logits, end_logits, max_spans)
    columns = (pairs.start_tokens, pairs.end_tokens, pairs.start_logits, pairs.end_logits)
    start_tokens, end_tokens, starts, ends = (column.tolist() for column in columns)  # each [B][C]
    found = np.isfinite(pairs.scores).sum(1).tolist()  # the rest of each row is -inf
    results = []
    for row, index in enumerate(window_indexes):
        spans = tuple(
            Span(
                start_tokens[row][place],
                end_tokens[row][place],
                starts[row][place],
                ends[row][place],
            )
            for place in range(found[row])
        )
        results.append(WindowSpans(index, layer, null_scores[row], spans))
    return results


def choose_answers(
    windows: Sequence[Window],
    results: Iterable[WindowSpans],
    passage: str,
    settings: ExitSettings,
    *,
    top_k: int = 1,
) -> list[Answer]:
    """The `top_k` best answers of a question from one result a window, at whatever layers.

    Windows that stopped at different layers are compared after each layer's own calibration:
    its no-answer threshold is taken off the null score, and all are divided by its temperature.
    Where all stopped at one layer this is the plain rule: no answer when
    `lowest null - best span > threshold`. The probabilities over candidates then pass through the
    deepest layer's score map (`ExitSettings.confidence`). The list is never empty.
    """
    candidates: dict[tuple[int, int], float] = {}
    null_score, deepest = math.inf, 1
    for result in results:
        deepest = max(deepest, result.layer)
        layer = result.layer - 1
        temperature = settings.temperatures[layer]
        threshold = settings.no_answer_thresholds[layer]
        null_score = min(null_score, (result.null_score - threshold) / temperature)
        for span in result.spans:
            place = _characters(windows[result.window_index], span)
            score = span.score / temperature
            candidates[place] = max(candidates.get(place, -math.inf), score)
    ranked = sorted(candidates.items(), key=lambda item: (-item[1], item[0]))[:MAX_SPANS]
    normaliser = _log_sum_exp([null_score, *(score for _, score in ranked)])

    def confidence(score: float) -> float:
        return settings.confidence(deepest, math.exp(score - normaliser))

    no_answer = confidence(null_score)
    answers = [
        Answer(passage[start:end], start, end, confidence(score), no_answer)
        for (start, end), score in ranked
    ]
    nothing = Answer("", -1, -1, no_answer, no_answer)
    if not ranked or null_score > ranked[0][1]:
        return [nothing, *answers][:top_k]
    return [*answers, nothing][:top_k]


def _characters(window: Window, span: Span) -> tuple[int, int]:
    return window.offsets[span.start_token][0], window.offsets[span.end_token][1]


def _log_sum_exp(values: Sequence[float]) -> float:
    largest = max(values)
    return largest + math.log(sum(math.exp(value - largest) for value in values))
