"""What every test gets: one torch thread, logging as it was, free ports, and the system's programs.

With CI=true a missing mosquitto or Prometheus is a failure; elsewhere it is a skip with its reason.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

# Before torch is imported, here or in a child process: many small tests, few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


LONG_FILES = ("tests/system/", "tests/deploy/test_watch", "tests/elma/test_bench_")
LONG_FILES += tuple(f"tests/elma/test_{name}.py" for name in ("demo", "enroll", "renew", "rotate"))
LONG_FILES += ("tests/cloud_worker/test_channel.py", "tests/cloud_worker/test_lifetimes.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of few long tests first: at the end they would keep one process busy alone."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG_FILES))


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A test may configure structlog; the next one finds the defaults again."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ELMA_...` variables of the person who runs the tests change no test."""
    for name in list(os.environ):
        if name.startswith("ELMA_"):
            monkeypatch.delenv(name)


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A function that names a TCP port on 127.0.0.1 that nobody listens on."""

    def find() -> int:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port: int = listener.getsockname()[1]
            return port

    return find


@pytest.fixture(scope="session")
def mosquitto_program() -> Path:
    """This machine's mosquitto; a skip where there is none, a failure under CI=true."""
    return find_program("mosquitto", package="mosquitto")


@pytest.fixture(scope="session")
def prometheus_program() -> Path:
    """This machine's Prometheus; a skip where there is none, a failure under CI=true."""
    return find_program("prometheus", package="prometheus")


@pytest.fixture(scope="session")
def promtool_program() -> Path:
    """What tests rules of Prometheus; a skip where there is none, a failure under CI=true."""
    return find_program("promtool", package="prometheus")


def find_program(name: str, *, package: str) -> Path:
    """Where a program of the system is; a skip where it is not, a failure under CI=true."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        reason = f"{name} is not installed (Debian: apt-get install {package})"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}, and CI=true demands it")
        pytest.skip(reason)
    return Path(found)
