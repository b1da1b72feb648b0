"""Question files: SQuAD 1.1 and 2.0 JSON, plain or gzipped, as frozen questions.

Input: the published layout `{"data": [{"title", "paragraphs": [{"context", "qas": [...]}]}]}`.
Output: `Question` values in file order, and a split of them by article into the half that
thresholds are chosen on and the half that is reported.
Neighbours: the trainer, `evaluation` and `calibration` read their questions here.

Errors: `SquadFileError` is the only one; it names the file, the question and the next step.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cloud_worker.training.measuring_errors import SquadFileError

GZIP_MAGIC = b"\x1f\x8b"
T = TypeVar("T")


@dataclass(frozen=True)
class AnswerText:
    """A gold answer: its text and the character of the passage at which it starts."""

    text: str
    start: int


@dataclass(frozen=True)
class Question:
    """One question of a SQuAD file.

    `answers` is empty exactly when `is_impossible`; `source` is the optional name of the data set
    that a question of a mixed file came from ("" where the file has none).
    """

    id: str
    question: str
    context: str
    title: str
    answers: tuple[AnswerText, ...]
    is_impossible: bool
    source: str


def read_squad(path: Path | str) -> list[Question]:
    """Read every question of a SQuAD 1.1 or 2.0 file, in file order.

    Whether the file is gzipped is told by its first bytes, not by its name. A question of SQuAD
    1.1 has no `is_impossible` and is answerable. Raises `SquadFileError`.
    """
    path = Path(path)
    document = _load_json(path)
    articles = document.get("data") if isinstance(document, dict) else None
    if not isinstance(articles, list):
        raise SquadFileError(
            f"{path} is not a SQuAD file: it has no list 'data' at the top; "
            "give a file in the layout of SQuAD 1.1 or 2.0"
        )
    questions: list[Question] = []
    for article_number, article in enumerate(articles):
        questions.extend(_read_article(path, article_number, article))
    if not questions:
        raise SquadFileError(f"{path} holds no question; give a file with at least one")
    return questions


def split_articles(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """Split questions by article into (calibration half, report half).

    The largest articles are dealt first, each to the half that has fewer questions so far, so the
    halves are balanced, share no article, and depend only on titles and counts: not on the order
    of the file, nor on chance. Each half keeps the order of `questions`.
    """
    counts: dict[str, int] = {}
    for question in questions:
        counts[question.title] = counts.get(question.title, 0) + 1
    calibration_titles: set[str] = set()
    calibration_count = report_count = 0
    for title in sorted(counts, key=lambda title: (-counts[title], title)):
        if calibration_count <= report_count:
            calibration_titles.add(title)
            calibration_count += counts[title]
        else:
            report_count += counts[title]
    calibration = [question for question in questions if question.title in calibration_titles]
    report = [question for question in questions if question.title not in calibration_titles]
    return calibration, report


def _load_json(path: Path) -> object:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SquadFileError(
            f"cannot read the question file {path}: {error.strerror}; check the path"
        ) from error
    try:
        if raw.startswith(GZIP_MAGIC):
            raw = gzip.decompress(raw)
        document: object = json.loads(raw.decode("utf-8"))
    except (OSError, EOFError, zlib.error) as error:
        raise SquadFileError(f"{path} is a damaged gzip file ({error}); fetch it again") from error
    except UnicodeDecodeError as error:
        raise SquadFileError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise SquadFileError(
            f"{path} is not JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
            "give a SQuAD file, plain or gzipped"
        ) from error
    return document


def _read_article(path: Path, article_number: int, article: object) -> Iterator[Question]:
    where = f"{path}, article {article_number}"
    fields = _expect(article, dict, where, "an article")
    # SQuAD has a title everywhere; without one, each article still has to be told apart.
    title = _expect(fields.get("title", f"article {article_number}"), str, where, "'title'")
    paragraphs = _expect(fields.get("paragraphs"), list, where, "'paragraphs'")
    for paragraph_number, paragraph in enumerate(paragraphs):
        place = f"{where} ({title}), paragraph {paragraph_number}"
        paragraph_fields = _expect(paragraph, dict, place, "a paragraph")
        context = _expect(paragraph_fields.get("context"), str, place, "'context'")
        for entry in _expect(paragraph_fields.get("qas"), list, place, "'qas'"):
            yield _read_question(place, title, context, _expect(entry, dict, place, "a question"))


def _read_question(where: str, title: str, context: str, entry: dict[str, Any]) -> Question:
    question_id = _expect(entry.get("id"), str, where, "a question's 'id'")
    where = f"{where}, question {question_id}"
    is_impossible = _expect(entry.get("is_impossible", False), bool, where, "'is_impossible'")
    # Some unanswerable questions come with leftovers in 'answers'; the flag decides.
    stored = [] if is_impossible else _expect(entry.get("answers"), list, where, "'answers'")
    answers = tuple(_read_answer(where, context, answer) for answer in stored)
    if not answers and not is_impossible:
        raise SquadFileError(
            f"{where} has no answer and is not marked is_impossible; mark it or give its answer"
        )
    return Question(
        id=question_id,
        question=_expect(entry.get("question"), str, where, "'question'"),
        context=context,
        title=title,
        answers=answers,
        is_impossible=is_impossible,
        source=_expect(entry.get("source", ""), str, where, "'source'"),
    )


def _read_answer(where: str, context: str, answer: object) -> AnswerText:
    fields = _expect(answer, dict, where, "an answer")
    text = _expect(fields.get("text"), str, where, "an answer's 'text'")
    start = _expect(fields.get("answer_start"), int, where, "an answer's 'answer_start'")
    if not text or start < 0 or not context.startswith(text, start):
        raise SquadFileError(
            f"{where}: its answer does not stand at character {start} of its passage; "
            "correct 'answer_start' (characters, counted from 0)"
        )
    return AnswerText(text=text, start=start)


def _expect(value: object, kind: type[T], where: str, what: str) -> T:
    """`value` if it is of `kind`; a `SquadFileError` that says where it is not otherwise."""
    # bool is an int to Python, and true is no character offset.
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    found = "missing" if value is None else f"a {type(value).__name__}"
    raise SquadFileError(f"{where}: {what} is {found}, not a {kind.__name__}; correct the file")
