"""What the tests of the worker start and speak with: real worker processes, and a small edge.

`Cloud` is one broker with keys, a tiny model and any number of worker processes. `FakeEdge` is an
edge made of `protocol` and `broker` alone: it seals requests, keeps the bytes to send them again,
and collects what workers say, in the order in which it came.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from broker.exchange import Delivery, Publication, Subscription
from broker.run import RunningBroker
from broker.session import Session
from protocol.key_files import save_edge_public, save_pool_keys
from protocol.keys import EdgeKeys, PoolKeys, PoolPublic
from protocol.messages import (
    MAX_SPANS,
    Accepted,
    AnswerMessage,
    Busy,
    ErrorMessage,
    RequestWindow,
    ResumeRequest,
    WorkerMessage,
)
from protocol.sealing import (
    RequestHeader,
    RequestKey,
    open_answer,
    seal_cancel,
    seal_request,
)
from protocol.topics import (
    AnswerTopic,
    CancelTopic,
    RequestTopic,
    answer_subscription,
    new_request_id,
    parse_topic,
)
from protocol.wire import WIRE_VERSION
from reader.arrays import FloatArray
from reader.model import Reader
from reader.spans import WindowSpans
from reader.state_codecs import encode_state

START_SECONDS = 60.0
WAIT_SECONDS = 20.0
QUESTION_TOKENS = 5
FINAL = (AnswerMessage, ErrorMessage)


def wait_until(holds: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS) -> Any:
    """The first true value of `holds()`; a failure that says what did not come."""
    end = time.monotonic() + seconds
    while True:
        value = holds()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds:g} seconds: {what}"
        time.sleep(0.02)


def write_toml(path: Path, settings: dict[str, Any]) -> None:
    """Plain values, then one table for each mapping."""
    plain = {name: value for name, value in settings.items() if not isinstance(value, dict)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in plain.items()]
    for name, table in settings.items():
        if isinstance(table, dict):
            lines += [
                f"[{name}]",
                *(f"{key} = {json.dumps(value)}" for key, value in table.items()),
            ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class ElmaProcess:
    """`elma ...` as a child with its log, at DEBUG, in a file. Always ended by `stop`."""

    def __init__(self, arguments: Sequence[str], log_file: Path) -> None:
        self.log_file = log_file
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("ELMA_")
        }
        options = ["--log-level", "debug", "--log-format", "json"]
        with log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "elma", *options, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment | {"OMP_NUM_THREADS": "1"},
            )

    @property
    def log(self) -> str:
        """Everything it has logged."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def events(self, event: str) -> list[dict[str, Any]]:
        """Its log lines of one kind."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == event]

    def wait_for_event(self, event: str, seconds: float = START_SECONDS) -> dict[str, Any]:
        """The first log line of a kind; a failure with the log when the process ends before."""

        def look() -> dict[str, Any] | None:
            found = self.events(event)
            alive = self.process.poll() is None
            assert found or alive, f"ended with {self.process.returncode}: {self.log}"
            return found[0] if found else None

        return dict(wait_until(look, f"the log line {event}", seconds))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = WAIT_SECONDS) -> int:
        """The exit status."""
        return self.process.wait(seconds)

    def stop(self) -> None:
        """End it, by force."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_SECONDS)


