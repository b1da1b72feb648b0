"""The outbox: durable, private, and one outcome for each question."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from edge_agent.errors import ConflictingQuestion, OutboxDamaged, OutboxError, OutboxInUse
from edge_agent.outbox import Outbox
from edge_agent.questions import Failure, FinalAnswer, Question, RankedAnswer, decode_outcome

ASKED = Question("id-1", "who was it?", "a passage that nobody else has", 2, 10.0, 1_000.0)
ANSWER = FinalAnswer(
    "id-1", "nobody", 15, 21, 0.5, 0.1, 3, "cloud", False, 12.0, 400, "tiny@0", "ab" * 32, "torch",
    "fp32",
    (RankedAnswer("nobody", 15, 21, 0.5), RankedAnswer("", -1, -1, 0.1)),
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.sqlite3"


def test_an_answer_that_an_earlier_version_stored_is_still_read() -> None:
    stored = asdict(ANSWER)
    del stored["release"], stored["engine"], stored["precision"]
    earlier = replace(ANSWER, release="", engine="", precision="")
    assert decode_outcome(json.dumps(stored)) == earlier


def test_an_accepted_question_is_there_after_the_process_was_killed(path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from edge_agent.outbox import Outbox; from edge_agent.questions import Question\n"
        "outbox = Outbox(Path(sys.argv[1]))\n"
        "outbox.accept(Question('id-1', 'q', 'p', 1, 1.0, 5.0))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).resolve().parents[2]
    killed = subprocess.run([sys.executable, "-c", script, str(path)], cwd=root, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    outbox = Outbox(path)
    assert outbox.pending_count == 1
    assert outbox.pending() == [("id-1", 0, 6.0)]
    assert outbox.pending_question("id-1") == Question("id-1", "q", "p", 1, 1.0, 5.0)


def test_a_question_is_concluded_once_even_by_many_at_the_same_time(path: Path) -> None:
    outbox = Outbox(path)
    outbox.accept(ASKED)
    with ThreadPoolExecutor(8) as pool:
        outcomes = [replace(ANSWER, exit_layer=layer) for layer in range(8)]
        firsts = list(pool.map(lambda outcome: outbox.conclude("id-1", outcome, 1.0), outcomes))
    assert firsts.count(True) == 1
    entry = outbox.find("id-1")
    assert entry is not None
    assert entry.outcome == outcomes[firsts.index(True)]
    assert outbox.pending_count == 0


def test_the_same_question_again_is_known_and_another_one_is_a_conflict(path: Path) -> None:
    outbox = Outbox(path)
    assert outbox.accept(ASKED)
    assert not outbox.accept(replace(ASKED, created=2_000.0))
    for other in ({"question": "x"}, {"passage": "x"}, {"top_k": 1}, {"deadline_seconds": 9.0}):
        with pytest.raises(ConflictingQuestion):
            outbox.accept(replace(ASKED, **other))
    assert outbox.pending_count == 1


def test_an_unknown_question_is_neither_found_nor_concluded(path: Path) -> None:
    outbox = Outbox(path)
    assert outbox.find("id-1") is None
    assert not outbox.conclude("id-1", ANSWER, 1.0)
    assert outbox.pending_count == 0


def test_outcomes_come_back_as_they_were(path: Path) -> None:
    outbox = Outbox(path)
    failure = Failure("id-2", "ValueError at model.py:1")
    outbox.accept(ASKED)
    outbox.accept(replace(ASKED, request_id="id-2"))
    outbox.conclude("id-1", ANSWER, 1.0)
    outbox.conclude("id-2", failure, 1.0)
    found = [outbox.find(request_id) for request_id in ("id-1", "id-2")]
    assert [entry and entry.outcome for entry in found] == [ANSWER, failure]


def test_the_text_is_gone_from_the_files_once_answered_and_purged(path: Path) -> None:
    outbox = Outbox(path)
    outbox.accept(ASKED)
    assert any(ASKED.passage.encode() in content for content in contents(path))
    outbox.conclude("id-1", ANSWER, 1.0)
    assert outbox.pending_question("id-1") is None
    assert outbox.purge(concluded_before=0.5) == 0
    assert outbox.find("id-1") is not None
    assert not any(ASKED.passage.encode() in content for content in contents(path))
    assert outbox.purge(concluded_before=2.0) == 1
    assert outbox.find("id-1") is None
    assert not any(b"nobody" in content for content in contents(path))


def test_a_pending_question_is_never_purged(path: Path) -> None:
    outbox = Outbox(path)
    outbox.accept(ASKED)
    assert outbox.purge(concluded_before=1e12) == 0
    assert outbox.pending_question("id-1") == ASKED


def test_only_the_owner_can_read_the_files(path: Path) -> None:
    path.touch(mode=0o644)
    outbox = Outbox(path)
    outbox.accept(ASKED)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert path.name in modes
    assert set(modes.values()) == {0o600}


def test_a_second_process_is_kept_out_until_the_first_one_ends(path: Path) -> None:
    outbox = Outbox(path)
    with pytest.raises(OutboxInUse, match="another running agent"):
        Outbox(path)
    outbox.close()
    Outbox(path).close()


def test_unusable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(OutboxError, match="no-such-folder"):
        Outbox(tmp_path / "no-such-folder" / "outbox.sqlite3")
    damaged = tmp_path / "damaged.sqlite3"
    damaged.write_bytes(os.urandom(4_096))
    with pytest.raises(OutboxError, match="damaged"):
        Outbox(damaged)
    newer = tmp_path / "newer.sqlite3"
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(OutboxError, match="format 99"):
        Outbox(newer)


def test_what_is_no_outbox_is_refused_as_it_stands(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    link = tmp_path / "link.sqlite3"
    link.symlink_to(tmp_path / "elsewhere.sqlite3")
    foreign = {}
    for version in (0, 1):
        foreign[version] = tmp_path / f"foreign-{version}.sqlite3"
        with sqlite3.connect(foreign[version]) as connection:
            connection.execute("CREATE TABLE other (x)")
            connection.execute(f"PRAGMA user_version = {version}")
        foreign[version].chmod(0o664)
    for path in (folder, link, *foreign.values()):
        with pytest.raises(OutboxError, match="of its own"):
            Outbox(path)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert not (tmp_path / "elsewhere.sqlite3").exists()
    assert {stat.S_IMODE(path.stat().st_mode) for path in foreign.values()} == {0o664}


def test_broken_pages_are_found_at_the_start(path: Path) -> None:
    outbox = Outbox(path)
    for number in range(40):
        outbox.accept(replace(ASKED, request_id=f"id-{number}", passage="x" * 2_000))
    outbox.close()
    content = path.read_bytes()
    for start in (4_096, 12_288, len(content) - 4_096):
        path.write_bytes(content[:start] + os.urandom(4_096) + content[start + 4_096 :])
        with pytest.raises(OutboxDamaged, match="move it away"):
            Outbox(path)


def contents(path: Path) -> list[bytes]:
    """The bytes of the outbox and its log files."""
    return [file.read_bytes() for file in path.parent.glob(f"{path.name}*")]
