"""The metric against cases worked by hand, with the rules of the official SQuAD 2.0 script."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cloud_worker.training.measuring_errors import MissingPredictionError
from cloud_worker.training.squad_files import AnswerText, Question
from cloud_worker.training.squad_metrics import (
    GoldAnswers,
    aggregate_metrics,
    best_threshold,
    normalize_answer,
    scores_at_threshold,
    squad_metrics,
)


def question(identifier: str, *golds: str) -> Question:
    answers = tuple(AnswerText(gold, 0) for gold in golds)
    return Question(identifier, "?", "", "title", answers, not golds, "")


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The Normans!", "normans"),
        ("  a  cat, an  owl and the dog ", "cat owl and dog"),
        ("U.S.A.", "usa"),
        ("an-other", "another"),  # punctuation goes first: no article is left standing alone
        ("theatre", "theatre"),
        ("the", ""),
        ("...", ""),
        ("10,000 km²", "10000 km²"),
        ("“Zürich”\u00a0—\tÉtat", "“zürich” — état"),  # only ASCII punctuation is dropped
    ],
)
def test_normalisation_drops_case_punctuation_articles_and_spaces(
    text: str, normalised: str
) -> None:
    assert normalize_answer(text) == normalised


@pytest.mark.parametrize(
    ("golds", "prediction", "exact", "f1"),
    [
        (["France"], "France", 1.0, 1.0),
        (["France"], "the FRANCE.", 1.0, 1.0),
        (["in northern France"], "France", 0.0, 0.5),  # precision 1, recall 1/3
        (["northern France"], "southern France", 0.0, 0.5),
        (["France"], "Germany", 0.0, 0.0),
        (["one two", "one two three"], "one two three", 1.0, 1.0),  # the best gold counts
        (["a b c d", "x"], "b x", 0.0, 2 / 3),  # "a" is an article: 2/5 and 2/3
        (["dog dog cat"], "dog dog dog", 0.0, 2 / 3),  # repeats count as often as both have them
        (["France"], "", 0.0, 0.0),
        ([], "", 1.0, 1.0),
        ([], "France", 0.0, 0.0),
        ([], "the", 1.0, 1.0),  # normalises to nothing, like the right answer
        (["the"], "", 1.0, 1.0),  # no gold is left, so "" is right
        (["the", "cat"], "", 0.0, 0.0),
    ],
)
def test_scores_of_one_question(golds: list[str], prediction: str, exact: float, f1: float) -> None:
    gold = GoldAnswers(golds)

    assert gold.exact(prediction) == exact
    assert gold.f1(prediction) == pytest.approx(f1)


def test_the_nine_numbers_of_a_small_set() -> None:
    questions = [question("a", "France"), question("b", "a red dog"), question("c"), question("d")]
    predictions = {"a": "france", "b": "dog", "c": "", "d": "dog"}

    metrics = squad_metrics(questions, predictions)

    assert metrics == pytest.approx(
        {
            "exact": 50.0,
            "f1": 100 * (1 + 2 / 3 + 1 + 0) / 4,
            "total": 4,
            "HasAns_exact": 50.0,
            "HasAns_f1": 100 * (1 + 2 / 3) / 2,
            "HasAns_total": 2,
            "NoAns_exact": 50.0,
            "NoAns_f1": 50.0,
            "NoAns_total": 2,
        }
    )


def test_a_set_without_unanswerable_questions_has_no_such_numbers() -> None:
    metrics = squad_metrics([question("a", "France")], {"a": "France"})

    assert metrics["HasAns_f1"] == 100.0
    assert not [name for name in metrics if name.startswith("NoAns")]


def test_a_missing_prediction_is_an_error_and_is_named() -> None:
    with pytest.raises(MissingPredictionError, match=r"1 of 2 questions .* first is b"):
        squad_metrics([question("a"), question("b")], {"a": ""})


def test_above_the_threshold_the_answer_is_none() -> None:
    scores = scores_at_threshold(
        np.array([0.4, 0.4, 0.0, 0.0]),
        np.array([1.0, 1.1, 1.0, 1.1]),
        np.array([True, True, False, False]),
        threshold=1.0,
    )

    assert scores.tolist() == [0.4, 0.0, 0.0, 1.0]


def test_best_threshold_worked_by_hand() -> None:
    # Answering nothing: 2 of 4. In order of score: +0.9 (2.9), -1 (1.9), +1 (2.9), -1 (1.9).
    best = best_threshold(
        np.array([0.9, 0.0, 1.0, 0.0]),
        np.array([-3.0, -2.0, 1.0, 2.0]),
        np.array([True, False, True, False]),
    )

    assert best.score == pytest.approx(100 * 2.9 / 4)
    assert best.threshold == -3.0  # the first of two equal maxima


def test_best_threshold_is_the_best_of_all_thresholds() -> None:
    random = np.random.default_rng(3)
    f1 = random.random(200)
    has_answer = random.random(200) < 0.6
    f1[~has_answer] = 0.0
    no_answer_scores = random.normal(size=200) - has_answer

    best = best_threshold(f1, no_answer_scores, has_answer)
    every = [
        100 * scores_at_threshold(f1, no_answer_scores, has_answer, threshold).mean()
        for threshold in no_answer_scores
    ]

    assert best.score == pytest.approx(max(every))
    at_best = scores_at_threshold(f1, no_answer_scores, has_answer, best.threshold)
    assert 100 * at_best.mean() == pytest.approx(best.score)


def test_an_empty_prediction_costs_nothing_at_any_threshold() -> None:
    best = best_threshold(
        np.array([1.0, 0.5]),
        np.array([0.0, 1.0]),
        np.array([False, True]),
        predicted_text=np.array([False, True]),
    )

    assert best.score == 75.0
    assert best.threshold == 1.0


def test_the_official_script_prints_the_same_for_every_pair_of_texts() -> None:
    """Numbers printed by `evaluate-v2.0.py` for every gold and prediction of a list of texts.

    All 64 pairs of `texts` as (gold, prediction), each gold a question of its own.
    """
    texts = ["", "the", "France", "In France", "north of France", "FRANCE!", "a-b a b", "b"]
    pairs = list(itertools.product(texts, texts))
    exact = np.array([GoldAnswers([gold]).exact(prediction) for gold, prediction in pairs])
    f1 = np.array([GoldAnswers([gold]).f1(prediction) for gold, prediction in pairs])

    metrics = aggregate_metrics(exact, f1, np.ones(len(pairs), dtype=np.bool_))

    assert metrics["exact"] == pytest.approx(OFFICIAL_EXACT)
    assert metrics["f1"] == pytest.approx(OFFICIAL_F1)


OFFICIAL_EXACT = 18.75
OFFICIAL_F1 = 29.375
