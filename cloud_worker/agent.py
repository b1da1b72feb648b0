"""A worker as a process: its parts put together, started, drained and stopped in the right order.

    deliveries -> Intake -> RequestQueue -> Resumer -> Replies -> publications
                     |-> ReleaseKeeper -> Releases

Input: `WorkerSettings`. Output: a process that serves until SIGTERM or SIGINT. Neighbours:
`elma worker run` calls `run_worker`; `receive`, `request_queue`, `resume`, `reply`, `health` and,
where a channel is followed, `release_keeper` do the work.

Lifetimes. A first signal drains: new requests are told busy, accepted ones get `drain_seconds` to
be answered, the rest is told to go elsewhere, presence says offline, exit status 0. A second signal
skips the waiting. A worker whose receiving, computing, replying or connecting thread has ended
cannot answer: it leaves the broker, so that others get its share, and ends with status 1. One that
is killed leaves nothing behind but leases, which run out, and its last will.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from broker.exchange import Publication, Subscription
from broker.log import SafeLog
from broker.notify import ServiceManager
from broker.session import Session
from cloud_worker.agreement import AgreementCounter
from cloud_worker.errors import PartDied, describe_fault
from cloud_worker.health import HealthServer
from cloud_worker.metrics import WorkerMetrics
from cloud_worker.receive import Intake
from cloud_worker.release_keeper import ReleaseKeeper
from cloud_worker.release_start import load_releases, open_store
from cloud_worker.releases import LoadedRelease, Releases
from cloud_worker.reply import Replies
from cloud_worker.request_queue import RequestQueue
from cloud_worker.resume import Resumer
from cloud_worker.settings import WorkerSettings
from protocol.duplicates import DuplicateGuard
from protocol.key_files import EdgeFolder, PoolKeyFile
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
WATCH_SECONDS = 0.5
REPLIES_FOR_EACH_PLACE = 4
SIGNALS = (signal.SIGTERM, signal.SIGINT)

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
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`store` is needed where the settings follow a channel; `stop` closes it."""
        self.settings = settings
        self._clock = clock
        self.metrics = WorkerMetrics()
        self._releases = releases
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
                edge, request_id = request.key
                _log.warning("request", outcome="abandoned", edge=edge, request=request_id)
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
        metrics.draining.set_function(lambda: float(self.intake.is_draining))


def run_worker(settings: WorkerSettings) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises PartDied when a thread of the worker ends.

    Raises ListenError, `reader.errors.ModelFolderError`, `protocol.errors.KeyFileError`,
    `releases.errors.StoreError` or `broker.errors.BrokerSettingsError` before it serves.
    """
    stopping, hurrying = threading.Event(), threading.Event()

    def note_signal(_number: int, _frame: FrameType | None) -> None:
        (hurrying if stopping.is_set() else stopping).set()

    pool_keys = PoolKeyFile(settings.pool_secret_file)
    edges = EdgeFolder(settings.edges_folder)
    server = HealthServer(settings.http)
    try:
        store = open_store(settings)
        releases = load_releases(settings, store)
        worker = Worker(settings, releases, _watched(pool_keys), edges, store)
        for number in SIGNALS:
            signal.signal(number, note_signal)
        worker.start()
        server.start(worker.health, worker.metrics)
        _log.info(
            "worker_started",
            name=settings.name,
            broker=settings.broker.address,
            health=f"{server.url}/healthz",
            releases=releases.names(),
            engines=releases.engines(),
            pool_keys=list(pool_keys.keys().ids),
        )
        manager = ServiceManager()
        manager.ready()
        _wait_until_told(stopping, worker, manager)
        manager.stopping()
        _log.info("worker_draining", requests=len(worker.queue))
        is_drained = worker.drain(hurrying)
        worker.stop()
        _log.info("worker_stopped", drained=is_drained)
    finally:
        server.stop()


def _wait_until_told(stopping: threading.Event, worker: Worker, manager: ServiceManager) -> None:
    """Return when the process is told to stop; leave the broker and raise when a part dies.

    A part that lives and is stuck cannot be ended from here: the service manager hears of it.
    """
    while not stopping.wait(WATCH_SECONDS):
        dead = worker.dead_parts()
        if dead:
            _log.error("worker_part_died", parts=dead)
            worker.leave()
            raise PartDied(
                f"worker {worker.settings.name}: the thread of {', '.join(dead)} ended; the worker "
                "has left the broker, start it again (the log above says what failed)"
            )
        manager.feed(worker.health()["is_alive"])


def _watched(file: PoolKeyFile) -> Callable[[], PoolKeys]:
    """The pool's keys of now; tells in the log when others are read, or cannot be."""
    last = file.keys(), file.failure

    def keys() -> PoolKeys:
        nonlocal last
        now = file.keys(), file.failure
        if now[1] is not None and now[1] is not last[1]:
            _log.error("pool_keys_not_read", why=str(now[1]))
        elif now[0] is not last[0]:
            _log.info("pool_keys_read", pool_keys=list(now[0].ids))
        last = now
        return now[0]

    return keys


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
