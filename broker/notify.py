"""What a service tells the manager that started it (systemd's `Type=notify`), if there is one.

    READY=1       it serves; `systemctl start` returns, and what waits for it begins
    WATCHDOG=1    it has made progress; without one for `WatchdogSec` it is killed and started again
    STOPPING=1    it ends on purpose

Inputs: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`, which the manager sets; whether the
service is sound, from its own loop. Output: datagrams. Without the variables nothing is sent.
Neighbours: `edge_agent.service`, `cloud_worker.agent` and `publisher.service` feed it.

The protocol is that of sd_notify(3) and sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

from broker.log import SafeLog

FEEDS_EACH_INTERVAL = 4
"""So that three late ones in a row are no reason to be killed."""

_log = SafeLog(__name__)


class ServiceManager:
    """The line to the service manager; no call raises, and none waits.

    `clock` is monotonic. For one thread at a time.
    """

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._feed_seconds = _watchdog_seconds(environment) / FEEDS_EACH_INTERVAL
        self._clock = clock
        self._fed_at = float("-inf")
        self._is_silent = False

    def ready(self) -> None:
        """The service takes work now."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The service was told to stop, and does."""
        self._send("STOPPING=1")

    def feed(self, is_sound: bool) -> None:
        """Call often, from the loop that must not stand still: passes on that it goes on.

        A service that is not sound sends nothing, and is started again when the time is over.
        """
        if not self._feed_seconds:
            return
        if not is_sound:
            if not self._is_silent:
                _log.error(
                    "watchdog_not_fed", restart_seconds=self._feed_seconds * FEEDS_EACH_INTERVAL
                )
            self._is_silent = True
            return
        self._is_silent = False
        now = self._clock()
        if now - self._fed_at >= self._feed_seconds:
            self._fed_at = now
            self._send("WATCHDOG=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
                line.setblocking(False)
                line.connect(self._address)
                line.send(state.encode("ascii"))
        except OSError as error:
            _log.warning("service_manager_not_told", state=state, error=error.strerror)


def _address(given: str) -> str:
    """A path, or an abstract socket, whose "@" stands for a zero byte; else nothing."""
    if given.startswith("@"):
        return f"\0{given[1:]}"
    return given if given.startswith("/") else ""


def _watchdog_seconds(environment: Mapping[str, str]) -> float:
    """How long the manager waits for a sign of life; 0 when it asks this process for none."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    given = environment.get("WATCHDOG_USEC", "")
    return int(given) / 1e6 if given.isascii() and given.isdecimal() else 0.0
