"""Health stays reachable whatever else connects to its port."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx
import pytest

from cloud_worker import health
from cloud_worker.health import HealthServer
from cloud_worker.metrics import WorkerMetrics
from cloud_worker.settings import HttpSettings
from tests.cloud_worker.harness import wait_until

WAIT_SECONDS = 20.0


@pytest.fixture
def server() -> Iterator[HealthServer]:
    """A server that always is alive."""
    made = HealthServer(HttpSettings(port=0))
    made.start(lambda: {"status": "ok", "is_alive": True, "is_ready": True}, WorkerMetrics())
    wait_until(lambda: _status(made) == 200, "the server")
    yield made
    made.stop()


def _status(server: HealthServer) -> int:
    return httpx.get(f"{server.url}/healthz", timeout=WAIT_SECONDS, trust_env=False).status_code


def _half_a_request(server: HealthServer) -> socket.socket:
    """A connection that never says the end of its header."""
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port), WAIT_SECONDS)
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
    return connection


def _ends(connection: socket.socket) -> bool:
    """Whether the server ends it, within `WAIT_SECONDS`."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_probes_are_answered_beside_any_number_of_idle_connections(server: HealthServer) -> None:
    with ExitStack() as stack:
        idle = [
            stack.enter_context(_half_a_request(server)) for _ in range(health.MAX_CONNECTIONS + 6)
        ]
        assert _status(server) == 200
        assert _ends(idle[0])  # the oldest made room


def test_a_header_that_never_ends_costs_its_connection(
    server: HealthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "HEADER_SECONDS", 0.1)
    with _half_a_request(server) as connection:
        assert _ends(connection)


def test_a_second_header_that_never_ends_costs_its_connection_too(
    server: HealthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "HEADER_SECONDS", 0.2)
    with _half_a_request(server) as connection:
        connection.sendall(b"\r\n")
        answer = connection.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        while connection.recv(65_536):
            pass
