"""A worker that computes nothing: `python -m elma.bench.echo_worker`, for `elma bench wire`.

In, one JSON line on stdin: {"port": .., "pool": FILE, "edges": FOLDER, "model": FOLDER}. It does
with each request all that a worker does but the layers: opens it, decodes its states, says
"accepted", and seals an answer with as many spans as a worker sends. It says "ready" on stdout when
it is connected, and ends when stdin does. Neighbours: `wire` asks it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from broker.exchange import Delivery, Publication, Subscription
from broker.session import Session
from broker.settings import BrokerSettings
from elma.bench.release_codecs import ReleaseCodecs
from elma.log_form import LogForm, LogFormat
from elma.output import configure_logging
from protocol.key_files import EdgeFolder, load_pool_keys
from protocol.keys import PoolKeys
from protocol.messages import (
    MAX_SPANS,
    Accepted,
    AnswerMessage,
    ResumeRequest,
    SpanScore,
    WindowResult,
    WorkerMessage,
)
from protocol.sealing import OpenedRequest, open_request, seal_answer
from protocol.topics import AnswerTopic, RequestTopic, parse_topic, worker_subscription

NAME = "echo"
CONNECT_SECONDS = 30.0
LEASE_SECONDS = 5.0
EXPIRY_SECONDS = 60


class EchoWorker:
    """Answers every request at once."""

    def __init__(
        self, session: Session, pool: PoolKeys, edges: EdgeFolder, codecs: ReleaseCodecs
    ) -> None:
        self._session, self._pool, self._edges, self._codecs = session, pool, edges, codecs

    def serve(self, stopping: threading.Event) -> None:
        """Until stopped."""
        while not stopping.is_set():
            delivery = self._session.receive(0.5)
            if delivery is not None:
                self._answer(delivery)

    def _answer(self, delivery: Delivery) -> None:
        topic = parse_topic(delivery.topic)
        if not isinstance(topic, RequestTopic):
            return
        opened = open_request(delivery.payload, self._pool, self._edges, time.time(), topic)
        self._say(opened, Accepted(LEASE_SECONDS, NAME))
        self._session.acknowledge(delivery)
        self._say(opened, self._echo(opened.body))

    def _say(self, opened: OpenedRequest, message: WorkerMessage) -> None:
        header = opened.header
        self._session.publish(
            Publication(
                str(AnswerTopic(header.edge, header.request)),
                seal_answer(header, opened.key, message),
                expiry_seconds=EXPIRY_SECONDS,
            )
        )

    def _echo(self, request: ResumeRequest) -> AnswerMessage:
        results = []
        for window in request.windows:
            self._codecs.decode(window.codec, window.from_layer, window.state, window.length_tokens)
            spans = tuple(SpanScore(place, place, 1.0, 1.0) for place in range(MAX_SPANS))
            results.append(WindowResult(window.index, window.from_layer, 0.0, spans))
        return AnswerMessage(tuple(results), NAME, 0.0, 0.0)


def main() -> None:
    """Connect, say so, answer until stdin ends."""
    configure_logging("warning", LogForm(LogFormat.CONSOLE))  # stdout is for the one word
    task = json.loads(sys.stdin.readline())
    session = Session(
        BrokerSettings(port=task["port"]),
        f"worker-{NAME}",
        subscriptions=[Subscription(worker_subscription("normal"))],
    )
    stopping = threading.Event()
    with session:
        if not session.wait_connected(CONNECT_SECONDS):
            sys.exit(f"no connection to the broker: {session.failure}")
        worker = EchoWorker(
            session,
            load_pool_keys(Path(task["pool"])),
            EdgeFolder(Path(task["edges"])),
            ReleaseCodecs.of_model(task["model"]),
        )
        thread = threading.Thread(target=worker.serve, args=(stopping,), daemon=True)
        thread.start()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()
        stopping.set()
        thread.join(2.0)


if __name__ == "__main__":
    main()
