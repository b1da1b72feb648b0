"""What other threads hand to the offload thread: submissions, deliveries, connection changes.

Inputs: the inference thread submits, the network thread notes connection changes, a receiver thread
of this file takes deliveries from the session. Output: `collect`, which waits until something
happened. Every queue has a bound; a full one of deliveries holds the receiver back, and with it the
session, which then leaves messages with the broker.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from broker.exchange import Delivery
from broker.log import SafeLog
from edge_agent.cloud_messages import CloudSession

DELIVERIES_BOUND = 256
CHANGES_BOUND = 64
RECEIVE_SECONDS = 1.0

_log = SafeLog(__name__)
_Submission = TypeVar("_Submission")


@dataclass(frozen=True)
class Taken(Generic[_Submission]):
    """Everything that happened since the last `collect`, in the order in which it is handled."""

    connection_changes: list[bool]
    submissions: list[_Submission]
    deliveries: list[Delivery]


class Intake(Generic[_Submission]):
    """One consumer, many producers. The number of submissions is bounded by who submits."""

    def __init__(self, session: CloudSession) -> None:
        self._session = session
        self._happened = threading.Condition()
        self._changes: deque[bool] = deque(maxlen=CHANGES_BOUND)
        self._submissions: deque[_Submission] = deque()
        self._deliveries: deque[Delivery] = deque()
        self._is_stopping = False
        self._receiver = threading.Thread(target=self._receive, name="elma-receive", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether the receiver runs."""
        return self._receiver.is_alive()

    def start(self) -> None:
        """Begin to receive."""
        self._receiver.start()

    def close(self) -> None:
        """Wake whoever waits; nothing is received any more."""
        with self._happened:
            self._is_stopping = True
            self._happened.notify_all()

    def join(self, timeout_seconds: float) -> None:
        """Wait for the receiver to end, which it does once the session is stopped."""
        if self._receiver.ident is not None:
            self._receiver.join(timeout_seconds)

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

    def collect(self, wait_seconds: float) -> Taken[_Submission]:
        """All that happened; waits for something up to `wait_seconds`."""
        with self._happened:
            if not (self._changes or self._submissions or self._deliveries or self._is_stopping):
                self._happened.wait(wait_seconds)
            taken = Taken(list(self._changes), list(self._submissions), list(self._deliveries))
            self._changes.clear()
            self._submissions.clear()
            self._deliveries.clear()
            self._happened.notify_all()  # the receiver may wait for room
        return taken

    def _receive(self) -> None:
        while not self._is_stopping:
            try:
                delivery = self._session.receive(RECEIVE_SECONDS)
            except Exception as error:
                # The session handles its own errors; this keeps the thread alive if it does not.
                _log.error("receive_failed", error_type=type(error).__name__)
                self._pause()
                continue
            if delivery is not None:
                self._keep(delivery)

    def _keep(self, delivery: Delivery) -> None:
        with self._happened:
            while len(self._deliveries) >= DELIVERIES_BOUND and not self._is_stopping:
                self._happened.wait(RECEIVE_SECONDS)
            self._deliveries.append(delivery)
            self._happened.notify_all()

    def _pause(self) -> None:
        with self._happened:
            self._happened.wait_for(lambda: self._is_stopping, RECEIVE_SECONDS)
