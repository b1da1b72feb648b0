"""The life of one offloaded request, as a pure object: events and the time in, the next step out.

    WAITING --publish--> SENT --accepted--> HELD --answer--> (the owner drops the lease)
       ^                  |  |                |
       |<--no word in time+  +--busy----------|--> WAITING, not before its retry time
       |<--lease run out----------------------+
       |<--connection renewed, nobody subscribed

Whatever the state, the step becomes FINISH (run the remaining layers here) when the time that this
needs before the deadline is reached, when too many attempts have failed, or when the cloud has been
away for longer than a person wants to wait.

Inputs: times in seconds of one monotonic clock, given with every call. Output: `Step`.
Neighbours: `offload` drives it; `cloud_view` says since when the cloud is away. No clock, no thread
and no network in here, so every path can be tested without waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from edge_agent.cloud_view import CloudView


class Action(Enum):
    """What the owner of a lease has to do."""

    SEND = "send"
    WAIT = "wait"
    FINISH = "finish"


class Reason(Enum):
    """Why a request is finished on the device; also a label of metrics and log lines."""

    DEADLINE = "deadline"
    ATTEMPTS = "attempts"
    BROKER_AWAY = "broker_away"
    NO_WORKER = "no_worker"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_IN_FLIGHT = "too_many_in_flight"
    REFUSED = "refused"


@dataclass(frozen=True)
class Step:
    """`again_at` says when to ask anew if nothing happens before; `reason` only with FINISH."""

    action: Action
    again_at: float
    reason: Reason | None = None


@dataclass(frozen=True)
class LeaseRules:
    """The times and counts of the lease, in seconds.

    `accept_seconds`: how long a published request may stay without a word from any worker.
    `max_attempts`: publications that came to nothing (silence, a lease run out) before giving up;
    `busy`, a worker of another release and a renewed connection are no failures.
    `cloud_wait_seconds`: how long a request waits while the broker, or every worker, is away;
    counted from when it went away.
    `resend_pause_seconds`: between two attempts; `longest_pause_seconds`: what it grows to while
    only workers of another release get the request. `full_session_pause_seconds`: while the session
    has as many publications under way as the broker allows. `longest_lease_seconds`: what a
    worker may promise at most.
    """

    accept_seconds: float = 1.0
    max_attempts: int = 4
    cloud_wait_seconds: float = 2.0
    resend_pause_seconds: float = 0.25
    longest_pause_seconds: float = 2.0
    full_session_pause_seconds: float = 0.02
    longest_lease_seconds: float = 60.0


class _Phase(Enum):
    WAITING = "waiting"
    SENT = "sent"
    HELD = "held"


class Lease:
    """One request's way to a worker; all times are seconds of the owner's monotonic clock.

    `deadline` is when the asker stops waiting, `finishing_seconds` what running the remaining
    layers on the device takes. `random` gives numbers in [0, 1): it spreads the retries of many.
    """

    def __init__(
        self,
        rules: LeaseRules,
        *,
        deadline: float,
        finishing_seconds: float,
        random: Callable[[], float],
    ) -> None:
        self._rules = rules
        self._random = random
        self._phase = _Phase.WAITING
        self._until = 0.0  # WAITING: not before; SENT, HELD: not after
        self._holder: str | None = None
        self._unsuited: set[str] = set()
        self._refusals = 0
        self._first_sent = 0.0
        self.finish_by = deadline - finishing_seconds
        self.publications = 0
        self.failures = 0

    def next(self, now: float, cloud: CloudView, backlog_seconds: float = 0.0) -> Step:
        """What to do now. Losing patience is decided here; everything else by the events below.

        `backlog_seconds` is how long the device is still busy finishing other questions.
        """
        finish_by = self.finish_by - backlog_seconds
        if self._phase is not _Phase.WAITING and now >= self._until:
            if self._phase is _Phase.SENT:
                cloud.heard_nothing()
            self._fail(now)
        if now >= finish_by:
            return Step(Action.FINISH, now, Reason.DEADLINE)
        if self.failures >= self._rules.max_attempts:
            return Step(Action.FINISH, now, Reason.ATTEMPTS)
        if self._refusals >= self._rules.max_attempts and cloud.knows_only(self._unsuited):
            return Step(Action.FINISH, now, Reason.REFUSED)
        if (since := cloud.broker_away_since) is not None:
            return self._patience(now, since, finish_by, Reason.BROKER_AWAY)
        if self._phase is not _Phase.WAITING:
            return Step(Action.WAIT, min(self._until, finish_by))
        if (since := cloud.workers_away_since) is not None and (
            cloud.is_absence_certain or self.publications
        ):
            if not cloud.is_absence_certain:
                since = max(since, self._first_sent)
            step = self._patience(now, since, finish_by, Reason.NO_WORKER)
            if step.action is Action.FINISH and not cloud.take_probe(now):
                return step
        if now < self._until:
            return Step(Action.WAIT, min(self._until, finish_by))
        return Step(Action.SEND, now)

    def published(self, now: float, transfer_seconds: float = 0.0) -> None:
        """The request went out; a word from a worker is due within `accept_seconds` of its arrival.

        `transfer_seconds` is how long its bytes should take.
        """
        if not self.publications:
            self._first_sent = now
        self.publications += 1
        self._phase = _Phase.SENT
        self._until = now + self._rules.accept_seconds + transfer_seconds

    def postponed(self, now: float) -> None:
        """The session could not take the request just now (full, or just disconnected)."""
        self._wait_until(now + self._spread(self._rules.full_session_pause_seconds))

    def accepted(self, now: float, lease_seconds: float, worker: str) -> None:
        """A worker took the request and promised an answer within its lease."""
        self._holder = worker
        lease_seconds = min(max(lease_seconds, 0.0), self._rules.longest_lease_seconds)
        self._phase, self._until = _Phase.HELD, now + lease_seconds

    def busy(self, now: float, retry_after_seconds: float) -> None:
        """A worker has no room. Another one may hold the request by now: then it means nothing."""
        if self._phase is not _Phase.HELD:
            pause = max(retry_after_seconds, self._rules.resend_pause_seconds)
            self._wait_until(now + self._spread(pause))

    def packed_anew(self, now: float) -> None:
        """The request has other bytes now, which nobody has seen: they go out at once."""
        self._wait_until(now)

    def nobody_listens(self, now: float) -> None:
        """The broker had no worker to give the request to; tried again while patience lasts."""
        if self._phase is not _Phase.HELD:
            self._wait_until(now + self._spread(2 * self._rules.resend_pause_seconds))

    @property
    def is_unanswered(self) -> bool:
        """Whether it is published and no worker has said a word since."""
        return self._phase is _Phase.SENT

    def is_held_by_another(self, worker: str) -> bool:
        """Whether a worker other than this one has promised an answer."""
        return self._phase is _Phase.HELD and self._holder != worker

    def unsuited(self, now: float, worker: str) -> None:
        """A worker is of another release: no failure, as another one may be the right one.

        The pause doubles with every refusal. Only when as many refusals as attempts are allowed
        came from all the workers that are known, there is no use in asking on.
        """
        if self.is_held_by_another(worker):
            return
        self._unsuited.add(worker)
        pause = self._rules.resend_pause_seconds * 2 ** min(self._refusals, 10)
        self._refusals += 1
        self._wait_until(now + self._spread(min(pause, self._rules.longest_pause_seconds)))

    def failed_at_one(self, now: float) -> None:
        """An attempt came to nothing, though the next one may succeed."""
        self._fail(now)

    def connection_renewed(self, now: float) -> None:
        """A new connection: what was under way may be lost, so the same bytes go out again."""
        if self._phase is not _Phase.WAITING:
            self._wait_until(now)

    def _patience(self, now: float, away_since: float, finish_by: float, reason: Reason) -> Step:
        give_up_at = away_since + self._rules.cloud_wait_seconds
        if now >= give_up_at:
            return Step(Action.FINISH, now, reason)
        return Step(Action.WAIT, min(give_up_at, finish_by))

    def _fail(self, now: float) -> None:
        self.failures += 1
        self._wait_until(now + self._spread(self._rules.resend_pause_seconds))

    def _wait_until(self, moment: float) -> None:
        self._phase, self._until = _Phase.WAITING, moment

    def _spread(self, seconds: float) -> float:
        """Between half and one and a half times as long."""
        return seconds * (0.5 + self._random())
