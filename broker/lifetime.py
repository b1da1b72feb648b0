"""The stages of one connection: opening, ready, ended with its first cause.

Inputs: what paho's thread and the session's threads learn. Outputs: the stage, and ways to wait for
the next one. Neighbour: `connection` has one. Thread-safe; a stage never comes back.
"""

from __future__ import annotations

import threading

from broker.errors import ConnectFailed


class Lifetime:
    """Opening until `become_ready`, over from `end` on."""

    def __init__(self) -> None:
        self.failure: ConnectFailed | None = None
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._settled = threading.Event()  # ready or ended, whichever comes first
        self._ended = threading.Event()

    @property
    def was_ready(self) -> bool:
        """Whether it ever was."""
        return self._ready.is_set()

    @property
    def is_ready(self) -> bool:
        """Ready, and not ended."""
        return self._ready.is_set() and not self._ended.is_set()

    def become_ready(self) -> None:
        """The broker has granted everything."""
        self._ready.set()
        self._settled.set()

    def end(self, failure: ConnectFailed) -> bool:
        """Note the end with its cause; False, and nothing noted, where it has ended before."""
        with self._lock:
            if self._ended.is_set():
                return False
            self.failure = failure
            self._ended.set()
        self._settled.set()
        return True

    def wait_settled(self, timeout_seconds: float) -> bool:
        """Whether it was ready or ended within `timeout_seconds`."""
        return self._settled.wait(timeout_seconds)

    def wait_ended(self, timeout_seconds: float) -> bool:
        """Whether it ended within `timeout_seconds`."""
        return self._ended.wait(timeout_seconds)
