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

Presence only informs, because a last will is slow and retained messages can be lost with their
broker: unknown workers count as present, and one question every `probe_seconds` is tried anyway.
"""

from __future__ import annotations


class CloudView:
    """The state of the cloud as far as it is known; the agent starts out disconnected at `now`."""

    def __init__(self, now: float, *, probe_seconds: float = 10.0) -> None:
        self.broker_away_since: float | None = now
        self.workers_away_since: float | None = None
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
            self.workers_away_since = None
        elif not any(self._workers.values()):
            self._lost_workers(now)

    def worker_spoke(self) -> None:
        """A sealed message from a worker, or a publication that somebody listened to."""
        self.workers_away_since = None

    def nobody_listened(self, now: float) -> None:
        """The broker had no subscriber for a request: stronger than any presence message."""
        self._lost_workers(now)

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
        if self.workers_away_since is not None and now < self._next_probe:
            return now >= self.workers_away_since + cloud_wait_seconds
        return False

    def _lost_workers(self, now: float) -> None:
        if self.workers_away_since is None:
            self.workers_away_since = now
            self._next_probe = now + self._probe_seconds
