"""The outbox: every accepted question until its retention ends, in one SQLite file.

Inputs: questions as they are accepted, outcomes as they are reached. Outputs: what is pending after
a restart, what became of an id. Neighbours: `agent` is its only user.

What it promises:

- `accept` returns only after the question is synced to the disk, so a question that was accepted
  survives `kill -9` and a power cut.
- `conclude` says yes exactly once for each question, so there is exactly one final answer.
- The text of question and passage is erased in the same transaction that stores the outcome
  (`secure_delete` overwrites it), the outcome itself `retention_seconds` later.
- The file is readable by its owner only, and belongs to one process at a time.

Hidden states are not stored: a restarted agent reads the question again, which costs a few layers
and spares the flash memory a hundred kilobytes for every question.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_agent.errors import ConflictingQuestion, OutboxError, OutboxInUse
from edge_agent.questions import Outcome, Question, decode_outcome, encode_outcome

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE questions (
    request_id       TEXT PRIMARY KEY,
    fingerprint      BLOB NOT NULL,
    question         TEXT,              -- NULL once concluded
    passage          TEXT,              -- NULL once concluded
    top_k            INTEGER NOT NULL,
    deadline_seconds REAL NOT NULL,
    created          REAL NOT NULL,     -- unix seconds
    generation       INTEGER NOT NULL,  -- restarts that found it pending
    outcome          TEXT,              -- JSON; NULL while pending
    concluded        REAL               -- unix seconds; NULL while pending
) STRICT;
CREATE INDEX pending ON questions (created) WHERE concluded IS NULL;
CREATE INDEX concluded ON questions (concluded) WHERE concluded IS NOT NULL;
"""


@dataclass(frozen=True)
class Entry:
    """What the outbox knows of an id; `outcome` is None while the question is pending."""

    request_id: str
    outcome: Outcome | None


class Outbox:
    """The durable list of questions; every method may be called from any thread.

    Raises OutboxError when the file cannot be used, OutboxInUse when another process has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._connection = _open(path)
        self._pending = self._count_pending()

    @property
    def pending_count(self) -> int:
        """How many accepted questions have no final answer yet."""
        return self._pending

    def accept(self, question: Question) -> bool:
        """Store a question; True when it is new, False when the same one is already stored.

        Synced to disk on return. Raises ConflictingQuestion when its id has other content.
        """
        with self._transaction() as cursor:
            row = cursor.execute(
                "SELECT fingerprint FROM questions WHERE request_id = ?", (question.request_id,)
            ).fetchone()
            if row is not None:
                if row[0] == question.fingerprint:
                    return False
                raise ConflictingQuestion(
                    f"request {question.request_id}: this id was used for a question with other "
                    "content; choose a new request_id"
                )
            cursor.execute(
                "INSERT INTO questions VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
                (
                    question.request_id,
                    question.fingerprint,
                    question.question,
                    question.passage,
                    question.top_k,
                    question.deadline_seconds,
                    question.created,
                    question.generation,
                ),
            )
            self._pending += 1
        return True

    def conclude(self, request_id: str, outcome: Outcome, now: float) -> bool:
        """Store the final outcome and erase the texts; False when there was one already."""
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE questions SET outcome = ?, concluded = ?, question = NULL, passage = NULL "
                "WHERE request_id = ? AND concluded IS NULL",
                (encode_outcome(outcome), now, request_id),
            )
            is_first = cursor.rowcount == 1
            self._pending -= is_first
        return is_first

    def find(self, request_id: str) -> Entry | None:
        """What is known of an id, or None."""
        with self._transaction() as cursor:
            row = cursor.execute(
                "SELECT outcome FROM questions WHERE request_id = ?", (request_id,)
            ).fetchone()
        if row is None:
            return None
        return Entry(request_id, None if row[0] is None else decode_outcome(row[0]))

    def pending_question(self, request_id: str) -> Question | None:
        """The stored question while it is pending, else None."""
        with self._transaction() as cursor:
            row = cursor.execute(
                "SELECT request_id, question, passage, top_k, deadline_seconds, created, generation"
                " FROM questions WHERE request_id = ? AND concluded IS NULL",
                (request_id,),
            ).fetchone()
        return None if row is None else Question(*row)

    def take_up_pending(self) -> list[tuple[str, int]]:
        """At a start: (request id, generation) of all that an earlier process left, oldest first.

        Each one's generation is raised by one, so that a question which kills the process every
        time can be told from one that was merely interrupted.
        """
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE questions SET generation = generation + 1 WHERE concluded IS NULL"
            )
            rows = cursor.execute(
                "SELECT request_id, generation FROM questions WHERE concluded IS NULL "
                "ORDER BY created"
            ).fetchall()
        return [(str(request_id), int(generation)) for request_id, generation in rows]

    def purge(self, concluded_before: float) -> int:
        """Delete what was concluded before this unix time and empty the log file; how many."""
        with self._transaction() as cursor:
            cursor.execute("DELETE FROM questions WHERE concluded < ?", (concluded_before,))
            deleted = cursor.rowcount
        with self._lock, _translated(self.path):
            # Old pages live on in the write-ahead log until it is truncated.
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return deleted

    def close(self) -> None:
        """Close the file; pending questions stay for the next start."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        with self._lock, _translated(self.path):
            cursor = self._connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            pending_before = self._pending if hasattr(self, "_pending") else 0
            try:
                yield cursor
                cursor.execute("COMMIT")
            except BaseException:
                self._pending = pending_before
                if self._connection.in_transaction:
                    cursor.execute("ROLLBACK")
                raise

    def _count_pending(self) -> int:
        with self._transaction() as cursor:
            row = cursor.execute(
                "SELECT count(*) FROM questions WHERE concluded IS NULL"
            ).fetchone()
        return int(row[0])


def _open(path: Path) -> sqlite3.Connection:
    """Open or create the file, for its owner only, with the lock of this process on it."""
    try:
        if path.exists():
            # By name: closing a second descriptor would drop SQLite's lock on the file.
            path.chmod(0o600)
        else:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise OutboxError(
            f"outbox {path} cannot be opened ({error.strerror}); "
            "set `outbox` to a file in a folder that the agent may write"
        ) from error
    with _translated(path):
        connection = sqlite3.connect(
            path, timeout=0.5, isolation_level=None, check_same_thread=False
        )
        try:
            # EXCLUSIVE: SQLite itself keeps a second agent out, and lets go when we are killed.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                connection.executescript(
                    f"BEGIN EXCLUSIVE; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;"
                )
            elif version != _SCHEMA_VERSION:
                raise OutboxError(
                    f"outbox {path} has format {version}, this agent writes {_SCHEMA_VERSION}; "
                    "move the file away or run the version that wrote it"
                )
        except BaseException:
            connection.close()
            raise
    return connection


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours, once."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise OutboxInUse(
                f"outbox {path} belongs to another running agent; stop it or set another `outbox`"
            ) from error
        raise OutboxError(
            f"outbox {path} cannot be used ({error}); check the disk and its free space"
        ) from error
    except sqlite3.Error as error:
        raise OutboxError(
            f"outbox {path} is damaged or closed ({error}); move it away to start a new one"
        ) from error
