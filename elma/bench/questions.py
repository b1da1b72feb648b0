"""The questions that a benchmark asks: of a SQuAD file, or those that come with the package.

In: `--data` and how many. Out: `BenchQuestions`, the same for every row of a table. Neighbours:
`cloud_worker.training.squad_files` reads files, `elma.demonstration.passages` has the packaged
ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloud_worker.training.squad_files import AnswerText, Question, read_squad, split_articles
from elma.demonstration import passages

PACKAGED = "the packaged passages"
PACKAGED_NOTE = "the packaged passages are few and easy: their F1 compares nothing"


@dataclass(frozen=True)
class BenchQuestions:
    """`questions` with the name of their source, as the output shows it."""

    source: str
    questions: tuple[Question, ...]

    def spread(self, count: int) -> BenchQuestions:
        """`count` of them at equal distances over the file, or all where there are fewer."""
        if count >= len(self.questions):
            return self
        places = [place * len(self.questions) // count for place in range(count)]
        return BenchQuestions(self.source, tuple(self.questions[place] for place in places))

    @property
    def digest(self) -> str:
        """sha256 (hex) over what is asked and what counts as right."""
        digest = hashlib.sha256()
        for question in self.questions:
            answers = [answer.text for answer in question.answers]
            digest.update(
                repr((question.id, question.question, question.context, answers)).encode()
            )
        return digest.hexdigest()


def load_bench_questions(data: Path | None) -> BenchQuestions:
    """The report half of a SQuAD file (all of a file of one article), or the packaged questions.

    Raises `SquadFileError` for a file that is missing or is none.
    """
    if data is None:
        return BenchQuestions(PACKAGED, tuple(_packaged()))
    everything = read_squad(data)
    _, report = split_articles(everything)
    if not report:
        return BenchQuestions(data.name, tuple(everything))
    return BenchQuestions(f"{data.name}, report half", tuple(report))


def _packaged() -> Sequence[Question]:
    return [
        Question(
            id=question.id,
            question=question.text,
            context=question.passage,
            title=question.passage_name,
            answers=tuple(AnswerText(text, -1) for text in question.expected),
            is_impossible=not question.expected,
            source="",
        )
        for question in passages.load_questions()
    ]
