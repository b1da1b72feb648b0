"""The SQuAD 2.0 metrics: exact match and F1, over all, answerable and unanswerable questions.

Input: questions and one predicted text each ("" says "no answer").
Output: the nine official numbers, in percent, and the best no-answer threshold.
Semantics are those of the official `evaluate-v2.0.py` (Rajpurkar, Jia and Liang 2018, "Know What
You Don't Know"), number for number; the implementation is our own and works on arrays, so that
thousands of policies can be measured from scores computed once.
Neighbours: `evaluation` measures a reader with it, `calibration` a policy.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cloud_worker.training.measuring_errors import MissingPredictionError
from cloud_worker.training.squad_files import Question

# N questions: the letter of every shape in this file.
FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]
Metrics: TypeAlias = dict[str, float | int]

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


@dataclass(frozen=True)
class BestThreshold:
    """The best score in percent that any no-answer threshold reaches, and that threshold."""

    score: float
    threshold: float


class GoldAnswers:
    """The gold answers of one question, normalised once and compared with many predictions."""

    def __init__(self, texts: Sequence[str]) -> None:
        normalised = [normalize_answer(text) for text in texts]
        # Gold answers that normalise to nothing do not count; without any, "" is the right answer.
        self._normalised = [text for text in normalised if text] or [""]
        self._tokens = [text.split() for text in self._normalised]

    def exact(self, prediction: str) -> float:
        """1.0 if the prediction equals a gold answer after normalisation, else 0.0."""
        return float(normalize_answer(prediction) in self._normalised)

    def f1(self, prediction: str) -> float:
        """The best token F1, 0..1, against any gold answer."""
        predicted = normalize_answer(prediction).split()
        return max(_token_f1(gold, predicted) for gold in self._tokens)


def normalize_answer(text: str) -> str:
    """Lower the text and drop ASCII punctuation, English articles and surplus white space."""
    without_punctuation = text.lower().translate(_DELETE_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", without_punctuation).split())


def squad_metrics(questions: Sequence[Question], predictions: Mapping[str, str]) -> Metrics:
    """The nine official metrics of `predictions` (question id -> text, "" for no answer).

    Raises `MissingPredictionError` when a question has none; the official script would leave it
    out of the totals and so report a score over other questions.
    """
    missing = [question.id for question in questions if question.id not in predictions]
    if missing:
        raise MissingPredictionError(
            f"{len(missing)} of {len(questions)} questions have no prediction, the first is "
            f"{missing[0]}; predict every question (an empty text says 'no answer')"
        )
    golds = [gold_answers(question) for question in questions]
    texts = [predictions[question.id] for question in questions]
    exact = np.array([gold.exact(text) for gold, text in zip(golds, texts, strict=True)])
    f1 = np.array([gold.f1(text) for gold, text in zip(golds, texts, strict=True)])
    return aggregate_metrics(exact, f1, has_answer_mask(questions))


def gold_answers(question: Question) -> GoldAnswers:
    """The question's gold answers, ready to compare with."""
    return GoldAnswers([answer.text for answer in question.answers])


def has_answer_mask(questions: Sequence[Question]) -> BoolArray:
    """[N] true where a question is answerable."""
    return np.array([bool(question.answers) for question in questions], dtype=np.bool_)


def aggregate_metrics(exact: FloatArray, f1: FloatArray, has_answer: BoolArray) -> Metrics:
    """The official metrics from per-question scores.

    `exact` [N] and `f1` [N] are in 0..1; the means returned are in percent. As in the official
    script, the HasAns (or NoAns) numbers are absent where no question is of that kind. Raises
    ValueError for no question at all.
    """
    if len(exact) == 0:
        raise ValueError("no question to measure; give at least one")
    metrics = _means("", exact, f1)
    if has_answer.any():
        metrics |= _means("HasAns_", exact[has_answer], f1[has_answer])
    if not has_answer.all():
        metrics |= _means("NoAns_", exact[~has_answer], f1[~has_answer])
    return metrics


def scores_at_threshold(
    answer_scores: FloatArray,
    no_answer_scores: FloatArray,
    has_answer: BoolArray,
    threshold: float,
) -> FloatArray:
    """[N] scores when every question above the threshold is answered "no answer".

    `answer_scores` [N] are the scores (exact or F1, 0..1) of the texts predicted otherwise;
    `no_answer_scores` [N] rise with the belief that there is no answer, on any scale.
    """
    return np.where(no_answer_scores > threshold, (~has_answer).astype(np.float64), answer_scores)


def best_threshold(
    answer_scores: FloatArray,
    no_answer_scores: FloatArray,
    has_answer: BoolArray,
    predicted_text: BoolArray | None = None,
) -> BestThreshold:
    """The no-answer threshold with the highest mean score: best_exact or best_f1 of the script.

    `predicted_text` [N] is false where the prediction is "" already (default: nowhere). Like the
    script, it starts from answering nothing (threshold 0.0), adds questions in rising order of
    `no_answer_scores` [N], and keeps the first maximum.
    """
    order = np.argsort(no_answer_scores, kind="stable")
    wrongly_answered = -np.ones(len(order)) if predicted_text is None else -1.0 * predicted_text
    gains = np.where(has_answer, answer_scores, wrongly_answered)[order]
    totals = float((~has_answer).sum()) + np.concatenate([[0.0], np.cumsum(gains)])
    best = int(np.argmax(totals))
    threshold = 0.0 if best == 0 else float(no_answer_scores[order[best - 1]])
    return BestThreshold(score=100.0 * float(totals[best]) / len(order), threshold=threshold)


def _means(prefix: str, exact: FloatArray, f1: FloatArray) -> Metrics:
    return {
        f"{prefix}exact": 100.0 * float(exact.mean()),
        f"{prefix}f1": 100.0 * float(f1.mean()),
        f"{prefix}total": len(exact),
    }


def _token_f1(gold: list[str], predicted: list[str]) -> float:
    # Where either says "no answer", they agree or they do not: there is nothing in between.
    if not gold or not predicted:
        return float(gold == predicted)
    common = sum((Counter(gold) & Counter(predicted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)
