"""The publications of one connection that wait for the broker's acknowledgement.

A place is taken before a publication is handed to paho and freed by its acknowledgement, so paho
never holds more than the limit. Acknowledgements come on paho's thread and may overtake the call
that publishes. Thread-safe; calls nobody while it holds its lock.
"""

from __future__ import annotations

import threading

from broker.exchange import Outcome, Receipt


class InFlight:
    """At most `limit` publications; receipts by paho's message number (mid)."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._taken = 0
        self._receipts: dict[int, Receipt] = {}
        self._early: dict[int, tuple[Outcome, str]] = {}
        self._lost_because: str | None = None

    @property
    def count(self) -> int:
        """Publications that wait now."""
        with self._lock:
            return self._taken

    def take_place(self) -> bool:
        """Whether there was a place; it is taken now."""
        with self._lock:
            if self._taken >= self.limit:
                return False
            self._taken += 1
            return True

    def free_place(self) -> None:
        """Give back a place whose publication was not sent."""
        with self._lock:
            self._taken -= 1

    def register(self, mid: int) -> Receipt:
        """The receipt of a publication just sent; settled already if its outcome is known."""
        receipt = Receipt()
        with self._lock:
            known = self._early.pop(mid, None)
            if known is None and self._lost_because is not None:
                known = (Outcome.LOST, self._lost_because)
            if known is None:
                self._receipts[mid] = receipt
        if known is not None:
            receipt.settle(*known)
        return receipt

    def settle(self, mid: int, outcome: Outcome, reason: str) -> None:
        """The broker has spoken about `mid`: its place is free."""
        with self._lock:
            self._taken -= 1
            receipt = self._receipts.pop(mid, None)
            if receipt is None:
                self._early[mid] = (outcome, reason)
        if receipt is not None:
            receipt.settle(outcome, reason)

    def lose_all(self, reason: str) -> None:
        """The connection has ended: what is waiting, or registers from now on, is lost."""
        with self._lock:
            self._lost_because = reason
            lost = list(self._receipts.values())
            self._receipts.clear()
        for receipt in lost:
            receipt.settle(Outcome.LOST, reason)
