"""`elma errors`: disagreements as a question file that training reads, comparisons without text."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cloud_worker.training.squad_files import read_squad
from edge_agent.audit_store import AuditStore, AuditText
from elma.commands.errors import app
from reader.exit_traces import (
    NO_ANSWER,
    AuditRecord,
    ExitNote,
    Finding,
    WindowRecord,
    decode_record,
)

RELEASE = "c" * 64
PASSAGE = "The Älvsborg bridge was built by Sven in 1966."
WINDOW = WindowRecord((ExitNote(0.25, -1.5, 2.0, 3, 9),), 1, Finding(4, -2.0, 3.5, 3, 9))


def record(answer: tuple[int, int], *, agreed: bool = False, time: float = 0.0) -> AuditRecord:
    return AuditRecord(time, RELEASE, "audit", 1.0, (WINDOW,), answer, agreed)


def make_store(path: Path, *rows: tuple[AuditRecord, AuditText | None]) -> Path:
    store = AuditStore(path, max_records=100)
    for row, text in rows:
        store.add(row, text, stands_for=2.0)
    store.close()
    return path


@pytest.fixture
def stores(tmp_path: Path) -> list[Path]:
    """Two devices: four disagreements with text, one of them twice, one without, one agreement."""
    who = AuditText("Who built it?", PASSAGE)
    first = make_store(
        tmp_path / "kitchen.sqlite3",
        (record((33, 37)), who),
        (record(NO_ANSWER), AuditText("Who painted it?", PASSAGE)),
        (record((41, 45), agreed=True), AuditText("When was it built?", PASSAGE)),
        (record((0, 3)), None),
    )
    second = make_store(
        tmp_path / "hall.sqlite3",
        (record((4, 12)), AuditText("Which bridge?", "Old Älvsborg bridge.")),
        (record((4, 12)), AuditText("Which one was built?", PASSAGE)),
        (record((33, 37)), who),
    )
    return [first, second]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_disagreements_become_a_question_file_with_the_clouds_answers(
    stores: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "errors.json"
    done = run("export", *stores, "--squad", out, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["questions"], report["without_text"], report["repeated"]) == (4, 1, 1)
    questions = {question.question: question for question in read_squad(out)}
    assert set(questions) == {
        "Who built it?",
        "Who painted it?",
        "Which bridge?",
        "Which one was built?",
    }
    built = questions["Who built it?"]
    assert (built.answers[0].text, built.answers[0].start) == ("Sven", 33)
    assert questions["Which one was built?"].answers[0].text == "Älvsborg"
    painted = questions["Who painted it?"]
    assert painted.is_impossible
    assert painted.answers == ()
    titles = {question.title for question in questions.values()}
    assert len(titles) == 2, "each passage can be split from the others"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_the_audit_export_holds_every_comparison_and_no_text(
    stores: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "audit.jsonl"
    assert run("export", *stores, "--audit", out).exit_code == 0
    text = out.read_text(encoding="utf-8")
    records = [decode_record(line) for line in text.splitlines()]
    assert len(records) == 7
    assert {row.weight for row in records} == {2.0}
    for word in ("built", "Sven", "bridge", "Who"):
        assert word not in text


def test_without_any_text_the_squad_export_says_why(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.sqlite3", (record((0, 3)), None))
    out = tmp_path / "errors.json"
    done = run("export", store, "--squad", out)
    assert done.exit_code != 0
    assert "keep_text" in str(done.exception)
    assert not out.exists()


def test_an_export_that_fails_leaves_the_old_file(stores: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "folder" / "audit.jsonl"
    done = run("export", *stores, "--audit", out)
    assert "name another file" in str(done.exception)
    out = tmp_path / "audit.jsonl"
    out.write_text("old")
    stores[1].write_bytes(b"noise" * 1000)
    done = run("export", *stores, "--audit", out)
    assert "damaged" in str(done.exception)
    assert out.read_text() == "old"


def test_an_export_to_nowhere_is_refused(stores: list[Path]) -> None:
    assert getattr(run("export", *stores).exception, "exit_status", None) == 2


def test_agreement_is_shown_by_release_kind_and_layer(stores: list[Path]) -> None:
    done = run("show", *stores, "--json")
    rows: list[dict[str, Any]] = json.loads(done.stdout)["agreement"]
    assert rows == [
        {
            "release": RELEASE,
            "kind": "audit",
            "exit_layer": 1,
            "compared": 7,
            "agreed": 1,
            "stands_for": 14.0,
        }
    ]
    assert RELEASE[:12] in run("show", *stores).stdout
