"""The demonstration fails for what the system did wrong, and for nothing that the model thinks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from elma.demonstration.passages import Question
from elma.demonstration.report import Report, Row, find_failures

PASSAGE = "The hut lies at 2,186 metres."
EASY = Question("height", "easy", "How high?", "hut.txt", PASSAGE, ("2,186 metres",))
HARD = Question("price", "unanswerable", "How dear?", "hut.txt", PASSAGE, ())
QUESTIONS = [EASY, HARD]


def row(question: Question, **changes: object) -> Row:
    """An answer of the device alone."""
    answer = {
        "answer": "2,186 metres",
        "start": 16,
        "end": 28,
        "score": 0.9,
        "exit_layer": 3,
        "resolved_by": "edge",
        "degraded": False,
        "latency_ms": 12.5,
        "bytes_sent": 0,
    }
    return Row.of(question, answer | changes)


def cloud(question: Question, **changes: object) -> Row:
    """An answer that a worker resolved."""
    return row(
        question, **({"resolved_by": "cloud", "bytes_sent": 40_000, "exit_layer": 12} | changes)
    )


def degraded(question: Question) -> Row:
    """An answer that the device finished for want of a worker."""
    return row(question, degraded=True, exit_layer=12)


GOOD = ([row(EASY), cloud(HARD)], [row(EASY), degraded(HARD)])


def failures_of(
    with_worker: list[Row], without_worker: list[Row], worker_exit_status: int = 0
) -> list[str]:
    return find_failures(
        QUESTIONS, with_worker, without_worker, worker_exit_status=worker_exit_status
    )


def test_a_run_in_which_everything_happened_has_no_failures() -> None:
    assert failures_of(*GOOD) == []


def test_a_wrong_answer_is_shown_and_is_no_failure() -> None:
    wrong = cloud(HARD)
    assert not wrong.as_expected
    assert row(EASY).as_expected
    assert failures_of([row(EASY), wrong], GOOD[1]) == []


def test_no_answer_to_an_unanswerable_question_is_as_expected() -> None:
    assert cloud(HARD, answer="", start=-1, end=-1).as_expected


@pytest.mark.parametrize(
    ("with_worker", "without_worker", "words"),
    [
        ([cloud(EASY), cloud(HARD)], GOOD[1], "resolved by the device"),
        ([row(EASY), row(HARD)], GOOD[1], "resolved by the worker"),
        ([row(EASY), degraded(HARD)], GOOD[1], "resolved by the worker"),
        ([row(EASY)], GOOD[1], "1 answers to 2 questions"),
        (GOOD[0], [row(EASY)], "1 answers to 2 questions"),
        (GOOD[0], [row(EASY), cloud(HARD)], "no worker was running"),
        (GOOD[0], [row(EASY), row(HARD)], "not marked degraded"),
        ([row(EASY), cloud(HARD, bytes_sent=0)], GOOD[1], "with nothing sent"),
        ([row(EASY, bytes_sent=7), cloud(HARD)], GOOD[1], "7 bytes sent"),
        ([row(EASY, start=4), cloud(HARD)], GOOD[1], "not the passage from 4 to 28"),
        ([row(EASY), cloud(HARD, answer="free", start=-1, end=-1)], GOOD[1], "not the passage"),
    ],
)
def test_what_did_not_happen_is_named(
    with_worker: list[Row], without_worker: list[Row], words: str
) -> None:
    failures = failures_of(with_worker, without_worker)
    assert len(failures) >= 1
    assert any(words in failure for failure in failures), failures


def test_a_worker_that_leaves_badly_is_a_failure() -> None:
    assert failures_of(*GOOD, worker_exit_status=1) == [
        "the worker left with status 1 instead of 0"
    ]


def test_the_json_says_whether_all_is_well() -> None:
    report = Report("tiny", "mosquitto", tuple(GOOD[0]), tuple(GOOD[1]), ())
    document = report.as_json()
    assert document["ok"] is True
    assert [entry["id"] for entry in document["questions"]] == ["height", "price"]
    assert [entry["degraded"] for entry in document["without_worker"]] == [False, True]
    assert replace(report, failures=("no",)).as_json()["ok"] is False


def test_the_tables_show_every_question_and_mark_odd_answers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Report("tiny", "mosquitto", tuple(GOOD[0]), tuple(GOOD[1]), ()).print_tables()
    printed = capsys.readouterr().out
    assert printed.count("How high?") == 2
    assert "a person would not say so" in printed
    assert "edge, degraded" in printed
    assert "40000" in printed
