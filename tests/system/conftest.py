"""A whole ELMA on this machine for the system tests: mosquitto, two workers, edges; all processes.

Every text that is asked carries `SECRET_WORDS`; after each test no log and no payload may hold one
of them, nor any key (`nothing_leaked`).
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.exchange import Subscription
from broker.run import run_broker
from broker.session import Session
from edge_agent.local_reading import LocalReading
from edge_agent.questions import Question
from protocol.key_files import save_edge_keys, save_pool_public
from reader.exits import ExitSettings
from reader.model import Reader
from tests.cloud_worker.harness import (
    WAIT_SECONDS,
    Cloud,
    ElmaProcess,
    WorkerProcess,
    wait_until,
    write_toml,
)
from tests.tiny import add_bottleneck, make_tiny_model

LAYERS = 8
EDGE_LAYERS = 2
SECRET_WORDS = ("lighthousekeeper", "saltpeter", "windjammer")
DEADLINE_SECONDS = 40.0


@pytest.fixture(scope="session")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight layers in four groups that never exit early: every answer is the full depth's."""
    folder = make_tiny_model(
        tmp_path_factory.mktemp("deep"),
        layers=LAYERS,
        groups=4,
        hidden_size=64,
        settings=ExitSettings.uncalibrated(LAYERS),
    )
    for layer in range(1, LAYERS):
        add_bottleneck(folder, layer=layer)
    return folder


class EdgeProcess(ElmaProcess):
    """`elma edge run` and its HTTP interface."""

    def __init__(self, name: str, config: Path, log_file: Path, port: int) -> None:
        self.name = name
        super().__init__(["edge", "run", "--config", str(config)], log_file)
        self.url = f"http://127.0.0.1:{port}"

    def health(self) -> dict[str, Any]:
        """Its `/healthz`, empty while nobody listens."""
        try:
            response = httpx.get(f"{self.url}/healthz", timeout=10.0, trust_env=False)
        except httpx.TransportError:
            assert self.process.poll() is None, self.log
            return {}
        document: dict[str, Any] = response.json()
        return document

    def wait_connected(self) -> EdgeProcess:
        """Return once it has its broker."""

        def is_connected() -> bool:
            return bool((self.health().get("cloud") or {}).get("connected"))

        wait_until(is_connected, f"edge {self.name} connected", 60.0)
        return self

    def post(self, body: dict[str, Any]) -> httpx.Response:
        """POST /v1/answer, as long as it takes."""
        return httpx.post(f"{self.url}/v1/answer", json=body, timeout=90.0, trust_env=False)

    def get(self, path: str) -> httpx.Response:
        """GET a path."""
        return httpx.get(f"{self.url}{path}", timeout=30.0, trust_env=False)


class Plant:
    """The broker, its workers and edges, and everything that crossed the broker."""

    def __init__(self, cloud: Cloud, stack: ExitStack) -> None:
        self.cloud, self._stack = cloud, stack
        self.workers: dict[str, WorkerProcess] = {}
        self.payloads: list[tuple[str, bytes]] = []
        self._tap = Session(
            cloud.broker.settings().model_copy(update={"reconnect_max_seconds": 0.5}),
            "tap",
            subscriptions=[Subscription("elma/#", qos=0)],
            receive_maximum=1000,
            queue_bound=10_000,
        )
        self._is_tapping = True
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._tap.start()
        self._thread.start()
        assert self._tap.wait_connected(WAIT_SECONDS)
        stack.callback(self._stop_tap)

    def start_workers(self, *names: str) -> None:
        """Start workers that are not running, all at once."""
        for name in names:
            old = self.workers.get(name)
            if old is None or old.process.poll() is not None:
                self.workers[name] = self.cloud.worker(name, ready=False)
        for name in names:
            self.workers[name].wait_ready()

    def edge(
        self,
        name: str,
        port: int,
        *,
        releases: dict[str, Any] | None = None,
        tracing: dict[str, Any] | None = None,
        **offload: Any,
    ) -> EdgeProcess:
        """Start an edge, with the keys and the outbox that it had before, if it had any.

        `releases` makes it follow a channel, `tracing` sends its spans to a collector.
        """
        folder = self.cloud.folder / name
        if name not in self.cloud.keys:
            folder.mkdir()
            save_edge_keys(folder / "edge-secret.json", self.cloud.enrol(name))
            save_pool_public(folder / "pool-public.json", self.cloud.pool.public)
        broker = {"host": self.cloud.broker.host, "port": self.cloud.broker.port}
        write_toml(
            folder / "edge.toml",
            {
                "name": name,
                "model": str(self.cloud.model),
                "outbox": "outbox.sqlite3",
                "max_edge_layers": EDGE_LAYERS,
                "threads": 1,
                "precision": "fp32",
                "http": {"port": port},
                "broker": broker | {"reconnect_min_seconds": 0.1, "reconnect_max_seconds": 0.5},
                "offload": {
                    "edge_key_file": "edge-secret.json",
                    "pool_public_key_file": "pool-public.json",
                    "codec": "fp32",  # answers are compared with those of one machine
                    **offload,
                },
                **({} if releases is None else {"releases": releases}),
                **({} if tracing is None else {"tracing": tracing}),
            },
        )
        process = EdgeProcess(name, folder / "edge.toml", self.cloud.next_log(name), port)
        self._stack.callback(process.stop)
        self.cloud.processes.append(process)
        return process

    def logs(self) -> str:
        """Everything that any process of the plant has logged, the broker too."""
        parts = {process.log_file for process in self.cloud.processes}
        parts.add(self.cloud.broker.directory / "broker.log")
        return "\n".join(part.read_text(encoding="utf-8", errors="replace") for part in parts)

    def _listen(self) -> None:
        while self._is_tapping:
            delivery = self._tap.receive(0.2)
            if delivery is not None:
                self.payloads.append((delivery.topic, delivery.payload))

    def _stop_tap(self) -> None:
        self._is_tapping = False
        self._thread.join(5.0)
        self._tap.stop()


