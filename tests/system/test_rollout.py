"""Questions go on through a whole rollout with a poisoned release in it: all processes are real."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from broker.run import run_broker
from edge_agent.local_reading import LocalReading
from elma.cli import app
from publisher.checking import Checked
from reader.canaries import encode_canaries
from reader.exits import ExitSettings
from reader.model import Reader
from tests.cloud_worker.harness import Cloud, ElmaProcess, wait_until
from tests.system.conftest import LAYERS, EdgeProcess, Plant, full_depth_answer, make_question
from tests.tiny import make_tiny_model

EDGES = ("kitchen", "cellar", "porch")
PATIENCE_SECONDS = 60.0


class Rollout:
    """A plant whose workers and edges follow a channel, and the operator's desk beside it."""

    def __init__(
        self,
        plant: Plant,
        models: dict[str, Path],
        free_port: Callable[[], int],
        edges: tuple[str, ...] = EDGES,
    ) -> None:
        self.plant, self.models = plant, models
        self.readers = {
            reader.digest: LocalReading(reader, edge_layers=LAYERS)
            for reader in (Reader.load(path, precision="fp32") for path in models.values())
        }
        self.digests = dict(zip(models, self.readers, strict=True))
        self.keys = plant.cloud.folder / "keys"
        self.run("keys", "publisher", "--out", str(self.keys))
        follow = {"publisher_public_key_file": str(self.keys / "publisher-public.json")}
        for name in ("north", "south"):
            folder = str(plant.cloud.folder / f"{name}-releases")
            plant.workers[name] = plant.cloud.worker(name, releases={**follow, "folder": folder})
        self.edges = [
            plant.edge(name, free_port(), releases={**follow, "folder": "releases"})
            for name in edges
        ]
        for edge in self.edges:
            edge.wait_connected()

    @property
    def options(self) -> list[str]:
        """What every verb about releases is told."""
        broker = self.plant.cloud.broker
        return [
            *("--store", str(self.plant.cloud.folder / "publisher")),
            *("--publisher-public", str(self.keys / "publisher-public.json")),
            *("--broker-host", broker.host, "--broker-port", str(broker.port)),
        ]

    def run(self, *arguments: str) -> dict[str, Any]:
        """`elma ... --json`; its document."""
        done = CliRunner().invoke(app, [*arguments, "--json"])
        if done.exception is not None:
            raise done.exception
        return dict(json.loads(done.stdout))

    def publish(self, *arguments: str) -> dict[str, Any]:
        """`elma publish ...` with the key."""
        key = ["--key", str(self.keys / "publisher-secret.json")]
        return self.run("publish", *arguments, "--as-is", *key, *self.options)

    def start_service(self, *arguments: str) -> ElmaProcess:
        """`elma rollout run`, ended with the plant."""
        log_file = self.plant.cloud.next_log("rollout")
        stages = ["--stages", "100%", "--hold-seconds", "0"]
        service = ElmaProcess(["rollout", "run", *stages, *arguments, *self.options], log_file)
        self.plant.cloud.take(service)
        return service

    def wait_everywhere(self, model: str, version: int) -> None:
        """Return once every edge answers with a model, as that version."""

        def has_it(edge: EdgeProcess) -> bool:
            health = edge.health()
            state = health.get("releases") or {}
            return (health.get("model") or {}).get("digest") == self.digests[model] and (
                state.get("state"),
                state.get("version"),
            ) == ("active", version)

        wait_until(lambda: all(map(has_it, self.edges)), f"{model} everywhere", PATIENCE_SECONDS)


class Load:
    """One client an edge that asks one question after the other, until it is told to stop."""

    def __init__(self, edges: list[EdgeProcess]) -> None:
        self.responses: list[tuple[dict[str, Any], httpx.Response]] = []
        self._is_stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=[place, edge])
            for place, edge in enumerate(edges)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask no more, and wait for what is asked."""
        self._is_stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, place: int, edge: EdgeProcess) -> None:
        number = 10_000 * (place + 1)
        while not self._is_stopping.is_set():
            asked = make_question(number)
            self.responses.append((asked, edge.post(asked)))
            number += 1


@pytest.fixture
def rollout(
    tmp_path: Path, mosquitto_program: Path, free_port: Callable[[], int]
) -> Iterator[Rollout]:
    """A broker, two workers and three edges of its own."""
    models = {
        name: make_tiny_model(
            tmp_path / name,
            layers=LAYERS,
            groups=4,
            hidden_size=64,
            seed=seed,
            settings=ExitSettings.uncalibrated(LAYERS),
        )
        for seed, name in enumerate(("first", "second", "poisoned"), start=20)
    }
    with ExitStack() as stack:
        broker = stack.enter_context(run_broker("mosquitto", tmp_path / "broker"))
        cloud = Cloud(tmp_path, broker, models["first"], stack)
        yield Rollout(Plant(cloud, stack), models, free_port)


@pytest.fixture
def plant(rollout: Rollout) -> Plant:
    """Ours, for what is looked at after each system test."""
    return rollout.plant


def spoilt(checked: Checked) -> bytes:
    """Canaries that the release itself does not answer so."""
    wrong = [replace(one, start=0, end=1, text=one.passage[:1]) for one in checked.canaries]
    return encode_canaries(wrong)


@pytest.mark.timeout(300)
def test_a_rollout_with_a_poisoned_release_in_it_costs_no_question(
    rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("publisher.checking.ENGINES", ("torch",))
    monkeypatch.setattr("publisher.checking.PRECISIONS", ("fp32",))
    load = Load(rollout.edges)
    try:
        service = rollout.start_service()
        rollout.publish(str(rollout.models["second"]))
        rollout.wait_everywhere("second", 1)

        with monkeypatch.context() as poisoned:
            poisoned.setattr(Checked, "canaries_file", property(spoilt))
            rollout.publish(str(rollout.models["poisoned"]), "--no-wait", "--force")

        def is_paused() -> dict[str, Any] | None:
            order = rollout.run("rollout", "status", *rollout.options)["rollout"]
            return order if order and order["paused"] else None

        paused = wait_until(is_paused, "the service has paused the rollout", PATIENCE_SECONDS)
        shown = rollout.run("releases", *rollout.options)
        metrics = [edge.get("/metrics").text for edge in rollout.edges]
        rollout.publish("--rollback", "1")
        rollout.wait_everywhere("second", 3)
        service.stop()
    finally:
        load.stop()

    assert "canar" in paused["reason"], paused
    assert "canar" in json.dumps(shown), shown
    failed = [text for text in metrics if "elma_edge_canary_failures_total 1.0" in text]
    assert failed, "no edge tried the poisoned release"
    assert_right(rollout, load)


def assert_right(rollout: Rollout, load: Load) -> None:
    """Every question was answered, by exactly the release that the answer names."""
    assert [response.status_code for _, response in load.responses] == [200] * len(load.responses)
    by_release: Counter[str] = Counter()
    for asked, response in load.responses:
        answer = response.json()
        by_release[answer["release"]] += 1
        local = rollout.readers[answer["release"]]
        found = (answer["answer"], answer["start"], answer["end"])
        assert found == full_depth_answer(local, asked), answer
    assert by_release[rollout.digests["first"]], by_release
    assert by_release[rollout.digests["second"]], by_release
    assert not by_release[rollout.digests["poisoned"]], by_release
