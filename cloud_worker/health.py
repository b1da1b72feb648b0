"""Health and metrics of a worker over HTTP, on a port and a thread of their own.

    GET /healthz    200 while the worker works or drains, 503 when a part of it is dead or stuck
    GET /readyz     200 while it takes requests: connected and not draining
    GET /metrics    Prometheus

Inputs: a function that describes the worker. Neighbour: `agent` starts it. Bound before anything
that takes long, so that a taken port is an error at once.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cloud_worker.errors import ListenError
from cloud_worker.metrics import WorkerMetrics
from cloud_worker.settings import HttpSettings

MAX_CONNECTIONS = 64
CLOSING_SECONDS = 3.0

_log = structlog.get_logger("elma.worker")

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
                log_config=None,
                access_log=False,
                limit_concurrency=MAX_CONNECTIONS,
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
