"""Health and metrics of a worker over HTTP, on a port and a thread of their own.

    GET /healthz    200 while the worker works or drains, 503 when a part of it is dead or stuck
    GET /readyz     200 while it takes requests: connected and not draining
    GET /metrics    Prometheus

Inputs: a function that describes the worker. Neighbour: `agent` starts it. Bound before anything
that takes long, so that a taken port is an error at once.

A probe always gets through: connections that ask nothing for `HEADER_SECONDS` are cut, and where
`MAX_CONNECTIONS` are open the one that has asked nothing for longest makes room.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from cloud_worker.errors import ListenError
from cloud_worker.metrics import WorkerMetrics
from cloud_worker.settings import HttpSettings

MAX_CONNECTIONS = 64
HEADER_SECONDS = 5.0
CLOSING_SECONDS = 3.0

Health = Callable[[], dict[str, Any]]


class HealthServer:
    """Serves until `stop`; `address` is where. Raises ListenError when it is made."""

    def __init__(self, settings: HttpSettings) -> None:
        self._listener = _listen(settings)
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        host, port = self._listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def start(self, health: Health, metrics: WorkerMetrics) -> None:
        """Begin to serve."""
        self._server = uvicorn.Server(
            uvicorn.Config(
                create_app(health, metrics),
                lifespan="off",
                http=ProbeProtocol,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, args=([self._listener],), name="elma-health", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and free the port."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(CLOSING_SECONDS)
        self._listener.close()


class ProbeProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which would wait for the end of a request's header for ever."""

    asked_nothing_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room, and give the connection its time."""
        super().connection_made(transport)
        self.asked_nothing_since = self.loop.time()
        others = [one for one in self.connections if isinstance(one, ProbeProtocol) and one.is_idle]
        if len(self.connections) > MAX_CONNECTIONS and others:
            min(others, key=lambda one: one.asked_nothing_since).transport.abort()
        self.loop.call_later(HEADER_SECONDS, self._cut_idle)

    def on_response_complete(self) -> None:
        """A request was answered: the time for the next one begins."""
        self.asked_nothing_since = self.loop.time()
        super().on_response_complete()

    @property
    def is_idle(self) -> bool:
        """Whether no complete request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _cut_idle(self) -> None:
        if self.transport.is_closing():
            return
        left_seconds = HEADER_SECONDS
        if self.is_idle:
            left_seconds = self.asked_nothing_since + HEADER_SECONDS - self.loop.time()
            if left_seconds <= 0:
                self.transport.abort()
                return
        self.loop.call_later(left_seconds, self._cut_idle)


def create_app(health: Health, metrics: WorkerMetrics) -> Starlette:
    """The three routes. `health` gives at least `status`, `is_alive` and `is_ready`."""

    async def healthz(_request: Request) -> Response:
        state = health()
        return JSONResponse(state, 200 if state["is_alive"] else 503)

    async def readyz(_request: Request) -> Response:
        state = health()
        return JSONResponse({"is_ready": state["is_ready"]}, 200 if state["is_ready"] else 503)

    async def expose(_request: Request) -> Response:
        text = metrics.as_text()
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", expose),
        ]
    )


def _listen(settings: HttpSettings) -> socket.socket:
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise ListenError(
            f"HTTP address {settings.host}:{settings.port} cannot be used ({error}); "
            "set another http.port (ELMA_WORKER_HTTP__PORT), or 0 for a free one"
        ) from error
