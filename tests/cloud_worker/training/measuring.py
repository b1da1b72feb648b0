"""Questions and recordings that the measuring tests make for themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cloud_worker.training.recording import Recording
from cloud_worker.training.squad_files import AnswerText, Question
from cloud_worker.training.squad_metrics import FloatArray
from reader.exits import CRITERIA
from reader.span_search import MAX_SPANS
from tests.tiny import WORDS


def random_questions(
    count: int, *, seed: int = 0, passage_words: Sequence[int] = (20, 40, 900)
) -> list[Question]:
    """Questions about random words; the longest passages make several windows."""
    random = np.random.default_rng(seed)
    questions = []
    for number in range(count):
        words = random.choice(WORDS, size=passage_words[number % len(passage_words)]).tolist()
        context = " ".join(words)
        impossible = number % 4 == 3
        first = int(random.integers(len(words) - 3))
        answer = AnswerText(" ".join(words[first : first + 2]), len(" ".join([*words[:first], ""])))
        questions.append(
            Question(
                id=f"q{number}",
                question=" ".join(random.choice(WORDS, size=6).tolist()),
                context=context,
                title=f"article {number % 5}",
                answers=() if impossible else (answer,),
                is_impossible=impossible,
                source="",
            )
        )
    return questions


def write_squad_file(path: Path, questions: Sequence[Question]) -> Path:
    """Write questions in the layout of SQuAD 2.0."""
    articles: dict[str, list[object]] = {}
    for question in questions:
        entry = {
            "id": question.id,
            "question": question.question,
            "answers": [{"text": a.text, "answer_start": a.start} for a in question.answers],
            "is_impossible": question.is_impossible,
        }
        articles.setdefault(question.title, []).append(
            {"context": question.context, "qas": [entry]}
        )
    data = [{"title": title, "paragraphs": parts} for title, parts in articles.items()]
    path.write_text(json.dumps({"version": "v2.0", "data": data}), encoding="utf-8")
    return path


def plain_question(number: int, *, answerable: bool = True) -> Question:
    """A question whose content does not matter."""
    answers = (AnswerText("x", 0),) if answerable else ()
    return Question(f"q{number}", "?", "x", f"t{number % 4}", answers, not answerable, "")


def made_up_recording(
    f1: FloatArray,
    uncertainty: FloatArray,
    *,
    has_answer: Sequence[bool] | None = None,
    margins: FloatArray | None = None,
    windows: Sequence[int] | None = None,
) -> Recording:
    """A recording from arrays [W, L]: F1 of the best span, uncertainty, null minus best span.

    Exact match is F1 where that is 1. Without `windows` each question has one; without `margins`
    every question is answered.
    """
    counts = np.array(windows if windows is not None else [1] * len(f1), dtype=np.int64)
    answerable = has_answer if has_answer is not None else [True] * len(counts)
    span_scores = np.full((*f1.shape, MAX_SPANS), -np.inf)
    span_scores[:, :, 0] = 0.0
    places = np.zeros((*f1.shape, MAX_SPANS, 2), dtype=np.int64)
    places[:, :, 0, 0] = np.arange(len(f1))[:, None]  # windows found different characters
    texts = np.empty(f1.shape, dtype=np.object_)
    for row, column in np.ndindex(*f1.shape):
        texts[row, column] = f"text of window {row} at layer {column + 1}"
    return Recording(
        questions=tuple(plain_question(n, answerable=a) for n, a in enumerate(answerable)),
        first_window=np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64),
        null_scores=margins if margins is not None else np.full(f1.shape, -10.0),
        span_scores=span_scores,
        span_places=places,
        texts=texts,
        exact=(f1 == 1.0).astype(np.float64),
        f1=f1,
        uncertainty=dict.fromkeys(CRITERIA, uncertainty),
    )
