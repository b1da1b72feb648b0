"""A worker: its parts put together, started, drained and stopped in the right order.

    deliveries -> Intake -> RequestQueue -> Resumer -> Replies -> publications
                     |-> ReleaseKeeper -> Releases

Inputs: `WorkerSettings`, releases, keys. Outputs: `start`, `drain`, `stop`, and how it is.
Neighbours: `service` makes it a process; `receive`, `request_queue`, `resume`, `reply` and, where a
channel is followed, `release_keeper` do the work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from broker.exchange import Publication, Subscription
from broker.log import SafeLog
from broker.session import Session
from broker.tracing import Tracing, finish
from cloud_worker.agreement import AgreementCounter
from cloud_worker.errors import describe_fault
from cloud_worker.metrics import WorkerMetrics
from cloud_worker.receive import Intake
from cloud_worker.release_keeper import ReleaseKeeper
from cloud_worker.releases import LoadedRelease, Releases
from cloud_worker.reply import Replies
from cloud_worker.request_queue import RequestQueue
from cloud_worker.resume import Resumer
from cloud_worker.settings import WorkerSettings
from protocol.duplicates import DuplicateGuard
from protocol.keys import EdgeDirectory, PoolKeys
from protocol.messages import Presence, encode_message
from protocol.topics import (
    PresenceTopic,
    cancel_subscription,
    model_state_subscription,
    worker_subscription,
)
from releases.store import ReleaseStore

STUCK_SECONDS = 120.0
FLUSH_SECONDS = 5.0
REPLIES_FOR_EACH_PLACE = 4

_log = SafeLog("elma.worker")


class Worker:
    """One worker: `start`, then `drain` and `stop`, once each. `clock` is monotonic."""

    def __init__(
        self,
        settings: WorkerSettings,
        releases: Releases,
        pool_keys: Callable[[], PoolKeys],
        edges: EdgeDirectory,
        store: ReleaseStore | None = None,
        *,
        tracing: Tracing | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`store` is needed where the settings follow a channel; `stop` closes it."""
        self.settings = settings
        self._clock = clock
        self.metrics = WorkerMetrics()
        if tracing is not None:
            dropped = self.metrics.spans_dropped
            tracing.count_dropped_with(lambda cause, count: dropped.labels(cause).inc(count))
        self._releases, self._pool_keys = releases, pool_keys
        self.session = _make_session(settings)
        self.agreement = AgreementCounter(self.metrics.agreement)
        self.keeper: ReleaseKeeper | None = None
        if settings.releases is not None and store is not None:
            self.keeper = ReleaseKeeper(
                settings,
                settings.releases,
                store,
                releases,
                self.session,
                self.metrics,
                self.agreement,
                clock=clock,
                wall_clock=wall_clock,
            )
            self.session.on_connection_change = self.keeper.connection_changed
        self._guard = DuplicateGuard(clock=wall_clock)
        self.queue = RequestQueue(
            settings.batch.limits,
            releases.pace,
            bound=settings.queue_bound,
            bound_bytes=settings.queue_bound_bytes,
            clock=clock,
        )
        self.replies = Replies(
            self.session,
            self.metrics,
            name=settings.name,
            bound=REPLIES_FOR_EACH_PLACE * settings.queue_bound,
            clock=clock,
        )
        self.resumer = Resumer(
            self.queue,
            self.replies,
            self._guard,
            self.metrics,
            self.agreement,
            name=settings.name,
            lease_seconds=settings.lease_seconds,
            clock=clock,
        )
        self.intake = Intake(
            self.session,
            self.queue,
            self.replies,
            releases,
            self._guard,
            self.metrics,
            pool_keys=pool_keys,
            edges=edges,
            priorities=settings.priorities,
            lease_seconds=settings.lease_seconds,
            state_bytes_bound=settings.queue_bound_bytes,
            pace=lambda: self.resumer.seconds_a_request,
            listeners=() if self.keeper is None else (self.keeper.take,),
            is_coming=lambda release: self.keeper is not None and self.keeper.is_coming(release),
            tracing=tracing,
            clock=clock,
            wall_clock=wall_clock,
        )
        self._watch_gauges()

    def start(self) -> None:
        """Connect and begin to work; returns at once. Raises BrokerSettingsError."""
        self.replies.start()
        self.resumer.start()
        self.session.start()
        self.intake.start()
        if self.keeper is not None:
            self.keeper.start()

    def drain(self, give_up: threading.Event) -> bool:
        """Accept no more; whether all that was accepted is answered and with the broker.

        Waits at most `drain_seconds`, and no longer once `give_up` is set.
        """
        self.intake.is_draining = True
        end = time.monotonic() + self.settings.drain_seconds
        while not give_up.is_set() and time.monotonic() < end:
            if self.queue.wait_empty(0.1):
                return self.replies.flush(FLUSH_SECONDS)
        return False

    def stop(self) -> None:
        """End everything; edges whose requests are left are told to go elsewhere."""
        self.intake.is_draining = True
        if self.keeper is not None:
            self.keeper.stop()
        self.resumer.stop(wait_seconds=FLUSH_SECONDS)
        for request in self.queue.all_held():
            if self.queue.remove(request):
                self.metrics.requests.labels("abandoned").inc()
                self.metrics.dropped_windows.labels("abandoned").inc(request.dropped_windows)
                finish(request.phase)
                finish(request.asker.span, outcome="abandoned")
                _log.warning("request", outcome="abandoned", **request.asker.log_fields)
                self.replies.error(request.asker, "internal", "the worker is going away")
        self.intake.stop()
        if self.replies.is_alive:
            self.replies.flush(FLUSH_SECONDS)
        self.replies.stop()
        self.session.stop()

    def leave(self) -> None:
        """Like `stop`, and out of the broker whatever fails on the way."""
        try:
            self.stop()
        except Exception as error:
            _log.error("worker_stop_failed", error=describe_fault(error))
        finally:
            self.session.stop()

    def dead_parts(self) -> list[str]:
        """The threads that have ended although the worker was not told to stop."""
        lives = {
            "receive": self.intake.is_alive,
            "compute": self.resumer.is_alive,
            "reply": self.replies.is_alive,
            "broker": self.session.is_running,
        }
        return [part for part, is_alive in lives.items() if not is_alive]

    def health(self) -> dict[str, Any]:
        """The state of the worker, for `GET /healthz` and `GET /readyz`."""
        parts = {
            "receive": self.intake.is_alive,
            "compute": self.resumer.is_alive and self.resumer.step_seconds < STUCK_SECONDS,
            "reply": self.replies.is_alive,
            "broker": self.session.is_running,
        }
        is_alive = all(parts.values())
        connected = self.session.is_connected
        draining = self.intake.is_draining
        return {
            "status": "failed" if not is_alive else "draining" if draining else "ok",
            "is_alive": is_alive,
            "is_ready": is_alive and connected and not draining and bool(self._releases.loaded()),
            "name": self.settings.name,
            "connected": connected,
            "pool_keys": list(self._pool_keys().ids),
            "releases": [self._describe(one) for one in self._releases.loaded()],
            "channel": None if self.keeper is None else self.keeper.health(),
            "parts": parts,
            "queue": {"requests": len(self.queue), "windows": self.queue.waiting_windows},
        }

    def _describe(self, one: LoadedRelease) -> dict[str, Any]:
        choice = one.reader.engine.choice
        return {
            "name": one.reader.name,
            "release": one.digest,
            "computes_with": f"{choice.name} {choice.precision} x{choice.threads}",
            "unused_seconds": round(self._clock() - one.last_used, 1),
        }

    def _watch_gauges(self) -> None:
        metrics = self.metrics
        metrics.queue_requests.set_function(lambda: len(self.queue))
        metrics.queue_windows.set_function(lambda: self.queue.waiting_windows)
        metrics.broker_connected.set_function(lambda: float(self.session.is_connected))
        metrics.deliveries_dropped.set_function(lambda: float(self.session.dropped_total))
        metrics.releases_loaded.set_function(lambda: len(self._releases.loaded()))
        metrics.releases_in_memory.set_function(lambda: len(self._releases.in_memory()))
        metrics.show_releases(self._releases.digests())
        metrics.certificate_expires.set_function(self.settings.broker.certificate_expires)
        shown = self.session.broker_certificate_expires
        metrics.broker_certificate_expires.set_function(shown)
        metrics.draining.set_function(lambda: float(self.intake.is_draining))


def presence(name: str, *, is_online: bool) -> Publication:
    """The retained presence message of a worker; the offline one is also its last will."""
    topic = str(PresenceTopic("worker", name))
    return Publication(topic, encode_message(Presence(is_online)), retain=True)


def _make_session(settings: WorkerSettings) -> Session:
    """One identity, forgotten by the broker when it goes: others get what it had not accepted."""
    filters = [worker_subscription(priority) for priority in settings.priorities]
    filters.append(cancel_subscription())
    if settings.releases is not None:
        filters.append(model_state_subscription())
    return Session(
        settings.broker,
        settings.client_id,
        subscriptions=[Subscription(topic_filter) for topic_filter in filters],
        receive_maximum=settings.receive_maximum,
        clean_start=True,
        session_expiry_seconds=0,
        will=presence(settings.name, is_online=False),
        birth=presence(settings.name, is_online=True),
        # Twice as many: the embedded broker does not keep to Receive Maximum.
        queue_bound=2 * settings.receive_maximum,
        queue_bound_bytes=settings.incoming_bound_bytes,
        largest_packet_bytes=settings.largest_packet_bytes,
    )
