"""The one MQTT session of the device, and who gets what comes over it.

Inputs: deliveries and connection changes of the session. Outputs: each delivery goes to the first
listener that takes it, each change to all of them. Neighbours: `offload` listens for workers'
words, `releases.follower` for releases; `service` makes the session, `agent` starts and stops this.

A listener's `take` is called on this file's thread and is quick, or waits for room: then the
session leaves further messages with the broker. What nobody takes is acknowledged and forgotten.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from broker.exchange import Delivery
from broker.log import SafeLog
from edge_agent.cloud_messages import CloudSession

RECEIVE_SECONDS = 1.0

_log = SafeLog(__name__)


@dataclass(frozen=True)
class Listener:
    """One part of the agent that lives by the session.

    `take` says whether a delivery was its own; whoever takes one acknowledges it.
    `connection_changed` hears True or False; both return at once.
    """

    take: Callable[[Delivery], bool]
    connection_changed: Callable[[bool], None]


class Link:
    """Receives for all listeners; `add` them before `start`; `start` and `stop` once each."""

    def __init__(self, session: CloudSession) -> None:
        self.session = session
        self._listeners: list[Listener] = []
        self._is_stopping = threading.Event()
        self._receiver = threading.Thread(target=self._receive, name="elma-receive", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether the receiver runs."""
        return self._receiver.is_alive()

    def add(self, listener: Listener) -> None:
        """One more; deliveries are offered in the order of adding."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Connect, in the background, and begin to receive."""
        self.session.on_connection_change = self._connection_changed
        self.session.start()
        self._receiver.start()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Disconnect and receive nothing any more."""
        self._is_stopping.set()
        self.session.stop()
        if self._receiver.ident is not None:
            self._receiver.join(timeout_seconds)

    def _connection_changed(self, is_connected: bool) -> None:
        for listener in self._listeners:
            try:
                listener.connection_changed(is_connected)
            except Exception as error:
                _log.error("connection_change_failed", error_type=type(error).__name__)

    def _receive(self) -> None:
        while not self._is_stopping.is_set():
            try:
                delivery = self.session.receive(RECEIVE_SECONDS)
                if delivery is not None:
                    self._offer(delivery)
            except Exception as error:
                # Session and listeners handle their own errors; this keeps the thread alive.
                _log.error("receive_failed", error_type=type(error).__name__)
                self._is_stopping.wait(RECEIVE_SECONDS)

    def _offer(self, delivery: Delivery) -> None:
        if not any(listener.take(delivery) for listener in self._listeners):
            self.session.acknowledge(delivery)
