"""Spans: brute force agrees, SQuAD 2.0's null rule holds, and mixed layers compare fairly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from reader.arrays import FloatArray
from reader.exits import ExitSettings
from reader.span_search import MAX_ANSWER_TOKENS
from reader.spans import Span, WindowSpans, best_spans, choose_answers
from reader.windows import Window

PASSAGE = "alpha beta gamma delta"
WINDOW = Window(
    0,
    (2, 9, 3, 11, 12, 13, 14, 3),
    3,
    ((0, 0), (0, 0), (0, 0), (0, 5), (6, 10), (11, 16), (17, 22), (0, 0)),
)
SETTINGS = ExitSettings("entropy", (-1.0, -1.0), (0.0, 0.0), (1.0, 1.0), 2)


def masked(values: FloatArray, head: int) -> FloatArray:
    values = values.copy()
    values[:, 1:head] = -math.inf
    values[:, -1] = -math.inf
    return values


def test_the_best_spans_are_those_of_brute_force() -> None:
    chance = np.random.default_rng(1)
    start = masked(chance.standard_normal((4, 60), dtype=np.float32), 5)
    end = masked(chance.standard_normal((4, 60), dtype=np.float32), 5)
    results = best_spans(start, end, window_indexes=[3, 1, 0, 2], layer=7)
    for row, result in enumerate(results):
        pairs = [
            (float(start[row, first] + end[row, last]), first, last)
            for first in range(5, 59)
            for last in range(first, min(59, first + MAX_ANSWER_TOKENS))
        ]
        top = max(pairs)
        found = result.spans[0]
        assert (found.start_token, found.end_token) == top[1:]
        assert found.score == pytest.approx(top[0], abs=1e-5)
        assert result.null_score == pytest.approx(float(start[row, 0] + end[row, 0]), abs=1e-5)
    assert [result.window_index for result in results] == [3, 1, 0, 2]


def test_no_span_lies_outside_the_passage_or_is_too_long() -> None:
    start = masked(np.zeros((1, 200), dtype=np.float32), 10)
    end = masked(np.arange(200, dtype=np.float32)[None], 10)
    for span in best_spans(start, end, window_indexes=[0], layer=1)[0].spans:
        assert 10 <= span.start_token <= span.end_token < 199
        assert span.end_token - span.start_token < MAX_ANSWER_TOKENS


def result(null: float, *spans: Span, layer: int = 1, window: int = 0) -> WindowSpans:
    return WindowSpans(window, layer, null, spans)


def test_a_span_above_the_null_answers() -> None:
    (answer,) = choose_answers([WINDOW], [result(1.0, Span(4, 5, 2.0, 3.0))], PASSAGE, SETTINGS)
    assert (answer.text, answer.start, answer.end) == ("beta gamma", 6, 16)
    assert answer.score == pytest.approx(1 / (1 + math.exp(1 - 5)))


def test_the_null_beyond_the_threshold_is_no_answer() -> None:
    results = [result(6.0, Span(4, 5, 2.0, 3.0))]
    (answer,) = choose_answers([WINDOW], results, PASSAGE, SETTINGS)
    assert (answer.text, answer.start, answer.end) == ("", -1, -1)
    # null - span = 1, which decides against the threshold
    just_below = replace(SETTINGS, no_answer_thresholds=(0.9, 0.0))
    assert choose_answers([WINDOW], results, PASSAGE, just_below)[0].text == ""
    just_above = replace(SETTINGS, no_answer_thresholds=(1.1, 0.0))
    assert choose_answers([WINDOW], results, PASSAGE, just_above)[0].text == "beta gamma"


def test_over_windows_the_best_span_meets_the_lowest_null() -> None:
    second = replace(WINDOW, index=1)
    results = [result(9.0, Span(4, 4, 1, 1)), result(3.0, Span(5, 5, 2, 2.5), window=1)]
    (answer,) = choose_answers([WINDOW, second], results, PASSAGE, SETTINGS)
    assert answer.text == "gamma"


def test_windows_of_different_layers_are_compared_after_calibration() -> None:
    second = replace(WINDOW, index=1)
    settings = replace(SETTINGS, temperatures=(10.0, 1.0))
    results = [
        result(0.0, Span(4, 4, 10, 10), layer=1),
        result(0.0, Span(5, 5, 2, 2), layer=2, window=1),
    ]
    assert choose_answers([WINDOW, second], results, PASSAGE, settings)[0].text == "gamma"


def test_top_k_is_ordered_distinct_and_holds_no_answer_in_its_place() -> None:
    results = [result(3.5, Span(3, 3, 3, 3), Span(4, 4, 2, 2), Span(5, 5, 1, 1))]
    answers = choose_answers([WINDOW], results, PASSAGE, SETTINGS, top_k=3)
    assert [answer.text for answer in answers] == ["alpha", "beta", "gamma"]
    scores = [answer.score for answer in answers]
    assert scores == sorted(scores, reverse=True)
    everything = choose_answers([WINDOW], results, PASSAGE, SETTINGS, top_k=10)
    assert sum(answer.score for answer in everything) == pytest.approx(1.0)


def test_a_window_without_any_span_gives_no_answer() -> None:
    assert choose_answers([WINDOW], [result(0.0)], PASSAGE, SETTINGS)[0].text == ""