class WorkerProcess(ElmaProcess):
    """`elma worker run` and its HTTP port."""

    def __init__(self, name: str, config: Path, log_file: Path) -> None:
        self.name, self.config = name, config
        super().__init__(["worker", "run", "--config", str(config)], log_file)
        self._health_url = ""

    @property
    def health_url(self) -> str:
        """Where its health is, once it has started."""
        if not self._health_url:
            self._health_url = str(self.wait_for_event("worker_started")["health"])
        return self._health_url

    def get(self, path: str) -> httpx.Response:
        """A page of its HTTP port."""
        return httpx.get(self.health_url.replace("/healthz", path), timeout=5.0, trust_env=False)

    def wait_ready(self) -> WorkerProcess:
        """Return once it takes requests."""
        wait_until(lambda: self.get("/readyz").status_code == 200, f"{self.name} ready")
        return self

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample; 0 when it is not there."""
        inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
        wanted = f"{name}{{{inner}}} " if labels else f"{name} "
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(wanted):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def outcomes(self) -> list[str]:
        """What became of each request, from its log lines."""
        return [event["outcome"] for event in self.events("request")]


@dataclass
class Sent:
    """A request that was sealed: its bytes to send again, and what its answers open with."""

    header: RequestHeader
    payload: bytes
    key: RequestKey
    words: list[WorkerMessage] = field(default_factory=list)

    def final(self) -> WorkerMessage | None:
        """The answer or the error, when there is one."""
        return next((word for word in self.words if isinstance(word, FINAL)), None)

    def of(self, kind: type[Any]) -> list[Any]:
        """Every word of a kind."""
        return [word for word in self.words if isinstance(word, kind)]


class FakeEdge:
    """Seals, publishes and listens, and keeps no lease and no outbox."""

    def __init__(self, keys: EdgeKeys, pool: PoolPublic, release: str, session: Session) -> None:
        self.keys, self.pool, self.release, self.session = keys, pool, release, session
        self.sent: dict[str, Sent] = {}
        self.unexpected: list[Delivery] = []
        self._is_stopping = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        session.start()
        self._thread.start()
        assert session.wait_connected(WAIT_SECONDS)

    def seal(
        self,
        windows: Sequence[RequestWindow],
        *,
        deadline_seconds: float = 30.0,
        age_seconds: float = 0.0,
        request: str | None = None,
        release: str | None = None,
        keys: EdgeKeys | None = None,
        pool: PoolPublic | None = None,
        top_spans: int = MAX_SPANS,
    ) -> Sent:
        """A sealed request, not yet published."""
        pool = pool or self.pool
        created = time.time() - age_seconds
        header = RequestHeader(
            version=WIRE_VERSION,
            pool_key_id=pool.key_id,
            edge=self.keys.edge,
            request=request or new_request_id(),
            created=created,
            deadline=created + deadline_seconds,
            release=release or self.release,
        )
        body = ResumeRequest(tuple(windows), top_spans)
        payload, key = seal_request(header, body, keys or self.keys, pool)
        return Sent(header, payload, key)

    def publish(self, sent: Sent, payload: bytes | None = None) -> Sent:
        """Publish a request, again or with other bytes, and listen for its answers."""
        self.sent.setdefault(sent.header.request, sent)
        topic = str(RequestTopic("normal", self.keys.edge, sent.header.request))
        reply = str(AnswerTopic(self.keys.edge, sent.header.request))
        publication = Publication(
            topic,
            sent.payload if payload is None else payload,
            expiry_seconds=60,
            response_topic=reply,
            correlation=sent.header.request.encode(),
        )
        self._hand_over(publication)
        return sent

    def cancel(self, sent: Sent) -> None:
        """Take a request back."""
        topic = str(CancelTopic(self.keys.edge, sent.header.request))
        self._hand_over(Publication(topic, seal_cancel(sent.header, sent.key)))

    def wait_final(self, sent: Sent, seconds: float = WAIT_SECONDS) -> Any:
        """The answer or error of a request."""
        what = f"an answer to {sent.header.request}, there is {sent.words}"
        return wait_until(sent.final, what, seconds)

    def wait_for(self, sent: Sent, kind: type[Any], count: int = 1) -> Any:
        """The first word of a kind, once there are `count`."""
        name = f"{count} {kind.__name__}"
        return wait_until(lambda: len(sent.of(kind)) >= count and sent.of(kind), name)[0]

    def stop(self) -> None:
        """Listen no more."""
        self._is_stopping = True
        self._thread.join(5.0)
        self.session.stop()

    def _hand_over(self, publication: Publication) -> None:
        self.session.wait_connected(WAIT_SECONDS)
        receipt = self.session.publish(publication)
        receipt.wait(WAIT_SECONDS)

    def _listen(self) -> None:
        while not self._is_stopping:
            delivery = self.session.receive(0.1)
            if delivery is None:
                continue
            topic = parse_topic(delivery.topic)
            sent = self.sent.get(topic.request) if isinstance(topic, AnswerTopic) else None
            if sent is None:
                self.unexpected.append(delivery)
            else:
                sent.words.append(open_answer(delivery.payload, sent.header, sent.key))
            self.session.acknowledge(delivery)


class Cloud:
    """A broker, the keys of a pool and of its edges, a model, and what was started on them."""

    def __init__(self, folder: Path, broker: RunningBroker, model: Path, stack: ExitStack) -> None:
        self.folder, self.broker, self.model, self._stack = folder, broker, model, stack
        self.reader = Reader.load(model, precision="fp32")
        self.pool = PoolKeys.make("pool-1").rotate("pool-2")
        self.keys: dict[str, EdgeKeys] = {}
        self.processes: list[ElmaProcess] = []
        save_pool_keys(folder / "pool-secret.json", self.pool)
        (folder / "edges").mkdir()

    def worker(self, name: str, *, ready: bool = True, **settings: Any) -> WorkerProcess:
        """Start a worker; `settings` go over the usual ones."""
        config = self.folder / f"{name}.toml"
        document: dict[str, Any] = {
            "name": name,
            "model": str(self.model),
            "threads": 1,
            "precision": "fp32",
            "http": {"port": 0},
            "broker": {
                "host": self.broker.host,
                "port": self.broker.port,
                "reconnect_min_seconds": 0.1,
                "reconnect_max_seconds": 0.5,
            },
        }
        write_toml(config, document | settings)
        process = WorkerProcess(name, config, self.next_log(name))
        self.take(process)
        return process.wait_ready() if ready else process

    def take(self, process: ElmaProcess) -> None:
        """It ends with the cloud, and its log is one of the cloud's."""
        self._stack.callback(process.stop)
        self.processes.append(process)

    def next_log(self, name: str) -> Path:
        """A log file of its own for each life of a process."""
        return self.folder / f"{name}-{len(self.processes)}.log"

    def enrol(self, edge: str) -> EdgeKeys:
        """Make an edge's keys and let the workers know it."""
        self.keys[edge] = EdgeKeys.make(edge)
        save_edge_public(self.folder / "edges", edge, self.keys[edge].public)
        return self.keys[edge]

    def edge(self, name: str = "kitchen") -> FakeEdge:
        """An enrolled edge, connected."""
        session = Session(
            self.broker.settings(),
            f"edge-{name}",
            subscriptions=[Subscription(answer_subscription(name))],
            clean_start=False,
            session_expiry_seconds=600,
            receive_maximum=64,
            queue_bound=1024,
        )
        edge = FakeEdge(self.enrol(name), self.pool.public, self.reader.digest, session)
        self._stack.callback(edge.stop)
        return edge


