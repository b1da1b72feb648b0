"""What has to be done again and again: erase, store what could not be stored, read what was missed.

Inputs: the outbox, the ending, a function that queues missed readings again, one that rests after
work. Output: a thread that calls them every second until `stop`. Neighbour: `agent` starts and
stops it.

A disk that was full for a while is noticed here when it has room again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from broker.log import SafeLog
from edge_agent.ending import Ending, describe_fault
from edge_agent.errors import OutboxError
from edge_agent.outbox import Outbox

INTERVAL_SECONDS = 1.0

_log = SafeLog(__name__)


class Housekeeping:
    """One thread; `start` and `stop` once each. `clock` gives unix seconds."""

    def __init__(
        self,
        outbox: Outbox,
        ending: Ending,
        read_missed: Callable[[], None],
        rest: Callable[[], None],
        *,
        retention_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._outbox, self._ending = outbox, ending
        self._read_missed, self._rest = read_missed, rest
        self._retention_seconds, self._clock = retention_seconds, clock
        self._purge_seconds = min(max(retention_seconds / 4, 0.1), 60.0)
        self._next_purge = clock() + self._purge_seconds
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="elma-housekeeping", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after what is in hand."""
        self._is_stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5.0)

    def tidy(self) -> None:
        """One round. Raises OutboxError."""
        self._rest()
        self._ending.store_again()
        if self._outbox.fault is not None:
            self._outbox.try_writing()
        self._read_missed()
        now = self._clock()
        # A clock that was set back must not put the erasing off.
        if not self._next_purge - self._purge_seconds <= now < self._next_purge:
            self._next_purge = now + self._purge_seconds
            self._outbox.purge(now - self._retention_seconds)
        self._outbox.checkpoint()

    def _run(self) -> None:
        has_failed = False
        while not self._is_stopping.wait(INTERVAL_SECONDS):
            try:
                self.tidy()
                has_failed = False
            except Exception as error:
                fault = str(error) if isinstance(error, OutboxError) else describe_fault(error)
                if not has_failed:  # one line for a full disk, not one a second
                    _log.error("housekeeping_failed", error=fault)
                has_failed = True
