"""A model is run as devices run it, and compared with the current one only by what both show."""

from __future__ import annotations

from pathlib import Path

import pytest

from publisher.checking import (
    GoldQuestion,
    Quality,
    check_model,
    count_right,
    normalise,
    refuse_worse,
)
from publisher.errors import ReleaseRefused
from reader.canaries import decode_canaries, run_canaries
from reader.model import Reader
from tests.tiny import make_tiny_model

PASSAGE = "the old tower was built by the river in the first year of the war"
QUESTIONS = [
    GoldQuestion(f"what was {word}?", PASSAGE, ()) for word in ("old", "built", "first", "red")
]


def test_every_engine_here_runs_it_and_agrees_on_the_canaries(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", layers=2)
    checked = check_model(model, QUESTIONS, threads=1)
    assert {"torch fp32", "onnx fp32"} <= set(checked.engines)
    assert checked.canaries == decode_canaries(checked.canaries_file)
    reader = Reader.load(model, engine="onnx", precision="fp32", threads=1)
    assert run_canaries(reader, checked.canaries).has_passed
    assert checked.right_answers == count_right(reader, QUESTIONS)


def test_what_no_engine_loads_is_refused(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", layers=2)
    (model / "exits.json").write_text("{}")
    with pytest.raises(ReleaseRefused, match="cannot be run as a device would"):
        check_model(model, QUESTIONS, threads=1)


def test_questions_that_no_canary_comes_of_are_refused(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", layers=2)
    too_long = [GoldQuestion("what?", "river " * 1000, ())]
    with pytest.raises(ReleaseRefused, match="gives no canaries"):
        check_model(model, too_long, threads=1)


def test_right_is_what_squad_calls_right(tmp_path: Path) -> None:
    reader = Reader.load(make_tiny_model(tmp_path / "model", layers=2), engine="torch", threads=1)
    asked = QUESTIONS[0]
    all_words = tuple(
        " ".join(PASSAGE.split()[first:last])
        for first in range(14)
        for last in range(first + 1, 16)
    )
    answered = count_right(reader, [GoldQuestion(asked.question, PASSAGE, all_words)])
    unanswered = count_right(reader, [GoldQuestion(asked.question, PASSAGE, ())])
    assert answered + unanswered == 1
    assert normalise("The  Old tower!") == "old tower"


def test_worse_is_fewer_right_answers_or_less_f1() -> None:
    old = Quality(7, 8, 70.0)
    assert not refuse_worse(Quality(7, 8, 70.0), old, allowed_f1_drop=0.0)
    assert not refuse_worse(Quality(8, 8, 71.0), old, allowed_f1_drop=0.0)
    assert len(refuse_worse(Quality(6, 8, 69.0), old, allowed_f1_drop=0.0)) == 2
    assert not refuse_worse(Quality(7, 8, 69.0), old, allowed_f1_drop=1.5)


def test_what_was_not_measured_for_both_is_not_compared() -> None:
    assert not refuse_worse(Quality(1, 8, None), Quality(20, 30, 80.0), allowed_f1_drop=0.0)
    assert not refuse_worse(Quality(1, 8, 50.0), Quality(None, None, None), allowed_f1_drop=0.0)