def make_state(reader: Reader, layer: int, tokens: int, seed: int) -> FloatArray:
    """A state `[T, H]` that really came out of `layer` layers."""
    generator = np.random.default_rng(seed)
    first = generator.standard_normal((tokens, reader.config.hidden_size), dtype=np.float32)
    engine = reader.engine
    return engine.states(reader.run(engine.pack([first], [QUESTION_TOKENS]), 0, layer))[0]


def spans_alone(reader: Reader, state: FloatArray, layer: int) -> WindowSpans:
    """The result of one window, run by itself from `layer` to the last."""
    last = reader.config.layers
    batch = reader.run(reader.engine.pack([state], [QUESTION_TOKENS]), layer, last)
    return reader.spans(batch, last, [0])[0]


def make_window(
    reader: Reader,
    *,
    index: int = 0,
    layer: int = 1,
    tokens: int = 24,
    seed: int = 0,
    codec: str = "fp32",
) -> RequestWindow:
    """A window as an edge sends it."""
    state = make_state(reader, layer, tokens, seed)
    return RequestWindow(index, layer, tokens, QUESTION_TOKENS, codec, encode_state(codec, state))


__all__ = [
    "Accepted",
    "AnswerMessage",
    "Busy",
    "Cloud",
    "ElmaProcess",
    "ErrorMessage",
    "FakeEdge",
    "Sent",
    "WorkerProcess",
    "make_state",
    "make_window",
    "spans_alone",
    "wait_until",
]
