"""Fixtures of the worker's tests: tiny models, and clouds on either broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest
import structlog

from broker.run import run_broker
from reader.model import Reader
from tests.cloud_worker.harness import Cloud, make_window
from tests.tiny import make_tiny_model

MakeCloud = Callable[..., Cloud]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers in three groups, so that depths and groups differ."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), layers=6, groups=3)


@pytest.fixture(scope="session")
def tiny_reader(tiny_model: Path) -> Reader:
    """The tiny model, loaded."""
    return Reader.load(tiny_model, precision="fp32")


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on which `slow_windows` take a second or more."""
    folder = tmp_path_factory.mktemp("slow")
    return make_tiny_model(folder, layers=16, groups=2, hidden_size=64)


@pytest.fixture(scope="session")
def slow_windows(slow_model: Path) -> list[object]:
    """Windows that keep a worker busy for a while."""
    reader = Reader.load(slow_model)
    return [
        make_window(reader, index=index, tokens=384, seed=0, codec="fp16") for index in range(24)
    ]


@pytest.fixture
def make_cloud(tmp_path: Path, tiny_model: Path, mosquitto_program: Path) -> Iterator[MakeCloud]:
    """Starts a cloud on the named broker; everything ends with the test."""
    with ExitStack() as stack:

        def make(kind: str = "mosquitto", model: Path = tiny_model) -> Cloud:
            assert kind in ("mosquitto", "embedded")
            broker = stack.enter_context(run_broker(kind, tmp_path / "broker"))  # type: ignore[arg-type]
            return Cloud(tmp_path, broker, model, stack)

        yield make


@pytest.fixture
def broken_log() -> Iterator[None]:
    """Every log line raises, as with a closed stderr."""

    def fails(*_: object) -> NoReturn:
        raise BrokenPipeError("nobody reads the log")

    structlog.configure(logger_factory=fails)
    yield
    structlog.reset_defaults()
