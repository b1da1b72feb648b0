"""A worker as a process: from its settings to its end by a signal, or by a part that died.

Input: `WorkerSettings`. Output: a process that serves until SIGTERM or SIGINT. Neighbours:
`elma worker run` calls `run_worker`; `agent` is the worker, `health` its HTTP port.

Lifetimes. A first signal drains: new requests are told busy, accepted ones get `drain_seconds` to
be answered, the rest is told to go elsewhere, presence says offline, exit status 0. A second signal
skips the waiting. A worker whose receiving, computing, replying or connecting thread has ended
cannot answer: it leaves the broker, so that others get its share, and ends with status 1. One that
is killed leaves nothing behind but leases, which run out, and its last will.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType

from broker.log import SafeLog
from broker.notify import ServiceManager
from broker.tracing import CLOSING_SECONDS, open_tracing
from cloud_worker.agent import Worker
from cloud_worker.errors import PartDied
from cloud_worker.health import HealthServer
from cloud_worker.release_start import load_releases, open_store
from cloud_worker.settings import WorkerSettings
from protocol.key_files import EdgeFolder, load_pool_keys
from protocol.keys import PoolKeys
from protocol.live_keys import LiveKeys

WATCH_SECONDS = 0.5
SIGNALS = (signal.SIGTERM, signal.SIGINT)

_log = SafeLog("elma.worker")


def run_worker(settings: WorkerSettings) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises PartDied when a thread of the worker ends.

    Raises ListenError, CannotCompute, `reader.errors.ModelFolderError`,
    `protocol.errors.KeyFileError`, `releases.errors.StoreError`,
    `broker.errors.BrokerSettingsError` or `broker.tracing.TracingExtraMissing` before it serves.
    """
    stopping, hurrying = threading.Event(), threading.Event()

    def note_signal(_number: int, _frame: FrameType | None) -> None:
        (hurrying if stopping.is_set() else stopping).set()

    pool_keys = _live_pool_keys(settings.pool_secret_file)
    edges = EdgeFolder(
        settings.edges_folder,
        on_failure=lambda error: _log.error("edge_key_not_read", why=str(error)),
    )
    server = HealthServer(settings.http)
    try:
        store = open_store(settings)
        releases = load_releases(settings, store)
        tracing = open_tracing(settings.tracing, service="elma-worker", name=settings.name)
        worker = Worker(settings, releases, pool_keys, edges, store, tracing=tracing)
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
            pool_keys=list(pool_keys().ids),
        )
        manager = ServiceManager()
        manager.ready()
        _wait_until_told(stopping, worker, manager)
        manager.stopping()
        _log.info("worker_draining", requests=len(worker.queue))
        is_drained = worker.drain(hurrying)
        worker.stop()
        if tracing is not None:
            tracing.close(CLOSING_SECONDS)
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


def _live_pool_keys(path: Path) -> LiveKeys[PoolKeys]:
    """The pool's keys of now; tells in the log when others are read, or cannot be."""
    return LiveKeys(
        path,
        load_pool_keys,
        on_read=lambda keys: _log.info("pool_keys_read", pool_keys=list(keys.ids)),
        on_failure=lambda error: _log.error("pool_keys_not_read", why=str(error)),
    )
