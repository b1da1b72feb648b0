"""The passages of the demonstration say what their questions claim."""

from __future__ import annotations

import re
from collections import Counter

from elma.demonstration.passages import KINDS, PASSAGE_FOLDER, load_questions


def test_there_are_enough_questions_of_every_kind() -> None:
    counts = Counter(question.kind for question in load_questions())
    assert sum(counts.values()) >= 6
    assert set(counts) == set(KINDS)
    assert counts["easy"] >= 2
    assert counts["hard"] >= 2


def test_every_expected_answer_stands_in_its_passage() -> None:
    for question in load_questions():
        assert bool(question.expected) is (question.kind != "unanswerable"), question.id
        # The longer forms may differ by a leading article or pronoun that the sentence puts apart.
        assert not question.expected or any(
            answer in question.passage for answer in question.expected
        ), question.id


def test_the_long_passage_needs_several_windows() -> None:
    long_passages = [q.passage for q in load_questions() if q.kind == "long"]
    assert long_passages
    for passage in long_passages:
        # A word is at least one token, so more words than a window's 384 tokens prove the point.
        assert len(re.findall(r"\w+", passage)) > 600


def test_the_answer_in_the_long_passage_lies_beyond_the_first_window() -> None:
    (question,) = (q for q in load_questions() if q.kind == "long")
    position = question.passage.index(question.expected[-1])
    assert len(re.findall(r"\w+", question.passage[:position])) > 384


def test_the_licence_stands_beside_the_passages() -> None:
    licence = (PASSAGE_FOLDER / "LICENCE.txt").read_text(encoding="utf-8")
    assert "Apache License" in licence
    for question in load_questions():
        assert question.passage_name in licence, f"{question.passage_name} is not named in it"


def test_questions_have_distinct_ids() -> None:
    ids = [question.id for question in load_questions()]
    assert len(ids) == len(set(ids))
