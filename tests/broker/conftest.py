"""Real brokers for the tests: each test gets its own, on a free port, and sessions on it.

A test that takes `broker` runs twice, against mosquitto and against the embedded broker.
`mosquitto` alone is for what the embedded broker does not do; each such test says what that is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import structlog

from broker.run import RunningBroker, run_broker
from broker.session import Session
from broker.settings import BrokerSettings

WAIT_SECONDS = 15.0
"""Long enough for a loaded machine; a test that passes never waits for it."""
QUICK = {"reconnect_min_seconds": 0.05, "reconnect_max_seconds": 0.2}


@pytest.fixture(params=["mosquitto", "embedded"])
def broker_kind(request: pytest.FixtureRequest) -> str:
    """Each kind of broker that this machine can run."""
    if request.param == "mosquitto":
        request.getfixturevalue("mosquitto_program")
    elif importlib.util.find_spec("iotcore") is None:
        pytest.skip("the embedded broker (iotcore) is not installed")
    return str(request.param)


@pytest.fixture
def broker(broker_kind: Any, tmp_path: Path) -> Iterator[RunningBroker]:
    """A fresh broker, mosquitto or embedded."""
    with run_broker(broker_kind, tmp_path / "broker") as running:
        yield running


@pytest.fixture
def mosquitto(mosquitto_program: Path, tmp_path: Path) -> Iterator[RunningBroker]:
    """A fresh mosquitto."""
    with run_broker("mosquitto", tmp_path / "broker") as running:
        yield running


Connect = Callable[..., Session]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Starts sessions that reconnect quickly, waits for them, and stops them in the end."""
    sessions: list[Session] = []

    def open_session(
        to: RunningBroker | BrokerSettings, client_id: str, *, wait: bool = True, **options: Any
    ) -> Session:
        settings = to.settings() if isinstance(to, RunningBroker) else to
        session = Session(settings.model_copy(update=QUICK), client_id, **options)
        sessions.append(session)
        session.start()
        if wait:
            assert session.wait_connected(WAIT_SECONDS), session.failure
        return session

    yield open_session
    for session in sessions:
        session.stop()


@pytest.fixture
def broken_log() -> Iterator[None]:
    """Every log line raises, as with a closed stderr."""

    def fails(*_: object) -> NoReturn:
        raise BrokenPipeError("nobody reads the log")

    structlog.configure(logger_factory=fails)
    yield
    structlog.reset_defaults()
