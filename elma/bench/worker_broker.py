"""The same load through a real broker to a real worker process, as a check on the figures without.

In: a model folder and requests. Out: questions a second while the worker is kept full. Neighbours:
`worker` shows it beside the throughput of `worker_core`.

Sender, broker and worker share one machine here: the sender takes part of the worker's cores.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from broker.errors import TooManyInFlight
from broker.exchange import Publication, Subscription
from broker.run import RunningBroker, run_broker
from broker.session import Session
from elma.bench.worker_load import LeftRequest
from elma.demonstration.processes import Child
from elma.demonstration.scenario import is_ready
from elma.demonstration.setup import LOOPBACK, free_ports, write_toml
from elma.output import CommandError
from protocol.key_files import save_edge_public, save_pool_keys
from protocol.keys import EdgeKeys, PoolKeys
from protocol.messages import (
    MAX_SPANS,
    AnswerMessage,
    Busy,
    ErrorMessage,
    RequestWindow,
    ResumeRequest,
)
from protocol.sealing import RequestHeader, RequestKey, open_answer, seal_request
from protocol.topics import (
    AnswerTopic,
    RequestTopic,
    answer_subscription,
    new_request_id,
    parse_topic,
)
from protocol.wire import WIRE_VERSION
from reader.state_codecs import encode_state

EDGE, WORKER = "bench", "bench-worker"
CODEC = "int8"
ALLOWED_SECONDS = 60.0
START_SECONDS = 120.0
CONNECT_SECONDS = 20.0
WARM_SECONDS = 2.0
_TOKENS = "elma_worker_tokens_total"


def qps_over_broker(
    model: Path,
    release: str,
    requests: Sequence[LeftRequest],
    *,
    threads: int,
    engine: str,
    precision: str,
    seconds: float,
    held: int,
    mean_work: float,
) -> float:
    """Questions a second of a worker that is kept at `held` requests for so long.

    By the worker's own count of tokens, over `mean_work` (tokens times layers) of a question.
    Raises CommandError, or `broker.errors.BrokerMissing` where there is no broker to start.
    """
    with tempfile.TemporaryDirectory(prefix="elma-bench-") as name:
        folder, keys, pool = Path(name), EdgeKeys.make(EDGE), PoolKeys.make("bench-pool")
        with (
            run_broker("auto", folder / "broker") as broker,
            _worker(folder, broker, model, keys, pool, threads, engine, precision, held) as url,
        ):
            session = Session(
                broker.settings(),
                f"edge-{EDGE}",
                subscriptions=[Subscription(answer_subscription(EDGE))],
                receive_maximum=64,
                queue_bound=64 + 4 * held,
            )
            with session:
                if not session.wait_connected(CONNECT_SECONDS):
                    raise CommandError("the benchmark's device found no broker")
                sender = _Sender(session, keys, pool, release, requests, held)
                sender.send_until(time.monotonic() + WARM_SECONDS)
                begin, before = time.monotonic(), _tokens(url)
                sender.send_until(begin + seconds)
                tokens = _tokens(url) - before
                return tokens / (time.monotonic() - begin) / mean_work


class _Sender:
    """A device that always has `held` questions under way."""

    def __init__(
        self,
        session: Session,
        keys: EdgeKeys,
        pool: PoolKeys,
        release: str,
        requests: Sequence[LeftRequest],
        held: int,
    ) -> None:
        self._session, self._keys, self._pool = session, keys, pool
        self._release, self._held = release, held
        self._chance = random.Random(0)  # noqa: S311 - a load, not a secret
        self._bodies = [_body(request) for request in requests]
        self._under_way: dict[str, tuple[RequestHeader, RequestKey]] = {}
        self._sealed: tuple[RequestHeader, Publication, RequestKey] | None = None

    def send_until(self, end: float) -> None:
        """Send and receive until then (monotonic seconds)."""
        while time.monotonic() < end:
            is_sent = len(self._under_way) < self._held and self._send()
            self._receive(0.0 if is_sent else 0.005)

    def _send(self) -> bool:
        """One more, unless the broker allows no more publications at the moment."""
        header, publication, key = self._sealed or self._seal()
        try:
            self._session.publish(publication)
        except TooManyInFlight:
            self._sealed = header, publication, key
            return False
        self._sealed = None
        self._under_way[header.request] = header, key
        return True

    def _seal(self) -> tuple[RequestHeader, Publication, RequestKey]:
        created = time.time()
        header = RequestHeader(
            WIRE_VERSION,
            self._pool.current_id,
            EDGE,
            new_request_id(),
            created,
            created + ALLOWED_SECONDS,
            self._release,
        )
        body = self._chance.choice(self._bodies)
        payload, key = seal_request(header, body, self._keys, self._pool.public)
        topic = str(RequestTopic("normal", EDGE, header.request))
        return header, Publication(topic, payload, expiry_seconds=int(ALLOWED_SECONDS)), key

    def _receive(self, wait_seconds: float) -> None:
        delivery = self._session.receive(wait_seconds)
        if delivery is None:
            return
        self._session.acknowledge(delivery)
        topic = parse_topic(delivery.topic)
        known = self._under_way.get(topic.request) if isinstance(topic, AnswerTopic) else None
        if known is None or not isinstance(topic, AnswerTopic):
            return
        word = open_answer(delivery.payload, *known)
        if isinstance(word, AnswerMessage | Busy | ErrorMessage):
            del self._under_way[topic.request]


def _body(request: LeftRequest) -> ResumeRequest:
    """A request's states as a device sends them."""
    return ResumeRequest(
        tuple(
            RequestWindow(
                index,
                window.layer,
                len(window.state),
                window.question_tokens,
                CODEC,
                encode_state(CODEC, window.state),
            )
            for index, window in enumerate(request)
        ),
        MAX_SPANS,
    )


@contextmanager
def _worker(
    folder: Path,
    broker: RunningBroker,
    model: Path,
    keys: EdgeKeys,
    pool: PoolKeys,
    threads: int,
    engine: str,
    precision: str,
    held: int,
) -> Iterator[str]:
    """A worker process that is ready; gives the address of its metrics."""
    [port] = free_ports(1)
    save_pool_keys(folder / "pool-secret.json", pool)
    save_edge_public(folder / "edges", EDGE, keys.public)
    settings = {
        "name": WORKER,
        "model": str(model.resolve()),
        "threads": threads,
        "engine": engine,
        "precision": precision,
        "queue_bound": held,
        "http": {"host": LOOPBACK, "port": port},
        "broker": {"host": broker.host, "port": broker.port},
    }
    write_toml(folder / "worker.toml", settings)
    arguments = ["--log-level", "error", "worker", "run", "--config", str(folder / "worker.toml")]
    child = Child("worker", arguments, folder / "worker.log")
    url = f"http://{LOOPBACK}:{port}"
    try:
        child.wait_until(lambda: is_ready(f"{url}/readyz"), wait_seconds=START_SECONDS)
        yield f"{url}/metrics"
    finally:
        child.stop(wait_seconds=1.0)


def _tokens(url: str) -> float:
    """Tokens that the worker has run a layer on."""
    lines = httpx.get(url, timeout=10.0, trust_env=False).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(_TOKENS))
