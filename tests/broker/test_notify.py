"""What a service tells systemd: that it serves and goes on; nothing once it is not sound."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.notify import ServiceManager

INTERVAL = {"WATCHDOG_USEC": "40000000"}


class Manager:
    """systemd's end of the line."""

    def __init__(self, address: str) -> None:
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._line.bind(address)
        self._line.setblocking(False)

    def heard(self) -> list[str]:
        """What came since the last look."""
        states = []
        while True:
            try:
                states.append(self._line.recv(1024).decode())
            except BlockingIOError:
                return states

    def close(self) -> None:
        self._line.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """Listens at `notify` in the test's folder."""
    listener = Manager(str(tmp_path / "notify"))
    yield listener
    listener.close()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What systemd sets."""
    return {"NOTIFY_SOCKET": str(tmp_path / "notify"), **INTERVAL}


def test_it_says_that_it_serves_and_that_it_stops(
    manager: Manager, environment: dict[str, str]
) -> None:
    service = ServiceManager(environment)
    service.ready()
    service.stopping()
    assert manager.heard() == ["READY=1", "STOPPING=1"]


def test_the_watchdog_is_fed_four_times_an_interval_however_often_it_is_called(
    manager: Manager, environment: dict[str, str]
) -> None:
    now = 0.0
    service = ServiceManager(environment, clock=lambda: now)
    for second in range(40):
        now = float(second)
        service.feed(is_sound=True)
    assert manager.heard() == ["WATCHDOG=1"] * 4


def test_a_service_that_is_not_sound_feeds_nothing_until_it_is_again(
    manager: Manager, environment: dict[str, str]
) -> None:
    now = 0.0
    service = ServiceManager(environment, clock=lambda: now)
    for second in (0.0, 20.0, 40.0):
        now = second
        service.feed(is_sound=False)
    assert manager.heard() == []
    service.feed(is_sound=True)
    assert manager.heard() == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    "changes",
    [
        {"NOTIFY_SOCKET": ""},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "often"},
        {"WATCHDOG_PID": str(os.getpid() + 1)},
    ],
)
def test_nothing_is_fed_where_systemd_asks_this_process_for_nothing(
    manager: Manager, environment: dict[str, str], changes: dict[str, str]
) -> None:
    ServiceManager(environment | changes).feed(is_sound=True)
    assert manager.heard() == []


def test_an_abstract_socket_is_reached_too() -> None:
    name = f"elma-test-{os.getpid()}"
    manager = Manager(f"\0{name}")
    ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).ready()
    assert manager.heard() == ["READY=1"]
    manager.close()


def test_a_manager_that_is_gone_does_not_hurt_the_service(environment: dict[str, str]) -> None:
    service = ServiceManager(environment)
    service.ready()
    service.feed(is_sound=True)
