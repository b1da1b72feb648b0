"""The file of audits: bounded, private, readable while it is written, and honest about weights."""

from __future__ import annotations

import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.audit_store import (
    LONGEST_TEXT_CHARACTERS,
    AuditStore,
    AuditStoreError,
    AuditText,
    read_audits,
)
from reader.exit_traces import AuditKind, AuditRecord, ExitNote, Finding, WindowRecord

WINDOW = WindowRecord((ExitNote(0.25, -1.5, 2.0, 3, 9),) * 2, 2, Finding(4, -2.0, 3.5, 3, 9))
TEXT = AuditText("who built it", "the king built it")


def record(number: int = 0, kind: AuditKind = "audit", release: str = "r1") -> AuditRecord:
    return AuditRecord(1000.0 + number, release, kind, 1.0, (WINDOW,), (3, 9), number % 2 == 0)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "audit.sqlite3"
    store = AuditStore(path, max_records=10)
    store.add(record(), TEXT, stands_for=1.0)
    store.add(record(1), None, stands_for=1.0)
    first, second = read_audits(path)  # while the store is open for writing
    assert first.record == record()
    assert first.text == TEXT
    assert second.text is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for beside in tmp_path.iterdir():
        assert stat.S_IMODE(beside.stat().st_mode) == 0o600, beside
    store.close()
    assert len(list(read_audits(path))) == 2


def test_without_text_no_byte_of_it_is_in_the_files(tmp_path: Path) -> None:
    store = AuditStore(tmp_path / "audit.sqlite3", max_records=10)
    store.add(record(), None, stands_for=1.0)
    assert not any(b"king" in file.read_bytes() for file in tmp_path.iterdir())
    store.add(record(), TEXT, stands_for=1.0)  # the control: with text they are
    assert any(b"king" in file.read_bytes() for file in tmp_path.iterdir())
    store.close()


def test_a_very_long_passage_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "audit.sqlite3"
    store = AuditStore(path, max_records=10)
    store.add(record(), AuditText("q", "x" * (LONGEST_TEXT_CHARACTERS + 1)), stands_for=1.0)
    assert [stored.text for stored in read_audits(path)] == [None]
    store.close()


def test_the_oldest_rows_of_a_kind_go_first_and_spare_the_other_kind(tmp_path: Path) -> None:
    path = tmp_path / "audit.sqlite3"
    store = AuditStore(path, max_records=6)
    for number in range(2):
        store.add(record(number, "audit"), None, stands_for=10.0)
    for number in range(20):
        store.add(record(number, "offload"), None, stands_for=1.0)
    store.close()
    kept = [(stored.record.kind, stored.record.time) for stored in read_audits(path)]
    assert kept == [
        ("audit", 1000.0),
        ("audit", 1001.0),
        ("offload", 1017.0),
        ("offload", 1018.0),
        ("offload", 1019.0),
    ]


def test_weights_count_what_was_sampled_lost_and_pushed_out(tmp_path: Path) -> None:
    path = tmp_path / "audit.sqlite3"
    store = AuditStore(path, max_records=4)
    store.add(record(0, "audit"), None, stands_for=20.0)
    store.add(record(1, "audit"), None, stands_for=60.0)  # two of its kind were lost before it
    for number in range(8):
        store.add(record(number, "offload"), None, stands_for=1.0)
    store.add(record(0, "audit", "r2"), None, stands_for=5.0)  # pushes the oldest of r1 out
    store.close()
    weights = {(s.record.release, s.record.kind): s.record.weight for s in read_audits(path)}
    assert weights == {("r1", "audit"): 80.0, ("r1", "offload"): 4.0, ("r2", "audit"): 5.0}


def test_a_release_that_left_the_file_leaves_its_count(tmp_path: Path) -> None:
    path = tmp_path / "audit.sqlite3"
    store = AuditStore(path, max_records=2)
    store.add(record(0), None, stands_for=7.0)
    store.add(record(1, release="r2"), None, stands_for=5.0)
    store.add(record(2), None, stands_for=1.0)
    store.close()
    assert [(s.record.release, s.record.weight) for s in read_audits(path)] == [("r1", 1.0)]


def test_a_file_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite3"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE things (name TEXT)")
    path.chmod(0o644)
    before = path.read_bytes()
    with pytest.raises(AuditStoreError, match="another program"):
        AuditStore(path, max_records=10)
    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("make", ["folder", "link", "noise", "missing folder"])
def test_what_is_no_plain_database_is_refused(make: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.sqlite3"
    if make == "folder":
        path.mkdir()
    elif make == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif make == "noise":
        path.write_bytes(b"no database at all" * 1000)
    else:
        path = path / "below"
    with pytest.raises(AuditStoreError, match=str(path)):
        AuditStore(path, max_records=10)


def test_a_damaged_row_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "audit.sqlite3"
    store = AuditStore(path, max_records=10)
    store.add(record(), None, stands_for=1.0)
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE records SET windows = '[[1]]'")
    with pytest.raises(AuditStoreError, match="damaged"):
        list(read_audits(path))


def test_reading_what_is_not_there_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(AuditStoreError, match="does not exist"):
        list(read_audits(tmp_path / "none.sqlite3"))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_fails_with_the_store_still_usable(tmp_path: Path) -> None:
    path = tmp_path / "audit.sqlite3"
    store = AuditStore(path, max_records=1000)
    store.add(record(), None, stands_for=1.0)
    # What SQLite says when the disk is full, by a limit of its own.
    store._connection.execute("PRAGMA max_page_count = 8")
    long = replace(record(), windows=(WINDOW,) * 100)

    def add_many() -> None:
        for _ in range(20):
            store.add(long, None, stands_for=1.0)

    with pytest.raises(AuditStoreError, match="full"):
        add_many()
    store._connection.execute("PRAGMA max_page_count = 100000")
    kept = len(list(read_audits(path)))
    store.add(record(), None, stands_for=1.0)
    assert len(list(read_audits(path))) == kept + 1
    store.close()
