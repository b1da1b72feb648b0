"""`elma bench edge`: peers and ours answer alike, and every figure comes from what was run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from elma import extras
from elma.bench import edge as edge_module
from elma.bench.contest import Child, hold_contest
from elma.bench.contestants import Entry, Feature, choose_text
from elma.bench.edge import OURS, PADDED, EdgePlan, ratios_of, run_edge_bench
from elma.bench.exporting import make_peers
from elma.bench.machine import describe_machine
from elma.bench.questions import PACKAGED, BenchQuestions, load_bench_questions
from elma.cli import app
from elma.commands import bench
from elma.output import CommandError
from reader.exits import ExitSettings
from tests.tiny import make_tiny_model

WORDS = (
    "the old lighthouse keeper built a new red tower of stone in the north city last year".split()
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that never exits early."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), settings=ExitSettings.uncalibrated(4))


@pytest.fixture(scope="session")
def squad_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two articles of questions, short and long passages, with and without an answer."""
    articles = []
    for article in range(2):
        questions = []
        for number in range(6):
            passage = " ".join(
                WORDS[(number * place) % len(WORDS)] for place in range(1, 60 + number)
            )
            answers = [] if number % 2 else [{"text": passage[:3], "answer_start": 0}]
            entry = {
                "id": f"{article}-{number}",
                "question": f"who built the tower of year {number}",
                "answers": answers,
                "is_impossible": not answers,
            }
            questions.append({"context": passage, "qas": [entry]})
        articles.append({"title": f"article {article}", "paragraphs": questions})
    path = tmp_path_factory.mktemp("data") / "questions.json"
    path.write_text(json.dumps({"data": articles}), encoding="utf-8")
    return path


