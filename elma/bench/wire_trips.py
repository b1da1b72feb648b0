"""The way of one state through a real broker, for `elma bench wire`.

In: a window's state, keys made for the run, a broker. Out: milliseconds from a state to an opened
answer. Neighbours: `echo_worker` is the other end, `wire` times the steps alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from broker.exchange import Publication, Subscription
from broker.run import RunningBroker
from broker.session import Session
from elma.bench.contest import child_environment
from elma.bench.release_codecs import ReleaseCodecs
from elma.output import CommandError
from protocol.key_files import save_edge_public, save_pool_keys
from protocol.keys import EdgeKeys, PoolKeys
from protocol.messages import MAX_SPANS, AnswerMessage, RequestWindow, ResumeRequest
from protocol.sealing import RequestHeader, open_answer, seal_request
from protocol.topics import AnswerTopic, RequestTopic, answer_subscription, new_request_id
from protocol.wire import WIRE_VERSION
from reader.arrays import FloatArray
from reader.windows import Window

EDGE = "bench"
PRIORITY = "normal"
ANSWER_SECONDS = 30.0
DEADLINE_SECONDS = 60.0
START_SECONDS = 60.0
WARM_UP_ROUNDS = 5


@dataclass(frozen=True)
class Sample:
    """One window after `layer`, as every codec gets it."""

    window: Window
    state: FloatArray  # [T, H]
    layer: int
    release: str


@dataclass(frozen=True)
class Keys:
    """Keys of one run, made for it."""

    edge: EdgeKeys
    pool: PoolKeys

    @classmethod
    def make(cls) -> Keys:
        """Fresh ones."""
        return cls(EdgeKeys.make(EDGE), PoolKeys.make("bench-pool"))

    def public_key(self, edge: str) -> bytes:
        """As an edge directory."""
        if edge != self.edge.edge:
            raise KeyError(edge)
        return self.edge.public


def time_round_trips(
    sample: Sample, codecs: ReleaseCodecs, keys: Keys, broker: RunningBroker, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds from a state to an opened answer, by codec: encoded, sealed, published, opened
    and decoded by the worker, which says "accepted" and seals an answer, and that opened here."""
    session = Session(
        broker.settings(),
        f"edge-{EDGE}",
        subscriptions=[Subscription(answer_subscription(EDGE))],
        queue_bound=64,
    )
    trips: dict[str, list[float]] = {codec: [] for codec in codecs.names(sample.layer)}
    with session:
        if not session.wait_connected(START_SECONDS):
            raise CommandError(f"no connection to the broker: {session.failure}")
        for round_number in range(rounds + WARM_UP_ROUNDS):
            for codec in trips:
                begin = time.perf_counter()
                payload = encode(codecs, codec, sample)
                _ask(session, sample, keys, codec, payload)
                if round_number >= WARM_UP_ROUNDS:  # the first ones warm up both ends
                    trips[codec].append((time.perf_counter() - begin) * 1000)
    return trips


@contextmanager
def running_echo_worker(
    model: str, broker: RunningBroker, keys: Keys, folder: Path
) -> Iterator[None]:
    """The worker that computes nothing, connected. Raises CommandError."""
    save_pool_keys(folder / "pool-secret.json", keys.pool)
    save_edge_public(folder / "edges", EDGE, keys.edge.public)
    # Our own program with words of our own making, and no shell.
    process = subprocess.Popen(
        [sys.executable, "-m", "elma.bench.echo_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=child_environment(1, "native"),
        text=True,
    )
    task = {
        "port": broker.port,
        "pool": str(folder / "pool-secret.json"),
        "edges": str(folder / "edges"),
        "model": model,
    }
    try:
        if process.stdin is not None and process.stdout is not None:
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
            if process.stdout.readline().strip() != "ready":
                raise CommandError("the worker that computes nothing did not start; see above")
        yield
    finally:
        process.kill()
        process.communicate(timeout=10.0)


def _ask(session: Session, sample: Sample, keys: Keys, codec: str, payload: bytes) -> None:
    header = make_header(sample, keys)
    request = make_request(sample, codec, payload)
    sealed, key = seal_request(header, request, keys.edge, keys.pool.public)
    topic = str(RequestTopic(PRIORITY, EDGE, header.request))
    session.publish(Publication(topic, sealed, expiry_seconds=60))
    answers = str(AnswerTopic(EDGE, header.request))
    end = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < end:
        delivery = session.receive(1.0)
        if delivery is None:
            continue
        session.acknowledge(delivery)
        if delivery.topic != answers:
            continue
        if isinstance(open_answer(delivery.payload, header, key), AnswerMessage):
            return
    raise CommandError(f"no answer through the broker within {ANSWER_SECONDS:.0f} seconds")


def encode(codecs: ReleaseCodecs, codec: str, sample: Sample) -> bytes:
    """The sample in a codec."""
    return codecs.encode(codec, sample.layer, sample.state, sample.window.token_ids)


def make_request(sample: Sample, codec: str, payload: bytes) -> ResumeRequest:
    """The message that asks for the sample."""
    window = sample.window
    packed = RequestWindow(
        window.index, sample.layer, len(window), window.question_tokens, codec, payload
    )
    return ResumeRequest((packed,), MAX_SPANS)


def make_header(sample: Sample, keys: Keys) -> RequestHeader:
    """A header of now."""
    created = time.time()
    return RequestHeader(
        version=WIRE_VERSION,
        pool_key_id=keys.pool.current_id,
        edge=EDGE,
        request=new_request_id(),
        created=created,
        deadline=created + DEADLINE_SECONDS,
        release=sample.release,
    )
