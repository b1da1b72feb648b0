"""What several tests of verbs start from: an operator's desk with devices, and a secured site."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from broker.run import run_broker
from tests.elma.desk import Desk, Device
from tests.elma.secured_site import Site, make_site


@pytest.fixture
def desk(
    mosquitto_program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Desk]:
    """An operator and a broker; one way to run a model is enough here."""
    monkeypatch.setattr("publisher.checking.ENGINES", ("torch",))
    monkeypatch.setattr("publisher.checking.PRECISIONS", ("fp32",))
    with run_broker("mosquitto", tmp_path / "broker") as broker:
        yield Desk(tmp_path, broker)


@pytest.fixture
def device(desk: Desk) -> Iterator[Callable[..., Device]]:
    """Makes devices."""
    made: list[Device] = []

    def make(name: str, **options: Any) -> Device:
        made.append(Device(desk, name, **options))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def site(mosquitto_program: Path, tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Site]:
    """Keys and a secured broker's folder, by the command line; what runs there ends with it."""
    with ExitStack() as stack:
        yield make_site(tmp_path, stack, free_port)
