"""What the tests of the edge share: a tiny reader, keys, brokers, and an agent on a real socket."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.run import RunningBroker, run_broker
from broker.settings import BrokerSettings
from edge_agent.agent import EdgeAgent
from edge_agent.service import EdgeServer, listen, make_agent
from edge_agent.settings import EdgeSettings, load_settings
from protocol.key_files import save_edge_keys, save_pool_public
from protocol.keys import EdgeKeys, PoolKeys
from reader.model import Reader
from tests.tiny import make_tiny_model

EDGE = "kitchen"
PASSAGE = "the lighthouse was built by the king in the year of the war. the keeper was old."
QUESTION = "who built the lighthouse"
LAYERS = 4


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random reader of 4 layers that never exits early."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", layers=LAYERS)


@pytest.fixture(scope="session")
def reader(model_folder: Path) -> Reader:
    """The same, loaded."""
    return Reader.load(model_folder)


@dataclass(frozen=True)
class Keys:
    """The keys of one edge and its pool, in memory and as files."""

    edge: EdgeKeys
    pool: PoolKeys
    edge_file: Path
    pool_file: Path


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """Fresh keys."""
    made = Keys(
        EdgeKeys.make(EDGE), PoolKeys.make("p1"), tmp_path / "edge.json", tmp_path / "pool.json"
    )
    save_edge_keys(made.edge_file, made.edge)
    save_pool_public(made.pool_file, made.pool.public)
    return made


@pytest.fixture
def mosquitto(mosquitto_program: Path, tmp_path: Path) -> Iterator[RunningBroker]:
    """A running mosquitto."""
    with run_broker("mosquitto", tmp_path / "broker") as broker:
        yield broker


@dataclass
class RunningEdge:
    """An agent with its HTTP server on a thread of this process."""

    agent: EdgeAgent
    url: str

    def post(self, body: dict[str, Any] | bytes, timeout_seconds: float = 60.0) -> httpx.Response:
        """POST /v1/answer."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        return httpx.post(
            f"{self.url}/v1/answer", timeout=timeout_seconds, content=content, headers=headers
        )

    def ask(self, **fields: Any) -> dict[str, Any]:
        """The answer to the test's question; `fields` add to the body."""
        response = self.post({"question": QUESTION, "context": PASSAGE, **fields})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def get(self, path: str) -> httpx.Response:
        """GET a path."""
        return httpx.get(f"{self.url}{path}", timeout=30.0)

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric; 0 where it was never counted."""
        return self.agent.metrics.registry.get_sample_value(name, labels) or 0.0


StartEdge = Callable[..., RunningEdge]


@pytest.fixture
def start_edge(model_folder: Path, tmp_path: Path, keys: Keys) -> Iterator[StartEdge]:
    """A function that starts an agent; `broker` makes it offload, `settings` are as in the file."""
    with ExitStack() as stack:

        def start(
            broker: BrokerSettings | None = None,
            before_start: Callable[[EdgeAgent], None] | None = None,
            **settings: Any,
        ) -> RunningEdge:
            loaded = edge_settings(model_folder, tmp_path, keys, broker, **settings)
            return stack.enter_context(running_edge(loaded, before_start))

        yield start


@pytest.fixture(scope="module")
def shared_edge(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningEdge]:
    """One agent without a cloud for all tests of a file that do not change it."""
    folder = tmp_path_factory.mktemp("shared-edge")
    with running_edge(edge_settings(model_folder, folder, None, None)) as edge:
        yield edge


@contextmanager
def running_edge(
    settings: EdgeSettings, before_start: Callable[[EdgeAgent], None] | None = None
) -> Iterator[RunningEdge]:
    """An agent and its server, started, and stopped in the end."""
    agent = make_agent(settings)
    if before_start is not None:
        before_start(agent)
    with listen(settings) as listener:
        agent.start()
        server = EdgeServer(agent, settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield RunningEdge(agent, "http://{}:{}".format(*listener.getsockname()))
        finally:
            agent.begin_stop()
            server.should_exit = True
            thread.join(30.0)


def edge_settings(
    model_folder: Path,
    folder: Path,
    keys: Keys | None,
    broker: BrokerSettings | None,
    **settings: Any,
) -> EdgeSettings:
    """Settings for a test: two layers on the edge, quick patience."""
    merged: dict[str, Any] = {
        "name": EDGE,
        "model": str(model_folder),
        "outbox": folder / "outbox.sqlite3",
        "shutdown_seconds": 2.0,
        "default_deadline_seconds": 20.0,
        "threads": 1,
        **settings,
        "http": {"port": 0, **settings.get("http", {})},
    }
    if broker is not None and keys is not None:
        merged["broker"] = broker.model_dump()
        merged["max_edge_layers"] = settings.get("max_edge_layers", 2)
        merged["offload"] = {
            "edge_key_file": keys.edge_file,
            "pool_public_key_file": keys.pool_file,
            "codec": "fp32",
            **settings.get("offload", {}),
        }
    return load_settings(None, merged)


def wait_until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for a condition; fails the test when it does not come true."""
    give_up_at = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up_at, "the awaited condition did not come true"
        time.sleep(0.01)
