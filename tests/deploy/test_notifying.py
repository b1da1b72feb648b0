"""The services as systemd starts them: real processes that tell a socket how they are."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent import agent as edge_agent_module
from edge_agent.agent import EdgeAgent
from edge_agent.inference import InferenceThread, Job
from edge_agent.settings import EdgeSettings
from protocol.key_files import save_pool_keys
from protocol.keys import PoolKeys
from tests.tiny import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random reader."""
    return make_tiny_model(tmp_path_factory.mktemp("notifying") / "tiny")


@pytest.fixture
def line(tmp_path: Path) -> Iterator[socket.socket]:
    """systemd's end of the line."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(WAIT_SECONDS)
        yield listener


def edge(folder: Path) -> list[str]:
    return ["edge", "run", "--port", "0", "--outbox", str(folder / "outbox.sqlite3")]


def worker(folder: Path) -> list[str]:
    save_pool_keys(folder / "pool-secret.json", PoolKeys.make("pool"))
    (folder / "edges").mkdir()
    files = ("--pool-secret-file", str(folder / "pool-secret.json"))
    return ["worker", "run", "--port", "0", *files, "--edges-folder", str(folder / "edges")]


def monitor(_folder: Path) -> list[str]:
    return ["monitor", "--port", "0", "--broker-port", "1"]  # nobody is there: no reason to stop


@pytest.mark.parametrize("service", [edge, worker, monitor])
def test_a_service_says_that_it_serves_feeds_the_watchdog_and_says_that_it_stops(
    service: Callable[[Path], list[str]], line: socket.socket, tmp_path: Path, model: Path
) -> None:
    arguments = service(tmp_path) + (["--model", str(model)] if service is not monitor else [])
    process = subprocess.Popen(
        [sys.executable, "-m", "elma", *arguments],
        cwd=ROOT,
        # A fifth of a second: each look feeds.
        env=os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"},
        stderr=subprocess.DEVNULL,
    )
    try:
        heard = [line.recv(64).decode() for _ in range(4)]
        assert sorted(heard) == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]
        process.send_signal(signal.SIGTERM)
        while heard[-1] != "STOPPING=1":
            heard.append(line.recv(64).decode())
        assert process.wait(WAIT_SECONDS) == 0
    finally:
        process.kill()
        process.wait(WAIT_SECONDS)


def test_a_reader_that_does_not_come_back_from_a_piece_makes_the_agent_unsound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = EdgeAgent(EdgeSettings(outbox=tmp_path / "outbox.sqlite3"), None)
    has_begun, may_end = threading.Event(), threading.Event()

    def stuck() -> Job:
        has_begun.set()
        may_end.wait(WAIT_SECONDS)
        yield

    assert not agent.is_sound  # not started yet
    agent.start()
    try:
        assert agent.is_sound
        agent._inference.read_again(stuck(), 0.0)
        assert has_begun.wait(WAIT_SECONDS)
        assert agent.is_sound  # not for long enough
        monkeypatch.setattr(edge_agent_module, "STUCK_SECONDS", 0.0)
        assert not agent.is_sound
    finally:
        may_end.set()
        agent.stop()


def test_a_piece_has_a_time_only_while_it_is_in_hand() -> None:
    thread = InferenceThread(queue_bound=1)
    seen: list[float] = []

    def job() -> Job:
        seen.append(thread.piece_seconds)
        yield

    assert thread.piece_seconds == 0.0
    thread.start()
    thread.read_again(job(), 0.0)
    while not thread.is_idle or not seen:
        threading.Event().wait(0.01)
    assert seen[0] > 0.0
    assert thread.piece_seconds == 0.0
    thread.stop(WAIT_SECONDS)
