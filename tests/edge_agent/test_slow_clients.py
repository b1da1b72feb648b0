"""Clients that are slow, or many, on a real socket."""

from __future__ import annotations

import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from edge_agent.slow_clients import PatientProtocol
from tests.edge_agent.conftest import PASSAGE, QUESTION, RunningEdge, StartEdge, wait_until
from tests.edge_agent.test_http import Gate

HALF = b"POST /v1/answer HTTP/1.1\r\nHost: edge\r\nX-Slow: "


def connect(edge: RunningEdge, data: bytes) -> socket.socket:
    """A connection that says `data` and no more."""
    address = urlsplit(edge.url)
    raw = socket.create_connection((str(address.hostname), int(address.port or 0)), 30.0)
    raw.sendall(data)
    return raw


@pytest.mark.parametrize("data", [b"", HALF])
def test_a_connection_whose_headers_do_not_come_is_closed(
    data: bytes, start_edge: StartEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatientProtocol, "header_seconds", 0.2)
    edge = start_edge()
    with connect(edge, data) as raw:
        assert raw.recv(1) == b""


def test_half_a_header_on_a_connection_that_was_used_before_is_closed_too(
    start_edge: StartEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatientProtocol, "header_seconds", 0.2)
    edge = start_edge()
    with connect(edge, b"GET /healthz HTTP/1.1\r\nHost: edge\r\n\r\n" + HALF) as raw:
        said = b""
        while piece := raw.recv(65_536):
            said += piece
    assert said.startswith(b"HTTP/1.1 200")


def test_a_slow_question_is_not_taken_for_a_slow_header(
    start_edge: StartEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatientProtocol, "header_seconds", 0.1)
    gate = Gate()
    edge = start_edge(before_start=gate.install)
    threading.Timer(0.5, gate.opened.set).start()
    assert edge.ask()["answer"]


def test_too_many_idle_connections_make_room_for_one_that_asks(
    start_edge: StartEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatientProtocol, "max_connections", 8)
    monkeypatch.setattr(PatientProtocol, "header_seconds", 600.0)
    edge = start_edge()
    held = [connect(edge, HALF) for _ in range(30)]
    assert edge.ask()["answer"]
    for raw in held:
        raw.close()


def test_too_many_questions_at_once_get_a_clear_word_and_health_is_still_told(
    start_edge: StartEdge,
) -> None:
    gate = Gate()
    edge = start_edge(before_start=gate.install, http={"max_posts": 2})
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(edge.ask())) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: edge.agent.pending_count == 2)
    refused = edge.post({"question": QUESTION, "context": PASSAGE})
    assert refused.status_code == 429
    assert refused.json()["error"] == "queue_full"
    assert int(refused.headers["Retry-After"]) >= 1
    assert edge.get("/healthz").status_code == 200
    assert httpx.get(f"{edge.url}/metrics").status_code == 200
    gate.opened.set()
    for thread in threads:
        thread.join(30.0)
    assert len(answers) == 2
