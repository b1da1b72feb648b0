"""What the device knows of the cloud: since when the broker, or every worker, is away.

Inputs: connections made and lost, presence messages, publications that nobody listened to, words
from workers; with each the time on a monotonic clock in seconds. Outputs: `broker_away_since`,
`workers_away_since`, and whether a question may be sent to try. Neighbours: `offload` feeds it,
`lease` asks it. No clock and no thread in here.

Why "since when", and not "is it there": the person at the device looks at a screen. If the broker
restarts, two seconds of patience give the better answer of the cloud; if it has been gone for an
hour, waiting gives nothing. Patience therefore runs from the moment the cloud went away, so that
one outage delays every question by no more than what is left of it, and in a long one every
question is finished on the device at once.

Presence only informs. A last will is slow, retained messages can be lost with their broker, and
anybody with a password of the broker can write one. Unknown workers therefore count as present; a
worker that is said to be gone is believed only when no sealed word came from any worker in the last
`SPOKE_RECENTLY_SECONDS`, and even then a question is still sent, only with less patience. That
nobody is there is certain when the broker says so, or when a question got no word either. Then one
question every `probe_seconds` is tried all the same.
"""

from __future__ import annotations

import math
from collections.abc import Collection

SPOKE_RECENTLY_SECONDS = 15.0


class CloudView:
    """The state of the cloud as far as it is known; the agent starts out disconnected at `now`."""

    def __init__(self, now: float, *, probe_seconds: float = 10.0) -> None:
        self.broker_away_since: float | None = now
        self.workers_away_since: float | None = None
        self.is_absence_certain = False
        self._spoke_at = -math.inf
        self._probe_seconds = probe_seconds
        self._next_probe = now
        self._workers: dict[str, bool] = {}

    def connected(self) -> None:
        """The session is up."""
        self.broker_away_since = None

    def disconnected(self, now: float) -> None:
        """The session is down; repeated calls keep the first time."""
        if self.broker_away_since is None:
            self.broker_away_since = now

    def worker_presence(self, worker: str, *, is_online: bool, now: float) -> None:
        """A presence message; at most 1,000 workers are remembered."""
        if worker in self._workers or len(self._workers) < 1_000:
            self._workers[worker] = is_online
        if is_online:
            self._found_worker()
        elif not any(self._workers.values()) and now >= self._spoke_at + SPOKE_RECENTLY_SECONDS:
            self._lost_workers(now)

    def worker_spoke(self, now: float) -> None:
        """A sealed message from a worker."""
        self._spoke_at = now
        self._found_worker()

    def nobody_listened(self, now: float) -> None:
        """The broker had no subscriber for a request: stronger than any presence message."""
        self._lost_workers(now)
        self.is_absence_certain = True

    def heard_nothing(self) -> None:
        """A request got no word in time: what presence said is certain now."""
        self.is_absence_certain = self.workers_away_since is not None

    def knows_only(self, workers: Collection[str]) -> bool:
        """Whether every worker that is said to be there is one of these, and there is one."""
        present = [worker for worker, is_online in self._workers.items() if is_online]
        return bool(present) and all(worker in workers for worker in present)

    def take_probe(self, now: float) -> bool:
        """Whether a question may be sent although no worker is known; True once per interval."""
        if now < self._next_probe:
            return False
        self._next_probe = now + self._probe_seconds
        return True

    def is_hopeless(self, now: float, cloud_wait_seconds: float) -> bool:
        """Whether a new request would be finished on the device without any attempt."""
        if self.broker_away_since is not None:
            return now >= self.broker_away_since + cloud_wait_seconds
        if self.workers_away_since is None or not self.is_absence_certain:
            return False
        if now < self._next_probe:
            return now >= self.workers_away_since + cloud_wait_seconds
        return False

    def _found_worker(self) -> None:
        self.workers_away_since = None
        self.is_absence_certain = False

    def _lost_workers(self, now: float) -> None:
        if self.workers_away_since is None:
            self.workers_away_since = now
            self._next_probe = now + self._probe_seconds
