"""What the device says about its releases: a retained message, metrics, log lines, health.

Inputs: each `Progress` of the follower, and the failures that only the agent sees. Outputs:
`ModelState` messages, at changes, and every few hours so that the broker does not forget them.
Neighbours: `release_life` owns it and calls `care`; the publisher reads the messages.

A release that was given up here stays said until something newer is being done: "active" with the
old one would hide why the new one is not in use.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from broker.errors import BrokerError
from broker.exchange import Publication
from broker.log import SafeLog
from edge_agent.cloud_messages import CloudSession
from edge_agent.release_metrics import ReleaseMetrics
from protocol.topics import ModelStateTopic
from releases.progress import Progress

PROGRESS_SECONDS = 5.0
"""How often a download's progress alone is worth a message."""
REPEAT_SECONDS = 6 * 3_600.0
STATE_EXPIRY_SECONDS = 7 * 24 * 3_600

_log = SafeLog(__name__)


class ReleaseReports:
    """Says what is true; safe for any thread. `current` is the digest that answers now.

    `clock` is monotonic, `wall_clock` gives unix seconds.
    """

    def __init__(
        self,
        session: CloudSession,
        edge: str,
        metrics: ReleaseMetrics,
        current: Callable[[], str | None],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._session, self._edge, self._metrics = session, edge, metrics
        self._current, self._clock, self._wall_clock = current, clock, wall_clock
        self._lock = threading.Lock()
        self._latest = Progress("init")
        self._given_up: Progress | None = None
        self._published: Progress | None = None
        self._published_at = -REPEAT_SECONDS

    def take(self, progress: Progress) -> None:
        """Something changed: say so where that is due."""
        with self._lock:
            given_up = self._given_up
            if given_up is not None and progress.state in ("init", "active"):
                if progress.release == given_up.target:
                    given_up = None  # it is in use after all
            else:
                given_up = None
            self._given_up = given_up
            is_new = self._say(given_up or progress)
            if is_new and progress.state == "failed":
                self._metrics.note_failure(progress.reason_code or "failed")
        if is_new:
            self._write_line(self._latest)
        self.care()

    def give_up(self, progress: Progress) -> None:
        """A release was given up, now or by an earlier process; said until something newer is."""
        with self._lock:
            self._given_up = progress
            self._say(progress)
        self._write_line(progress)
        self.care()

    def connection_changed(self, is_connected: bool) -> None:
        """A new connection: a broker that was restarted may have forgotten; `care` says it again.

        Called on the session's thread, and quick.
        """
        if is_connected:
            self._published = None

    def care(self) -> None:
        """Publish what is due, if anything is; called now and then."""
        with self._lock:
            if not self._is_due() or not self._session.is_connected:
                return
            latest = self._latest
            try:
                self._session.publish(
                    Publication(
                        str(ModelStateTopic(self._edge)),
                        latest.model_state(self._wall_clock()).encode(),
                        retain=True,
                        expiry_seconds=STATE_EXPIRY_SECONDS,
                    )
                )
            except BrokerError:  # tried again with the next `care`
                return
            self._published, self._published_at = latest, self._clock()

    def health(self) -> dict[str, Any]:
        """The same for `GET /healthz`."""
        return asdict(self._latest)

    def _say(self, progress: Progress) -> bool:
        """With the lock held: from now on this is what is true; whether it is news."""
        if progress.release is None:
            progress = replace(progress, release=self._current())
        is_new = _kind(progress) != _kind(self._latest)
        self._latest = progress
        self._metrics.note(progress)
        return is_new

    def _is_due(self) -> bool:
        if self._published is None:
            return True
        seconds = self._clock() - self._published_at
        if _kind(self._published) != _kind(self._latest) or seconds >= REPEAT_SECONDS:
            return True
        return self._published != self._latest and seconds >= PROGRESS_SECONDS

    def _write_line(self, progress: Progress) -> None:
        write = _log.error if progress.state == "failed" else _log.info
        write(
            "release",
            state=progress.state,
            release=progress.release,
            version=progress.version,
            target=progress.target,
            target_version=progress.target_version,
            reason_code=progress.reason_code,
            reason=progress.reason,
            total_bytes=progress.total_bytes,
        )


def _kind(progress: Progress) -> Progress:
    """A progress less the bytes that have come so far."""
    return replace(progress, done_bytes=0)
