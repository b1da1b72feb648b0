"""Question files: what is read, how it is split, and how each kind of damage is reported."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from cloud_worker.training.squad_files import (
    AnswerText,
    Question,
    SquadFileError,
    read_squad,
    split_articles,
)

CONTEXT = "The Normans were a people of Normandy, in France."


def squad_document(**changes: Any) -> dict[str, Any]:
    """A small SQuAD 2.0 document; `changes` replace fields of its first question."""
    answerable = {
        "id": "q1",
        "question": "Where is Normandy?",
        "answers": [{"text": "France", "answer_start": 42}],
        "is_impossible": False,
    } | changes
    unanswerable = {
        "id": "q2",
        "question": "Where is Bohemia?",
        "answers": [],
        "plausible_answers": [{"text": "France", "answer_start": 42}],
        "is_impossible": True,
        "source": "made_up",
    }
    paragraph = {"context": CONTEXT, "qas": [answerable, unanswerable]}
    return {"version": "v2.0", "data": [{"title": "Normans", "paragraphs": [paragraph]}]}


def write_document(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def question(identifier: str, title: str) -> Question:
    return Question(identifier, "?", CONTEXT, title, (AnswerText("France", 42),), False, "")


def test_reads_answerable_and_unanswerable_questions_of_squad_2(tmp_path: Path) -> None:
    first, second = read_squad(write_document(tmp_path / "dev.json", squad_document()))

    assert first == Question(
        id="q1",
        question="Where is Normandy?",
        context=CONTEXT,
        title="Normans",
        answers=(AnswerText("France", 42),),
        is_impossible=False,
        source="",
    )
    assert second.is_impossible
    assert second.answers == ()
    assert second.source == "made_up"


def test_a_squad_1_question_without_the_flag_is_answerable(tmp_path: Path) -> None:
    document = squad_document()
    for entry in document["data"][0]["paragraphs"][0]["qas"]:
        del entry["is_impossible"]
        entry["answers"] = [{"text": "France", "answer_start": 42}]

    questions = read_squad(write_document(tmp_path / "dev-v1.1.json", document))

    assert [question.is_impossible for question in questions] == [False, False]


def test_gzip_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    plain = write_document(tmp_path / "plain.json.gz", squad_document())
    packed = tmp_path / "packed.json"
    packed.write_bytes(gzip.compress(plain.read_bytes()))

    assert read_squad(packed) == read_squad(plain)


def test_offsets_count_characters_not_bytes(tmp_path: Path) -> None:
    document = squad_document(answers=[{"text": "\U0001f1eb Zürich", "answer_start": 3}])
    document["data"][0]["paragraphs"][0]["context"] = "In \U0001f1eb Zürich."

    assert read_squad(write_document(tmp_path / "u.json", document))[0].answers[0].start == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": None}, "a question's 'id' is missing"),
        ({"id": 7}, "a question's 'id' is a int, not a str"),
        ({"question": ["?"]}, "question q1: 'question' is a list"),
        ({"answers": []}, "question q1 has no answer"),
        ({"answers": [{"text": "France", "answer_start": 41}]}, "at character 41"),
        ({"answers": [{"text": "France", "answer_start": -7}]}, "at character -7"),
        ({"answers": [{"text": "France", "answer_start": True}]}, "'answer_start' is a bool"),
        ({"answers": [{"text": "", "answer_start": 3}]}, "at character 3"),
        ({"is_impossible": "yes"}, "'is_impossible' is a str"),
    ],
)
def test_a_damaged_question_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_document(tmp_path / "dev.json", squad_document(**changes))

    with pytest.raises(SquadFileError, match=message) as caught:
        read_squad(path)

    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"[]", "no list 'data'"),
        (b'{"data": []}', "holds no question"),
        (b'{"data": [{"title": "a"}]}', "'paragraphs' is missing"),
        (b'{"data": [7]}', "an article is a int"),
        (b'{"data": "\xff"}', "not UTF-8"),
        (b"\x1f\x8bnot really", "damaged gzip"),
        (gzip.compress(b'{"data": []}', mtime=0)[:-6], "damaged gzip"),
    ],
)
def test_a_file_that_is_not_squad_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "dev.json"
    path.write_bytes(content)

    with pytest.raises(SquadFileError, match=message):
        read_squad(path)


def test_a_missing_file_is_reported_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(SquadFileError, match=r"nowhere\.json") as caught:
        read_squad(tmp_path / "nowhere.json")

    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_halves_share_no_article_and_are_balanced() -> None:
    sizes = {"a": 50, "b": 40, "c": 30, "d": 30, "e": 10}
    questions = [question(f"{t}{i}", t) for t, size in sizes.items() for i in range(size)]

    calibration, report = split_articles(questions)

    assert len(calibration) == len(report) == 80
    assert not {q.title for q in calibration} & {q.title for q in report}
    assert sorted(q.id for q in calibration + report) == sorted(q.id for q in questions)


def test_the_halves_do_not_depend_on_the_order_of_the_file() -> None:
    sizes = {"a": 3, "b": 3, "c": 2, "d": 1}
    questions = [question(f"{t}{i}", t) for t, size in sizes.items() for i in range(size)]

    forward, backward = split_articles(questions), split_articles(questions[::-1])

    assert [{q.id for q in half} for half in forward] == [{q.id for q in h} for h in backward]
    assert [q.id for q in forward[0]] == [q.id for q in backward[0]][::-1]
