"""What the demonstration found: one row a question, the checks, the table and the JSON.

Inputs: the questions and the edge's answers as JSON objects. Outputs: rows, a list of what did not
hold, text. Neighbours: `scenario` collects the answers, `elma.commands.demo` prints the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from elma.demonstration.passages import Question
from elma.output import print_table

COLUMNS = ("question", "answer", "exit layer", "resolved by", "milliseconds", "bytes sent")


@dataclass(frozen=True)
class Row:
    """A question and the edge's final answer to it.

    `as_expected` is whether a person would say the same: shown, never checked. `start` and `end`
    are characters of the passage; both are -1, and `answer` is "", where the model found no answer.
    """

    id: str
    kind: str
    passage: str
    question: str
    answer: str
    start: int
    end: int
    score: float
    exit_layer: int
    resolved_by: str
    degraded: bool
    latency_ms: float
    bytes_sent: int
    as_expected: bool

    @classmethod
    def of(cls, question: Question, answer: Mapping[str, Any]) -> Row:
        """The row of an answer of `POST /v1/answer`; raises KeyError for a missing field."""
        text = answer["answer"]
        return cls(
            id=question.id,
            kind=question.kind,
            passage=question.passage_name,
            question=question.text,
            answer=text,
            start=answer["start"],
            end=answer["end"],
            score=answer["score"],
            exit_layer=answer["exit_layer"],
            resolved_by=answer["resolved_by"],
            degraded=answer["degraded"],
            latency_ms=answer["latency_ms"],
            bytes_sent=answer["bytes_sent"],
            as_expected=text in question.expected or (not text and not question.expected),
        )


@dataclass(frozen=True)
class Report:
    """Everything that happened: the answers with the worker there, and after it was stopped."""

    model: str
    broker: str
    with_worker: tuple[Row, ...]
    without_worker: tuple[Row, ...]
    failures: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything held that the demonstration promises."""
        return not self.failures

    def as_json(self) -> dict[str, Any]:
        """The document of `elma demo --json`."""
        return {
            "ok": self.ok,
            "questions": [asdict(row) for row in self.with_worker],
            "without_worker": [asdict(row) for row in self.without_worker],
            "failures": list(self.failures),
            "model": self.model,
            "broker": self.broker,
        }

    def summary(self) -> str:
        """What was checked, or what did not hold, a line each."""
        if self.failures:
            return "\n".join(["this did not hold:", *(f"  {line}" for line in self.failures)])
        cloud = sum(row.resolved_by == "cloud" for row in self.with_worker)
        return (
            f"all of it happened: of {len(self.with_worker)} questions the device resolved "
            f"{len(self.with_worker) - cloud} and the worker {cloud}; "
            f"without the worker the device answered all {len(self.without_worker)}"
        )

    def print_tables(self) -> None:
        """Both tables on stdout."""
        _print_rows("Broker, worker and edge", self.with_worker)
        _print_rows("The worker has been stopped: the device goes on alone", self.without_worker)


def find_failures(
    questions: Sequence[Question],
    with_worker: Sequence[Row],
    without_worker: Sequence[Row],
    *,
    worker_exit_status: int,
) -> list[str]:
    """What did not hold, in words; empty when all did. `elma.commands.demo` lists the checks."""
    passages = {question.id: question.passage for question in questions}
    failures = [
        *_missing("with the worker", questions, with_worker),
        *_missing("without the worker", questions, without_worker),
    ]
    for row in (*with_worker, *without_worker):
        failures += _row_failures(row, passages[row.id])
    if not any(row.resolved_by == "edge" and not row.degraded for row in with_worker):
        failures.append(
            "no question was resolved by the device while the worker was there "
            "(a model that was never calibrated does not stop early: elma calibrate)"
        )
    if not any(row.resolved_by == "cloud" for row in with_worker):
        failures.append(
            "no question was resolved by the worker "
            "(a model whose device layers are all its layers hands nothing over)"
        )
    if worker_exit_status != 0:
        failures.append(f"the worker left with status {worker_exit_status} instead of 0")
    offloaded = {row.id for row in with_worker if row.resolved_by == "cloud"}
    for row in without_worker:
        if row.resolved_by != "edge":
            failures.append(f"{row.id}: resolved by {row.resolved_by}, but no worker was running")
        elif row.id in offloaded and not row.degraded:
            failures.append(f"{row.id}: finished on the device, but not marked degraded")
    return failures


def _missing(when: str, questions: Sequence[Question], rows: Sequence[Row]) -> list[str]:
    if [row.id for row in rows] == [question.id for question in questions]:
        return []
    return [f"{when}: {len(rows)} answers to {len(questions)} questions"]


def _row_failures(row: Row, passage: str) -> list[str]:
    """What a single answer promises, whatever the model thinks."""
    failures = []
    expected_text = passage[row.start : row.end] if row.start >= 0 else ""
    if row.answer != expected_text:
        failures.append(f"{row.id}: the answer is not the passage from {row.start} to {row.end}")
    if row.resolved_by == "cloud" and not row.bytes_sent:
        failures.append(f"{row.id}: resolved by the cloud with nothing sent")
    if row.resolved_by == "edge" and not row.degraded and row.bytes_sent:
        failures.append(f"{row.id}: {row.bytes_sent} bytes sent for an answer of the device alone")
    return failures


def _print_rows(title: str, rows: Sequence[Row]) -> None:
    print_table(COLUMNS, [_cells(row) for row in rows], title=title)


def _cells(row: Row) -> tuple[object, ...]:
    answer = row.answer or "(no answer)"
    return (
        f"{row.question} [{row.kind}]",
        answer if row.as_expected else f"{answer}  (a person would not say so)",
        row.exit_layer,
        f"{row.resolved_by}, degraded" if row.degraded else row.resolved_by,
        round(row.latency_ms),
        row.bytes_sent,
    )