def test_peers_and_ours_answer_alike_at_full_depth(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    peers = make_peers(tiny, tmp_path, with_onnx=True)
    everybody = [
        Entry("padded", "transformers", str(peers.hugging_face), is_padded=True),
        Entry("unpadded", "transformers", str(peers.hugging_face)),
        Entry("onnx", "onnxruntime", str(peers.onnx_fp32), precision="fp32"),
        Entry("ours", "elma", str(tiny), engine="torch", precision="fp32", exits=False),
    ]
    lengths = (3, 6, 500)  # the last one makes several windows
    asked = [
        ("who built the tower", " ".join(WORDS[place % len(WORDS)] for place in range(length)))
        for length in lengths
    ]
    (tmp_path / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    answers = [answers_of(entry, tmp_path / "asked.json", len(asked)) for entry in everybody]
    for length, texts in zip(lengths, zip(*answers, strict=True), strict=True):
        # The peers' 20 best tokens hold such of the question too, so that they consider fewer
        # spans than we do where there are more than 20 tokens.
        assert len(set(texts[:3] if length > 6 else texts)) == 1


def answers_of(entry: Entry, asked: Path, count: int) -> list[str]:
    """Those of a contestant in a process of its own, as in a contest."""
    with Child(entry, asked, threads=1, no_answer_threshold=0.0, isa="native") as child:
        child.wait_loaded()
        return child.answers(range(count))


def test_no_answer_needs_the_null_to_win_by_more_than_the_threshold() -> None:
    logits = np.zeros(4, dtype=np.float32)
    logits[0], logits[2] = 1.0, 0.5
    feature = Feature(logits, logits, [None, None, (0, 3), (4, 6)])
    assert choose_text([feature], "one to", 1.0) == "one"
    assert choose_text([feature], "one to", 0.9) == ""


def test_tokens_of_the_question_are_no_answer() -> None:
    start = np.array([-9.0, 9.0, 1.0, 0.0], dtype=np.float32)
    feature = Feature(start, start, [None, None, (0, 3), (4, 6)])
    assert choose_text([feature], "one to", 0.0) == "one"


def test_everybody_is_asked_the_same_questions_in_turn(tiny: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked.json"
    asked.write_text(json.dumps([["who", "the old king"], ["when", "in the last year"]]))
    entries = [
        Entry(f"ours {number}", "elma", str(tiny), engine="torch", precision="fp32")
        for number in range(2)
    ]
    timings = hold_contest(entries, asked, 2, threads=1, no_answer_threshold=0.0)
    assert [len(timing.milliseconds) for timing in timings.values()] == [2, 2]
    for timing in timings.values():
        assert timing.choice["precision"] == "fp32"
        assert timing.memory["peak_mb"] >= timing.memory["rss_mb"] > 0


def test_the_result_has_a_row_for_everybody_and_the_ratios_of_these_rows(
    tiny: Path, squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = EdgePlan(str(tiny), questions=3, f1_questions=4, with_onnx=False)
    questions = load_bench_questions(squad_file)
    _only(monkeypatch, PADDED, OURS)
    result = run_edge_bench(plan, questions, out=tmp_path)
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == [PADDED, OURS]
    assert all({"p50_ms", "p95_ms", "f1", "rss_mb"} <= set(row) for row in rows.values())
    assert len({row["f1"] for row in rows.values()}) == 1
    expected = rows[PADDED]["p50_ms"] / rows[OURS]["p50_ms"]
    assert result["ratios"]["padded_fp32"] == pytest.approx(expected, abs=0.01)
    assert result["ratios"]["onnx_int8"] is None
    assert {"edge-1.json", "edge-1.md", "edge-1.png"} <= {p.name for p in tmp_path.iterdir()}

    def nobody(*_arguments: Any, **_options: Any) -> dict[str, list[str]]:
        raise AssertionError("F1 was measured a second time")

    monkeypatch.setattr(edge_module, "collect_answers", nobody)
    again = run_edge_bench(plan, questions, out=tmp_path)
    assert [row["f1"] for row in again["rows"]] == [row["f1"] for row in result["rows"]]


def test_other_questions_have_an_f1_of_their_own(
    tiny: Path, squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _only(monkeypatch, OURS)
    asked: list[int] = []

    def count(
        _entries: Sequence[Entry], _file: Path, number: int, **_o: Any
    ) -> dict[str, list[str]]:
        asked.append(number)
        return {OURS: [""] * number}

    monkeypatch.setattr(edge_module, "collect_answers", count)
    questions = load_bench_questions(squad_file)
    for number in (3, 4, 4):
        plan = EdgePlan(str(tiny), questions=1, f1_questions=number, with_onnx=False)
        run_edge_bench(plan, questions, out=tmp_path)
    assert asked == [3, 4]


def test_a_ratio_is_the_peers_median_over_ours() -> None:
    rows = [
        {"name": PADDED, "p50_ms": 90.0},
        {"name": edge_module.ONNX_INT8, "p50_ms": 9.0},
        {"name": OURS, "p50_ms": 6.0},
    ]
    assert ratios_of(rows) == {"padded_fp32": 15.0, "onnx_int8": 1.5}


def test_without_data_the_packaged_passages_are_asked_and_named() -> None:
    questions = load_bench_questions(None)
    assert questions.source == PACKAGED
    assert {bool(question.answers) for question in questions.questions} == {True, False}


def test_a_file_of_several_articles_is_asked_for_its_report_half(squad_file: Path) -> None:
    questions = load_bench_questions(squad_file)
    assert len({question.title for question in questions.questions}) == 1
    assert questions.source == "questions.json, report half"


def test_questions_are_spread_over_the_file(squad_file: Path) -> None:
    questions = load_bench_questions(squad_file)
    chosen = questions.spread(3)
    assert [question.id[2:] for question in chosen.questions] == ["0", "2", "4"]
    assert chosen.digest != questions.digest
    assert questions.spread(100) == questions


def test_a_missing_question_file_is_wrong_input() -> None:
    done = CliRunner().invoke(app, ["bench", "edge", "--data", "nowhere.json"])
    assert isinstance(done.exception, CommandError)
    assert done.exception.exit_status == 2
    assert "nowhere.json" in str(done.exception)


def test_missing_onnx_runtime_is_named_with_what_to_install(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "is_installed", lambda module: module != "onnxruntime")
    plan = EdgePlan(str(tiny))
    with pytest.raises(extras.ExtraMissing, match=r"onnxruntime.*pip install.*onnx"):
        run_edge_bench(plan, BenchQuestions("none", ()), out=None)


@pytest.mark.parametrize("wrong", ["span", "=folder", "span="])
def test_a_step_needs_a_name_and_a_folder(wrong: str) -> None:
    with pytest.raises(CommandError, match="NAME=FOLDER"):
        bench._steps([wrong])


def test_the_machine_is_described_without_path_or_host() -> None:
    import socket

    text = json.dumps(describe_machine(2, "avx2"))
    assert socket.gethostname() not in text
    assert "/" not in text.replace("n/a", "")
    assert json.loads(text)["threads"] == 2


def _only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Leave out the rows that a tiny test has no time for."""
    make = edge_module.make_entries

    def some(*arguments: Any) -> list[Entry]:
        return [entry for entry in make(*arguments) if entry.name in names]

    monkeypatch.setattr(edge_module, "make_entries", some)
