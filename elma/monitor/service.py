"""A monitor as a process: it listens at the broker, and Prometheus fetches from it.

    GET /metrics    what the edges reported, each sample with the label `edge`, and its own metrics
    GET /healthz    200 while it works, connected or not; 503 when a thread of it has ended

Input: `MonitorSettings`. Output: a process that serves until SIGTERM or SIGINT, and tells systemd,
where that started it, that it is ready, goes on (while its threads take what comes) and stops.
Neighbours: `elma monitor` calls `run_monitor`; `fleet` keeps the reports.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from types import FrameType

import uvicorn
from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from broker.exchange import Subscription
from broker.log import SafeLog
from broker.notify import ServiceManager
from broker.session import Session
from broker.settings import PACKET_OVERHEAD_BYTES
from cloud_worker.health import ProbeProtocol
from elma.monitor.errors import MonitorListenError
from elma.monitor.fleet import ReportedFleet
from elma.monitor.settings import MonitorSettings
from protocol.metrics_messages import MAX_REPORT_BYTES
from protocol.topics import metrics_subscription

RECEIVE_SECONDS = 0.5
STUCK_SECONDS = 30.0
"""A receiver that has not come round for so long hangs; it does so twice a second."""
QUEUE_BOUND = 4_096
QUEUE_BOUND_BYTES = 64 * 1024 * 1024

_log = SafeLog("elma.monitor")


def run_monitor(settings: MonitorSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises MonitorListenError or `broker.errors.BrokerSettingsError` before it serves.
    """
    with _listen(settings) as listener:
        monitor = Monitor(settings)
        monitor.start()
        try:
            _Server(monitor, settings).run(sockets=[listener])
        finally:
            monitor.stop()


class Monitor:
    """The session and the reports; `start` and `stop` once each."""

    def __init__(self, settings: MonitorSettings) -> None:
        self._session = Session(
            settings.broker,
            settings.client_id,
            subscriptions=[Subscription(metrics_subscription(), qos=0)],
            queue_bound=QUEUE_BOUND,
            queue_bound_bytes=QUEUE_BOUND_BYTES,
            largest_packet_bytes=MAX_REPORT_BYTES + PACKET_OVERHEAD_BYTES,
        )
        self.fleet = ReportedFleet(
            missed_intervals=settings.missed_intervals,
            max_edges=settings.max_edges,
            max_samples=settings.max_samples,
            is_connected=lambda: self._session.is_connected,
            dropped_total=lambda: self._session.dropped_total,
            certificate_expires=settings.broker.certificate_expires,
            broker_certificate_expires=self._session.broker_certificate_expires,
        )
        self._is_stopping = threading.Event()
        self._came_round_at = time.monotonic()
        self._receiver = threading.Thread(target=self._receive, name="elma-monitor", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether it connects and receives, connected or not."""
        return (
            self._receiver.is_alive()
            and self._session.is_running
            and time.monotonic() - self._came_round_at < STUCK_SECONDS
        )

    @property
    def is_connected(self) -> bool:
        """Whether reports can come in now."""
        return self._session.is_connected

    def start(self) -> None:
        """Connect, in the background. Raises BrokerSettingsError."""
        self._session.start()
        self._receiver.start()

    def stop(self) -> None:
        """Disconnect."""
        self._is_stopping.set()
        self._session.stop()
        self._receiver.join(4 * RECEIVE_SECONDS)

    def _receive(self) -> None:
        """Take deliveries until stopped; never dies of one."""
        while not self._is_stopping.is_set():
            self._came_round_at = time.monotonic()
            try:
                delivery = self._session.receive(RECEIVE_SECONDS)
                if delivery is not None:
                    self.fleet.take(delivery)
                    self._session.acknowledge(delivery)
            except Exception as error:
                _log.error("monitor_receive_failed", error_type=type(error).__name__)
                self._is_stopping.wait(RECEIVE_SECONDS)


def create_app(monitor: Monitor) -> Starlette:
    """The two routes."""

    def expose(_request: Request) -> Response:  # in a thread of its own: many edges take a while
        text = generate_latest(monitor.fleet.registry)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def healthz(_request: Request) -> Response:
        status = {"status": "ok" if monitor.is_alive else "failing"}
        body = {**status, "connected": monitor.is_connected}
        return JSONResponse(body, 200 if monitor.is_alive else 503)

    return Starlette(routes=[Route("/metrics", expose), Route("/healthz", healthz)])


class _Server(uvicorn.Server):
    """uvicorn, which says where it listens and ends with status 0 after a signal."""

    def __init__(self, monitor: Monitor, settings: MonitorSettings) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(monitor),
                lifespan="off",
                http=ProbeProtocol,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._monitor, self._settings = monitor, settings
        self._manager = ServiceManager()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, and tell the real port where it was 0."""
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            _log.info(
                "monitor_listening",
                url=f"http://{shown}:{port}/metrics",
                broker=self._settings.broker.address,
                client=self._settings.client_id,
            )
        self._manager.ready()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second, in the loop that serves."""
        self._manager.feed(self._monitor.is_alive)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was asked, and end."""
        self._manager.stopping()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        """A signal: stop. Not uvicorn's own way, which raises it again after a clean stop."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _listen(settings: MonitorSettings) -> socket.socket:
    """Bind the HTTP address. Raises MonitorListenError."""
    host, port = settings.http.host, settings.http.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise MonitorListenError(
            f"HTTP address {host}:{port} cannot be used ({error}); set another http.port"
        ) from error
