"""The file of audits: every compared question with its numbers, and its text where that is wanted.

Inputs: `AuditRecord`s from `audit`. Outputs: the same, with their weights, for `elma errors`.
Neighbours: `audit` writes from its own thread, `elma.commands.errors` reads while it does.

- One SQLite file of mode 0600 in WAL mode, with at most `max_records` rows: half for each kind, so
  that the many offloaded questions do not push out the few sampled ones; the oldest go first, and
  `secure_delete` overwrites them.
- With text kept, question and passage stand in it in clear. Without, it holds scores, layers,
  the times of questions and the characters at which answers stood in passages that are not there.
- Beside the rows it counts, for each release and kind, how many questions they stand for, lost
  comparisons included: a row's weight is that number over the rows that are left. So a sampled row
  weighs 1 / rate and an offloaded one 1, while nothing is lost.
- It may lose its last rows in a power cut, and a damaged file or a full disk raises
  `AuditStoreError`: no answer depends on it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edge_agent.errors import EdgeError
from reader.exit_traces import AuditRecord, windows_as_json, windows_from_json

FORMAT = 1
LONGEST_TEXT_CHARACTERS = 20_000
"""A longer passage is not kept, so that a bound on rows is one on bytes: the rest of it is."""

_APPLICATION_ID = 0x656C6D61  # "elma"
_SCHEMA = """
CREATE TABLE records (
    number       INTEGER PRIMARY KEY,
    time         REAL NOT NULL,     -- unix seconds
    release      TEXT NOT NULL,
    kind         TEXT NOT NULL,
    agreed       INTEGER NOT NULL,
    exit_layer   INTEGER NOT NULL,  -- the deepest that the device's answer needed
    answer_start INTEGER NOT NULL,  -- characters of the passage, -1 for no answer
    answer_end   INTEGER NOT NULL,
    windows      TEXT NOT NULL,     -- JSON
    question     TEXT,              -- NULL unless text is kept
    passage      TEXT
) STRICT;
CREATE INDEX by_kind ON records (kind, number);
CREATE TABLE populations (
    release   TEXT NOT NULL,
    kind      TEXT NOT NULL,
    questions REAL NOT NULL,        -- how many the rows stand for, all in all
    PRIMARY KEY (release, kind)
) STRICT;
"""
_COLUMNS = "time, release, kind, windows, answer_start, answer_end, agreed, question, passage"


class AuditStoreError(EdgeError):
    """The file of audits cannot be opened, read or written; answering goes on without it."""


@dataclass(frozen=True)
class AuditText:
    """What was asked, of what; kept only with `keep_text`."""

    question: str
    passage: str

    def __repr__(self) -> str:
        """Without the text: a record must not carry it into a log by accident."""
        return "AuditText()"


@dataclass(frozen=True)
class StoredAudit:
    """A row: the record with its weight, and its text where that was kept."""

    record: AuditRecord
    text: AuditText | None


class AuditStore:
    """The file, open for writing; for one thread. Raises AuditStoreError."""

    def __init__(self, path: Path, *, max_records: int) -> None:
        self.path = path
        self._max_a_kind = max_records // 2
        self._connection = _open_for_writing(path)

    def add(self, record: AuditRecord, text: AuditText | None, *, stands_for: float) -> None:
        """Keep a record; it and what was lost before it stand for so many questions.

        The weight of a record is not stored: it follows from these numbers. Raises AuditStoreError.
        """
        if text is not None and len(text.passage) > LONGEST_TEXT_CHARACTERS:
            text = None
        with _translated(self.path), self._connection as connection:  # commits, or rolls back
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                f"INSERT INTO records ({_COLUMNS}, exit_layer) VALUES (?{', ?' * 9})",  # noqa: S608
                (
                    record.time,
                    record.release,
                    record.kind,
                    json.dumps(windows_as_json(record.windows), separators=(",", ":")),
                    *record.answer,
                    int(record.agreed),
                    text and text.question,
                    text and text.passage,
                    record.exit_layer,
                ),
            )
            connection.execute(
                "INSERT INTO populations VALUES (?, ?, ?) ON CONFLICT DO UPDATE "
                "SET questions = questions + excluded.questions",
                (record.release, record.kind, stands_for),
            )
            self._push_out(connection, record.kind)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _push_out(self, connection: sqlite3.Connection, kind: str) -> None:
        """The oldest rows of a kind past the bound, and the counts of releases without rows."""
        deleted = connection.execute(
            "DELETE FROM records WHERE kind = ? AND number <= (SELECT number FROM records "
            "WHERE kind = ? ORDER BY number DESC LIMIT 1 OFFSET ?)",
            (kind, kind, self._max_a_kind),
        ).rowcount
        if deleted:
            connection.execute(
                "DELETE FROM populations WHERE kind = ? AND release NOT IN "
                "(SELECT release FROM records WHERE kind = ?)",
                (kind, kind),
            )


def read_audits(path: Path) -> Iterator[StoredAudit]:
    """Every row, the oldest first, while an agent may be writing. Raises AuditStoreError."""
    with _translated(path), closing(_open_for_reading(path)) as connection:
        weights = _weights(connection)
        for row in connection.execute(f"SELECT {_COLUMNS} FROM records ORDER BY number"):  # noqa: S608
            stored = _stored(path, row)
            weight = weights[stored.record.release, stored.record.kind]
            yield replace(stored, record=replace(stored.record, weight=weight))


def _weights(connection: sqlite3.Connection) -> dict[tuple[str, str], float]:
    """How many questions a row of each release and kind stands for."""
    connection.execute("BEGIN")  # this and what follows look at one moment
    rows = connection.execute(
        "SELECT release, kind, questions / count(*) FROM records JOIN populations "
        "USING (release, kind) GROUP BY release, kind"
    )
    return {(str(release), str(kind)): float(weight) for release, kind, weight in rows}


def _stored(path: Path, row: tuple[object, ...]) -> StoredAudit:
    time, release, kind, windows, start, end, agreed, question, passage = row
    try:
        record = AuditRecord(
            time=float(time),  # type: ignore[arg-type]  # the table is STRICT
            release=str(release),
            kind="audit" if kind == "audit" else "offload",
            weight=1.0,
            windows=windows_from_json(json.loads(str(windows))),
            answer=(int(start), int(end)),  # type: ignore[call-overload]
            agreed=bool(agreed),
        )
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise _damaged(path, "a row cannot be read") from error
    has_text = question is not None and passage is not None
    return StoredAudit(record, AuditText(str(question), str(passage)) if has_text else None)


def _open_for_writing(path: Path) -> sqlite3.Connection:
    try:
        _make_or_refuse(path)
    except OSError as error:
        raise AuditStoreError(
            f"audit file {path} cannot be opened ({error.strerror}); "
            "set `audit.store_file` to a file in a folder that the agent may write"
        ) from error
    with _translated(path):
        connection = sqlite3.connect(
            path, timeout=2.0, isolation_level=None, check_same_thread=False
        )
        try:
            is_new = _check_format(connection, path)
            path.chmod(0o600)  # not before it is known to be ours
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA secure_delete = ON")
            if is_new:
                connection.executescript(
                    f"BEGIN EXCLUSIVE; {_SCHEMA} PRAGMA user_version = {FORMAT};"
                    f"PRAGMA application_id = {_APPLICATION_ID}; COMMIT;"
                )
        except BaseException:
            connection.close()
            raise
    return connection


def _open_for_reading(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise AuditStoreError(f"audit file {path} does not exist; name an agent's `store_file`")
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
    try:
        if _check_format(connection, path):
            raise AuditStoreError(f"audit file {path} is empty; no question was compared yet")
    except BaseException:
        connection.close()
        raise
    return connection


def _make_or_refuse(path: Path) -> None:
    """Make the file for its owner only; what is there already must be a plain file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        return
    if not stat.S_ISREG(mode):
        raise AuditStoreError(
            f"audit file {path} is a folder, a link or a device; set `audit.store_file` to a file "
            "of its own"
        )


def _check_format(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the file is empty; an error when it is not ours or of another format."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    owner = int(connection.execute("PRAGMA application_id").fetchone()[0])
    if (version, owner) == (0, 0):
        tables = int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
        if not tables:
            return True
    if owner != _APPLICATION_ID:
        raise AuditStoreError(
            f"audit file {path} is the database of another program; set `audit.store_file` to a "
            "file of its own"
        )
    if version != FORMAT:
        raise AuditStoreError(
            f"audit file {path} has format {version}, this program reads {FORMAT}; move it away"
        )
    return False


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours, once."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise AuditStoreError(
            f"audit file {path} cannot be used ({error}); check the disk and its free space, "
            "and that it is an agent's audit.store_file: a locked one may be its outbox"
        ) from error
    except sqlite3.Error as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, what: str) -> AuditStoreError:
    return AuditStoreError(f"audit file {path} is damaged ({what}); move it away to start anew")
