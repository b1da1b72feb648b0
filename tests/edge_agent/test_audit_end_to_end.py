"""Audits with a real broker, a real worker process and a real agent on its socket."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from broker.exchange import Subscription
from broker.run import RunningBroker, run_broker
from broker.session import Session
from cloud_worker.training.from_audit import read_audit_files
from cloud_worker.training.squad_files import read_squad
from edge_agent.audit_store import StoredAudit, read_audits
from elma.commands.errors import app as errors_app
from protocol.key_files import save_edge_keys, save_pool_public
from reader.exit_traces import answer_place
from reader.exits import ExitSettings
from reader.model import Reader
from reader.walk import walk
from tests.cloud_worker.harness import Cloud, WorkerProcess
from tests.edge_agent.conftest import (
    EDGE,
    Keys,
    RunningEdge,
    edge_settings,
    running_edge,
    wait_until,
)
from tests.edge_agent.fake_worker import FakeWorker
from tests.tiny import WORDS, make_tiny_model

LAYERS, EDGE_LAYERS, QUESTIONS = 4, 2, 16
QUICK = {"accept_seconds": 5.0, "cloud_wait_seconds": 1.0, "codec": "fp32"}


def question(number: int) -> dict[str, Any]:
    """A question about a passage of its own; every text holds "lighthouse"."""
    words = [WORDS[(number * 7 + place * (number + 3)) % len(WORDS)] for place in range(40)]
    passage = " ".join(["lighthouse", *words, str(number)])
    return {
        "request_id": f"q{number}",
        "question": f"who built lighthouse {number}",
        "context": passage,
    }


def windows_of(reader: Reader, asked: dict[str, Any]) -> list[Any]:
    return reader.split(asked["question"], asked["context"])


@pytest.fixture(scope="module")
def half_certain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is certain of about half of the questions at its first exit."""
    folder = tmp_path_factory.mktemp("model") / "half"
    make_tiny_model(folder, layers=LAYERS)
    reader = Reader.load(folder, threads=1, precision="fp32")
    unsure = []
    for number in range(QUESTIONS):
        batch = reader.run(reader.embed(windows_of(reader, question(number))), 0, 1)
        view = reader.view(batch, 1, np.zeros((len(batch), 0, 2), dtype=np.int64))
        unsure.append(float(reader.uncertainty(view)[0]))
    middle = sorted(unsure)[QUESTIONS // 2]
    settings = ExitSettings.uncalibrated(LAYERS)
    replace(settings, exit_thresholds=(middle - 1e-6, -1.0, -1.0, -1.0)).save(folder)
    return folder


@dataclass
class Plant:
    """Broker, worker, and everything that crossed the broker."""

    broker: RunningBroker
    model: Path
    folder: Path
    keys: Keys
    worker: WorkerProcess
    payloads: list[tuple[str, bytes]] = field(default_factory=list)

    def edge(self, stack: ExitStack, name: str, **settings: Any) -> RunningEdge:
        """An agent at the broker, connected; `name` names its folder."""
        folder = self.folder / name
        folder.mkdir()
        merged = {"offload": QUICK, "max_edge_layers": EDGE_LAYERS, "precision": "fp32"}
        loaded = edge_settings(
            self.model, folder, self.keys, self.broker.settings(), **{**merged, **settings}
        )
        edge = stack.enter_context(running_edge(loaded))
        wait_until(lambda: edge.get("/healthz").json()["cloud"]["connected"])
        return edge

    def requests(self) -> list[str]:
        """The topics of the requests so far."""
        return [topic for topic, _ in list(self.payloads) if "/req/" in topic]


@pytest.fixture(scope="module")
def plant(
    half_certain: Path, mosquitto_program: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Plant]:
    folder = tmp_path_factory.mktemp("plant")
    with ExitStack() as stack:
        broker = stack.enter_context(run_broker("mosquitto", folder / "broker"))
        cloud = Cloud(folder, broker, half_certain, stack)
        files = folder / "edge.json", folder / "pool.json"
        keys = Keys(cloud.enrol(EDGE), cloud.pool, *files)
        save_edge_keys(keys.edge_file, keys.edge)
        save_pool_public(keys.pool_file, cloud.pool.public)
        made = Plant(broker, half_certain, folder, keys, cloud.worker("w1"))
        tap = Session(
            broker.settings(), "tap", subscriptions=[Subscription("elma/#")], queue_bound=10_000
        )
        is_over = threading.Event()

        def listen() -> None:
            while not is_over.is_set():
                delivery = tap.receive(0.1)
                if delivery is not None:
                    made.payloads.append((delivery.topic, delivery.payload))
                    tap.acknowledge(delivery)

        thread = threading.Thread(target=listen, daemon=True)
        tap.start()
        assert tap.wait_connected(10.0)
        thread.start()
        yield made
        is_over.set()
        thread.join(5.0)
        tap.stop()


def audit_table(folder: Path, **settings: Any) -> dict[str, Any]:
    return {"rate": 1.0, "store_file": folder / "audit.sqlite3", **settings}


def recorded(edge: RunningEdge) -> int:
    health = edge.get("/healthz").json()["audit"]
    assert health["fault"] is None
    return int(health["recorded"])


SAME = ("answer", "start", "end", "score", "exit_layer", "resolved_by", "degraded")


def test_every_question_is_compared_and_no_answer_is_another(plant: Plant, tmp_path: Path) -> None:
    asked = [question(number) for number in range(QUESTIONS)]
    with ExitStack() as stack:
        plain = plant.edge(stack, "plain")
        expected = [plain.post(body).json() for body in asked]
        assert plain.get("/healthz").json()["audit"] is None
    counted = {kind: agreement(plant.worker, kind) for kind in ("audit", "offload")}
    before = len(plant.requests())
    with ExitStack() as stack:
        edge = plant.edge(stack, "audited", audit=audit_table(tmp_path, keep_text=True))
        answers = [edge.post(body).json() for body in asked]
        wait_until(lambda: recorded(edge) == QUESTIONS)
        compared = sum(
            edge.metric("elma_edge_audits_total", kind=kind, agrees=agrees)
            for kind in ("audit", "offload")
            for agrees in ("yes", "no")
        )
    assert compared == QUESTIONS
    for answer, wanted in zip(answers, expected, strict=True):
        assert {name: answer[name] for name in SAME} == {name: wanted[name] for name in SAME}

    by_edge = sum(answer["resolved_by"] == "edge" for answer in answers)
    assert 0 < by_edge < QUESTIONS, "both kinds are in it"
    stored = list(read_audits(tmp_path / "audit.sqlite3"))
    kinds = [row.record.kind for row in stored]
    assert (kinds.count("audit"), kinds.count("offload")) == (by_edge, QUESTIONS - by_edge)
    assert_compared_rightly(Reader.load(plant.model, threads=1, precision="fp32"), stored)
    assert len(plant.requests()) == before + QUESTIONS, "one request each, audits included"

    now = {kind: agreement(plant.worker, kind) for kind in ("audit", "offload")}
    agreed = {
        kind: (sum(row.record.agreed for row in rows), sum(not row.record.agreed for row in rows))
        for kind in ("audit", "offload")
        for rows in [[row for row in stored if row.record.kind == kind]]
    }
    for kind, (yes, no) in agreed.items():
        assert now[kind] == (counted[kind][0] + yes, counted[kind][1] + no), kind

    for topic, payload in plant.payloads:
        assert b"lighthouse" not in payload, topic


def agreement(worker: WorkerProcess, kind: str) -> tuple[float, float]:
    """Windows that agreed, and that did not, as the worker counts them."""

    def count(agrees: str) -> float:
        name = "elma_worker_agreement_total"
        layers = range(1, LAYERS + 1)
        return sum(
            worker.metric(name, agrees=agrees, kind=kind, layer=str(layer)) for layer in layers
        )

    return count("yes"), count("no")


def assert_compared_rightly(reader: Reader, stored: list[StoredAudit]) -> None:
    """Each row says of its question what one machine finds with all layers."""
    never = replace(reader.settings, exit_thresholds=(-1.0,) * LAYERS)
    for row in stored:
        assert row.text is not None
        windows = reader.split(row.text.question, row.text.passage)
        full = walk(reader, windows, settings=never).resolved
        mine = walk(reader, windows, last_layer=EDGE_LAYERS).results
        answer = answer_place(windows, full.values(), reader.settings)
        assert row.record.answer == answer
        assert row.record.agreed == (
            answer == answer_place(windows, mine.values(), reader.settings)
        )
        assert row.record.exit_layer == max(spans.layer for spans in mine.values())


def test_the_exports_of_a_device_are_read_by_training_and_calibration(
    plant: Plant, tmp_path: Path
) -> None:
    store = tmp_path / "audit.sqlite3"
    with ExitStack() as stack:
        edge = plant.edge(stack, "exporting", audit=audit_table(tmp_path, keep_text=True))
        for number in range(QUESTIONS):
            edge.post(question(number))
        wait_until(lambda: recorded(edge) == QUESTIONS)
        arguments = ["--squad", str(tmp_path / "e.json"), "--audit", str(tmp_path / "a.jsonl")]
        done = CliRunner().invoke(errors_app, ["export", str(store), *arguments, "--json"])
        assert done.exit_code == 0, done.output  # while the agent runs
    records = read_audit_files([tmp_path / "a.jsonl"])
    assert len(records) == QUESTIONS
    assert {record.weight for record in records} == {1.0}
    wrong = sum(not record.agreed for record in records)
    assert wrong > 0
    assert len(read_squad(tmp_path / "e.json")) == wrong == json.loads(done.stdout)["questions"]


def test_offline_nothing_is_sent_then_or_later(
    mosquitto: RunningBroker, half_certain: Path, tmp_path: Path, keys: Keys
) -> None:
    reader = Reader.load(half_certain, threads=1, precision="fp32")
    settings = edge_settings(
        half_certain,
        tmp_path,
        keys,
        mosquitto.settings().model_copy(
            update={"reconnect_min_seconds": 0.1, "reconnect_max_seconds": 0.3}
        ),
        audit=audit_table(tmp_path),
        offload=QUICK,
        precision="fp32",
    )
    worker = FakeWorker(mosquitto.settings(), reader, keys.pool, keys.edge)
    with running_edge(settings) as edge, worker:
        wait_until(lambda: edge.get("/healthz").json()["cloud"]["connected"])
        mosquitto.kill()
        wait_until(lambda: not edge.get("/healthz").json()["cloud"]["connected"])
        for number in range(QUESTIONS):
            assert edge.post(question(number)).json()["resolved_by"] == "edge"
        mosquitto.restart()
        assert worker.session.wait_connected(20.0)
        wait_until(lambda: edge.get("/healthz").json()["cloud"]["connected"])
        later = itertools.count(100)

        def is_auditing() -> bool:
            edge.post(question(next(later)))
            return recorded(edge) > 0

        wait_until(is_auditing)
    offline = {question(number)["request_id"] for number in range(QUESTIONS)}
    assert worker.requests
    assert not offline & set(worker.requests)
    stored = read_audits(tmp_path / "audit.sqlite3")
    assert sum(row.record.weight for row in stored) <= next(later) - 100


def test_a_damaged_file_of_audits_costs_no_answer(plant: Plant, tmp_path: Path) -> None:
    (tmp_path / "audit.sqlite3").write_bytes(b"no database " * 1000)
    with ExitStack() as stack:
        edge = plant.edge(stack, "damaged", audit=audit_table(tmp_path))
        answers = [edge.post(question(number)).json() for number in range(4)]
        wait_until(lambda: edge.get("/healthz").json()["audit"]["fault"] is not None)
        assert "damaged" in edge.get("/healthz").json()["audit"]["fault"]
        assert edge.get("/healthz").json()["status"] == "ok"
        assert all("answer" in answer and not answer["degraded"] for answer in answers)
