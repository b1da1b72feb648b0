"""What other threads hand to the offload thread: submissions, deliveries, connection changes.

Inputs: the inference thread submits, the session's thread notes connection changes, the link's
thread keeps deliveries. Output: `collect`, which waits until something happened. Every queue has a
bound; a full one of deliveries holds the link back, and with it the session, which then leaves
messages with the broker.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from broker.exchange import Delivery

DELIVERIES_BOUND = 256
CHANGES_BOUND = 64
ROOM_SECONDS = 1.0

_Submission = TypeVar("_Submission")


@dataclass(frozen=True)
class Taken(Generic[_Submission]):
    """Everything that happened since the last `collect`, in the order in which it is handled."""

    connection_changes: list[bool]
    submissions: list[_Submission]
    deliveries: list[Delivery]


class Intake(Generic[_Submission]):
    """One consumer, many producers. The number of submissions is bounded by who submits."""

    def __init__(self) -> None:
        self._happened = threading.Condition()
        self._changes: deque[bool] = deque(maxlen=CHANGES_BOUND)
        self._submissions: deque[_Submission] = deque()
        self._deliveries: deque[Delivery] = deque()
        self._is_closed = False

    def close(self) -> None:
        """Wake whoever waits; deliveries are forgotten from now on."""
        with self._happened:
            self._is_closed = True
            self._happened.notify_all()

    def submit(self, submission: _Submission) -> None:
        """Hand something over."""
        with self._happened:
            self._submissions.append(submission)
            self._happened.notify_all()

    def note_connection(self, is_connected: bool) -> None:
        """The session's connection changed; returns at once, as its hook must."""
        with self._happened:
            self._changes.append(is_connected)
            self._happened.notify_all()

    def keep(self, delivery: Delivery) -> bool:
        """Hand a delivery over, when there is room; True: it is taken, whatever it is."""
        with self._happened:
            while len(self._deliveries) >= DELIVERIES_BOUND and not self._is_closed:
                self._happened.wait(ROOM_SECONDS)
            if not self._is_closed:
                self._deliveries.append(delivery)
                self._happened.notify_all()
        return True

    def collect(self, wait_seconds: float) -> Taken[_Submission]:
        """All that happened; waits for something up to `wait_seconds`."""
        with self._happened:
            if not (self._changes or self._submissions or self._deliveries or self._is_closed):
                self._happened.wait(wait_seconds)
            taken = Taken(list(self._changes), list(self._submissions), list(self._deliveries))
            self._changes.clear()
            self._submissions.clear()
            self._deliveries.clear()
            self._happened.notify_all()  # whoever keeps deliveries may wait for room
        return taken
