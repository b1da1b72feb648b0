"""The outbox: every accepted question until its retention ends, in one SQLite file.

Inputs: questions as they are accepted, outcomes as they are reached. Outputs: what is pending after
a restart, what became of an id. Neighbours: `agent` and `ending` use it, `outbox_file` opens the
file and knows its format.

What it promises:

- `accept` returns only after the question is synced to the disk, so a question that was accepted
  survives `kill -9` and a power cut.
- `conclude` says yes exactly once for each question, so there is exactly one final answer.
- The text of question and passage leaves the table in the same transaction that stores the outcome
  (`secure_delete` overwrites it there). Its copy in SQLite's write-ahead log stays until the next
  `checkpoint`, which the agent calls within about a second. The outcome itself is erased
  `retention_seconds` later.
- The file is readable by its owner only, and belongs to one process at a time.

Hidden states are not stored: a restarted agent reads the question again, which costs a few layers
and spares the flash memory a hundred kilobytes for every question.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_agent.errors import ConflictingQuestion, OutboxDamaged, OutboxError
from edge_agent.outbox_file import SCHEMA_VERSION, open_outbox_file, translated
from edge_agent.questions import Outcome, Question, decode_outcome, encode_outcome


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
        self._connection = open_outbox_file(path)
        self._fault: OutboxError | None = None
        self._has_old_pages = True  # of an earlier process, perhaps
        self._pending = 0
        self._pending = self._count_pending()

    @property
    def pending_count(self) -> int:
        """How many accepted questions have no final answer yet."""
        return self._pending

    @property
    def fault(self) -> OutboxError | None:
        """Why the file could not be used last time; None again once something was written.

        A damaged file stays at fault: what it still takes may be lost with it.
        """
        return self._fault

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
            self._has_old_pages |= is_first
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

    def pending(self) -> list[tuple[str, int, float]]:
        """At a start: (request id, generation, deadline in unix seconds) of all that is pending.

        Those whose reading was interrupted least often come first, then the oldest, so that a
        question that kills the process is read after all that do not.
        """
        with self._transaction() as cursor:
            rows = cursor.execute(
                "SELECT request_id, generation, created + deadline_seconds FROM questions "
                "WHERE concluded IS NULL ORDER BY generation, created"
            ).fetchall()
        return [(str(row[0]), int(row[1]), float(row[2])) for row in rows]

    def count_begun(self, request_id: str) -> None:
        """Raise a pending question's generation, on the disk on return: its reading begins.

        For questions of an earlier process only. A question that kills the process every time can
        so be told from one that merely waited while that happened.
        """
        self._add_to_generation(request_id, 1)

    def count_ended(self, request_id: str) -> None:
        """Take back one `count_begun`: the reading ended, though the question is still pending."""
        self._add_to_generation(request_id, -1)

    def forget_generations(self) -> None:
        """At a clean stop: no pending question had anything to do with an end of the process."""
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE questions SET generation = 0 WHERE concluded IS NULL AND generation > 0"
            )

    def checkpoint(self) -> None:
        """Move the write-ahead log into the table's pages and empty it, if texts are left there."""
        if self._has_old_pages:
            with self._lock, self._watched():
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._has_old_pages = False

    def try_writing(self) -> None:
        """Write something that changes nothing, to see whether the disk takes it again."""
        with self._transaction() as cursor:
            cursor.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._note_written()

    def purge(self, concluded_before: float) -> int:
        """Delete what was concluded before this unix time and empty the log file; how many."""
        with self._transaction() as cursor:
            cursor.execute("DELETE FROM questions WHERE concluded < ?", (concluded_before,))
            deleted = cursor.rowcount
            self._has_old_pages |= deleted > 0
        self.checkpoint()
        return deleted

    def close(self) -> None:
        """Close the file; pending questions stay for the next start."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        with self._lock, self._watched():
            cursor = self._connection.cursor()
            changes_before = self._connection.total_changes
            cursor.execute("BEGIN IMMEDIATE")
            pending_before = self._pending
            try:
                yield cursor
                cursor.execute("COMMIT")
            except BaseException:
                self._pending = pending_before
                if self._connection.in_transaction:
                    cursor.execute("ROLLBACK")
                raise
            if self._connection.total_changes > changes_before:
                self._note_written()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Translate SQLite's errors and remember them."""
        try:
            with translated(self.path):
                yield
        except OutboxError as error:
            if not isinstance(self._fault, OutboxDamaged):
                self._fault = error
            raise

    def _note_written(self) -> None:
        if not isinstance(self._fault, OutboxDamaged):
            self._fault = None

    def _add_to_generation(self, request_id: str, number: int) -> None:
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE questions SET generation = max(generation + ?, 0) "
                "WHERE request_id = ? AND concluded IS NULL",
                (number, request_id),
            )

    def _count_pending(self) -> int:
        with self._transaction() as cursor:
            row = cursor.execute(
                "SELECT count(*) FROM questions WHERE concluded IS NULL"
            ).fetchone()
        return int(row[0])