@pytest.fixture(scope="session")
def plant(
    tmp_path_factory: pytest.TempPathFactory, deep_model: Path, mosquitto_program: Path
) -> Iterator[Plant]:
    """One plant for all system tests; the tests start what they need and do not have."""
    folder = tmp_path_factory.mktemp("plant")
    with ExitStack() as stack:
        broker = stack.enter_context(run_broker("mosquitto", folder / "broker"))
        yield Plant(Cloud(folder, broker, deep_model, stack), stack)


@pytest.fixture
def two_workers(plant: Plant) -> dict[str, WorkerProcess]:
    """Two workers that take requests; restarted when an earlier test has killed one."""
    plant.start_workers("north", "south")
    return plant.workers


@pytest.fixture(scope="session")
def edge_port() -> int:
    """One port for the shared edge, over all its lives."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def shared_edge(plant: Plant, edge_port: int) -> EdgeProcess:
    """One edge for all tests that do not kill it."""
    return plant.edge("kitchen", edge_port).wait_connected()


@pytest.fixture(autouse=True)
def nothing_leaked(plant: Plant) -> Iterator[None]:
    """After each test: no text and no key in any log, no text in any payload."""
    yield
    logs = plant.logs()
    secrets = [plant.cloud.pool.secret_of(key_id) for key_id in plant.cloud.pool.ids]
    secrets += [keys.secret for keys in plant.cloud.keys.values()]
    spelled = [
        text for secret in secrets for text in (secret.hex(), base64.b64encode(secret).decode())
    ]
    for forbidden in (*SECRET_WORDS, *spelled):
        assert forbidden not in logs
    for topic, payload in plant.payloads:
        assert not any(word.encode() in payload for word in SECRET_WORDS), topic


def make_question(number: int, words: int = 30) -> dict[str, Any]:
    """A question of one window; every passage is another one."""
    filling = [f"{SECRET_WORDS[place % 3]} {number * 31 + place}" for place in range(words // 5)]
    return {
        "request_id": f"q-{number}",
        "question": f"who saw the {SECRET_WORDS[number % 3]} of year {number}",
        "context": f"the old {SECRET_WORDS[0]} built a ship. {'. '.join(filling)}. {number}",
        "deadline_seconds": DEADLINE_SECONDS,
    }


def full_depth_answer(local: LocalReading, asked: dict[str, Any]) -> tuple[str, int, int]:
    """Text, start and end of the answer of one machine that runs all layers."""
    question = Question("local", asked["question"], asked["context"], 1, 60.0, 0.0)
    reading = local.read(question)
    answer = local.answer(
        reading,
        reading.resolved,
        resolved_by="edge",
        degraded=False,
        latency_seconds=0.0,
        bytes_sent=0,
    )
    return answer.answer, answer.start, answer.end


@pytest.fixture(scope="session")
def one_machine(deep_model: Path) -> LocalReading:
    """The same model at full depth, in this process."""
    return LocalReading(Reader.load(deep_model, precision="fp32"), edge_layers=LAYERS)


class Crowd:
    """Questions asked at once, each by a client of its own."""

    def __init__(self, edge: EdgeProcess, questions: list[dict[str, Any]]) -> None:
        self.questions = questions
        self._pool = ThreadPoolExecutor(max_workers=len(questions))
        self._futures: list[Future[httpx.Response]] = [
            self._pool.submit(edge.post, question) for question in questions
        ]

    def done_count(self) -> int:
        """How many have their response, or lost their connection."""
        return sum(future.done() for future in self._futures)

    def answers(self) -> list[dict[str, Any]]:
        """Every answer, in the order of the questions; a failure when one has none."""
        responses = [future.result(timeout=120.0) for future in self._futures]
        self._pool.shutdown()
        assert [response.status_code for response in responses] == [200] * len(responses)
        return [response.json() for response in responses]

    def let_go(self) -> None:
        """Wait for all, whatever came of them."""
        self._pool.shutdown(wait=True)
