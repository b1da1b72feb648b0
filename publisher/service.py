"""`elma rollout run` as a process: connect, watch, until SIGTERM.

Input: `PublisherSettings`. Output: exit status 0 after a signal. Neighbours: `watching` does the
work; `line` is the connection, with presence `publisher/{name}`; `beside` tells commands on this
machine what the service knows.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

from broker.log import SafeLog
from broker.notify import ServiceManager
from protocol.key_files import load_publisher_public, load_publisher_secret
from publisher.beside import RolloutService
from publisher.errors import PublisherSettingsError
from publisher.line import Line
from publisher.metrics import PublisherMetrics
from publisher.settings import PublisherSettings
from publisher.store import PublisherStore
from publisher.watching import Watcher

_log = SafeLog("elma.publisher")


def run_service(settings: PublisherSettings, stop: threading.Event | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or until `stop`, where one is given, is set.

    Raises PublisherSettingsError, PublisherStoreError, KeyFileError or BrokerSettingsError before
    it serves; what fails afterwards is logged and tried again.
    """
    stopping = stop or threading.Event()
    if stop is None:
        _stop_on_signals(stopping)
    trust = load_publisher_public(settings.publisher_public_key_file)
    key = load_publisher_secret(settings.key_file) if settings.key_file else None
    store, metrics = PublisherStore(settings.store), PublisherMetrics()
    _serve_metrics(settings, metrics)
    metrics.certificate_expires.set_function(settings.broker.certificate_expires)
    line = Line(settings.broker, settings.channel, name=settings.name)
    shown = line.session.broker_certificate_expires
    metrics.broker_certificate_expires.set_function(shown)
    watcher = Watcher(settings, store, trust, line, metrics, key=key, stop=stopping)
    with RolloutService(settings, line), line:
        _log.info(
            "rollout_service_started",
            channel=settings.channel,
            broker=settings.broker.address,
            stages=list(settings.rollout.stages),
            hold_seconds=settings.rollout.hold_seconds,
            renews=key is not None,
        )
        manager = ServiceManager()
        manager.ready()
        while not stopping.is_set():
            watcher.step()
            manager.feed(line.session.is_running)
            stopping.wait(settings.rollout.check_seconds if line.is_complete else 0.2)
    _log.info("rollout_service_stopped", channel=settings.channel)


def _serve_metrics(settings: PublisherSettings, metrics: PublisherMetrics) -> None:
    if settings.http.port is None:
        return
    try:
        port = metrics.serve(settings.http.host, settings.http.port)
    except OSError as error:
        raise PublisherSettingsError(
            f"metrics cannot be served at {settings.http.host}:{settings.http.port}: {error}; "
            "choose another --port"
        ) from error
    _log.info("metrics_served", url=f"http://{settings.http.host}:{port}/metrics")


def _stop_on_signals(stopping: threading.Event) -> None:
    def note(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
