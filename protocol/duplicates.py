"""Repeated requests: the same bytes get the same answer, other bytes under the same id none.

An edge sends a request again when it hears nothing, so a worker sees ids twice. `DuplicateGuard`
remembers, per edge and request, a digest of the bytes and, once sealed, the answer. It is bounded
in entries and in answer bytes: expired entries go first, then the oldest. A forgotten duplicate
costs a second computation, never a wrong answer. Thread-safe.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from protocol.errors import ConflictingDuplicate
from protocol.sealing import CLOCK_SKEW_SECONDS

DEFAULT_CAPACITY = 10_000
DEFAULT_ANSWER_BYTES = 64 * 1024 * 1024


class Seen(Enum):
    """Where a request stands."""

    NEW = "new"
    IN_PROGRESS = "in_progress"
    ANSWERED = "answered"


@dataclass(frozen=True)
class Verdict:
    """NEW: take it. IN_PROGRESS: say accepted again. ANSWERED: publish `answer` again."""

    seen: Seen
    answer: bytes | None = None


@dataclass
class _Entry:
    digest: bytes
    forget_at: float
    answer: bytes | None = None


class DuplicateGuard:
    """Remembers requests until their deadline, at most `capacity` of them.

    `clock` gives unix seconds, `answer_bytes` bounds the cached answers' total size.
    """

    def __init__(
        self,
        capacity: int = DEFAULT_CAPACITY,
        answer_bytes: int = DEFAULT_ANSWER_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if capacity < 1 or answer_bytes < 0:
            raise ValueError("capacity must be at least 1 and answer_bytes at least 0")
        self._capacity = capacity
        self._answer_bytes = answer_bytes
        self._clock = clock
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def check(self, edge: str, request: str, payload: bytes, deadline: float) -> Verdict:
        """Look a request up, and note it as in progress if it is new.

        `payload` are the sealed bytes as received, `deadline` the header's, in unix seconds.
        Raises ConflictingDuplicate when the id came before with other bytes. Call it only with a
        request that was opened: an unproved one must not occupy an id.
        """
        digest = hashlib.sha256(payload).digest()
        key = (edge, request)
        with self._lock:
            self._drop_expired()
            entry = self._entries.get(key)
            if entry is None:
                self._make_room()
                self._entries[key] = _Entry(digest, deadline + CLOCK_SKEW_SECONDS)
                return Verdict(Seen.NEW)
            if entry.digest != digest:
                raise ConflictingDuplicate(
                    f"request {request} of edge {edge!r} came before with other bytes; "
                    "a new question needs a new id"
                )
            if entry.answer is None:
                return Verdict(Seen.IN_PROGRESS)
            return Verdict(Seen.ANSWERED, entry.answer)

    def remember(self, edge: str, request: str, answer: bytes) -> None:
        """Keep the sealed answer for the next copy; a no-op for a forgotten request.

        An answer larger than the whole bound is not kept: the next copy is computed again.
        """
        with self._lock:
            entry = self._entries.get((edge, request))
            if entry is None:
                return
            if len(answer) > self._answer_bytes:
                self._remove((edge, request))
                return
            self._held_bytes += len(answer) - len(entry.answer or b"")
            entry.answer = answer
            self._entries.move_to_end((edge, request))
            while self._held_bytes > self._answer_bytes:
                self._remove(next(key for key, item in self._entries.items() if item.answer))

    def forget(self, edge: str, request: str) -> None:
        """Drop a request that was not taken after all (busy), so that a copy counts as new."""
        with self._lock:
            if (edge, request) in self._entries:
                self._remove((edge, request))

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    @property
    def held_bytes(self) -> int:
        """Total size of the cached answers."""
        with self._lock:
            return self._held_bytes

    def _drop_expired(self) -> None:
        now = self._clock()
        expired = [key for key, entry in self._entries.items() if entry.forget_at < now]
        for key in expired:
            self._remove(key)

    def _make_room(self) -> None:
        """The oldest answered request goes first, then the oldest at all."""
        while len(self._entries) >= self._capacity:
            answered = (key for key, entry in self._entries.items() if entry.answer is not None)
            self._remove(next(answered, next(iter(self._entries))))

    def _remove(self, key: tuple[str, str]) -> None:
        entry = self._entries.pop(key)
        self._held_bytes -= len(entry.answer or b"")
