"""Who waits for which answer: futures by request id, settled once.

Inputs: request ids that somebody waits for, outcomes, provisional answers. Output: a future for
each waiting id. Neighbours: `app` waits, `agent` settles. The outbox stays the truth; this only
spares the waiting ones from asking it again and again. Bounded by the number of pending questions.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future

from edge_agent.questions import FinalAnswer, Outcome


class AnswerBoard:
    """Futures and provisional answers of pending questions; safe for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._futures: dict[str, Future[Outcome]] = {}
        self._provisional: dict[str, FinalAnswer] = {}

    def expect(self, request_id: str) -> Future[Outcome]:
        """The future of an id; the same one for all who ask."""
        with self._lock:
            return self._futures.setdefault(request_id, Future())

    def note_provisional(self, answer: FinalAnswer) -> None:
        """Keep the device's best so far, until the question is settled."""
        with self._lock:
            self._provisional[answer.request_id] = answer

    def provisional(self, request_id: str) -> FinalAnswer | None:
        """The device's best so far for a pending question, if there is one."""
        with self._lock:
            return self._provisional.get(request_id)

    def settle(self, outcome: Outcome) -> None:
        """Hand an outcome to all who wait for it; without anybody waiting it does nothing."""
        with self._lock:
            self._provisional.pop(outcome.request_id, None)
            future = self._futures.pop(outcome.request_id, None)
        if future is not None and not future.done():
            future.set_result(outcome)

    def forget(self, request_id: str) -> None:
        """Drop the future of an id that turned out not to be stored."""
        with self._lock:
            self._futures.pop(request_id, None)

    def abandon(self, error: Exception) -> None:
        """Tell all who wait that no answer comes from this process any more."""
        with self._lock:
            futures = list(self._futures.values())
            self._futures.clear()
            self._provisional.clear()
        for future in futures:
            if not future.done():
                future.set_exception(error)
