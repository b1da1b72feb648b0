"""A worker for the tests of the edge: real protocol, real session, and misbehaviour on demand.

Input: requests of the shared subscription. Output: what its `behaviour` says. It resumes with a
real `Reader`, so its answers are those of full depth.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from broker.errors import PublishError
from broker.exchange import Delivery, Publication, Subscription
from broker.session import Session
from broker.settings import BrokerSettings
from protocol.errors import ProtocolError
from protocol.keys import EdgeKeyring, EdgeKeys, PoolKeys
from protocol.messages import (
    Accepted,
    AnswerMessage,
    Presence,
    RequestWindow,
    SpanScore,
    WindowResult,
    WorkerMessage,
    encode_message,
)
from protocol.sealing import OpenedRequest, open_request, seal_answer
from protocol.topics import (
    CancelTopic,
    PresenceTopic,
    RequestTopic,
    cancel_subscription,
    parse_topic,
    worker_subscription,
)
from reader.arrays import FloatArray
from reader.codecs import TOKENS, decode_tokens
from reader.model import Reader

Behaviour = Callable[["FakeWorker", OpenedRequest, str], None]


def answers(worker: FakeWorker, request: OpenedRequest, reply_topic: str) -> None:
    """A good worker: accepted, then the answer."""
    worker.say(request, reply_topic, Accepted(30.0, worker.name))
    worker.say(request, reply_topic, worker.resume(request))


@dataclass
class FakeWorker:
    """Takes requests until stopped; `requests` holds the id of each that arrived, repeats too.

    The ids are those of the askers: without the random end that the edge gives them on the wire.
    `others` are further releases that it holds.
    """

    broker: BrokerSettings
    reader: Reader
    pool: PoolKeys
    edge: EdgeKeys
    behaviour: Behaviour = answers
    name: str = "worker-1"
    others: Sequence[Reader] = ()
    requests: list[str] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stopping = threading.Event()
        topic = str(PresenceTopic("worker", self.name))
        self.session = Session(
            self.broker,
            self.name,
            subscriptions=[
                Subscription(worker_subscription()),
                Subscription(cancel_subscription()),
            ],
            receive_maximum=20,
            will=Publication(topic, encode_message(Presence(False)), retain=True),
            birth=Publication(topic, encode_message(Presence(True)), retain=True),
        )
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FakeWorker:
        self.session.start()
        assert self.session.wait_connected(10.0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.session.stop()
        self._thread.join(10.0)

    def say(self, request: OpenedRequest, reply_topic: str, message: WorkerMessage) -> None:
        """Seal a message and publish it to the edge."""
        self.say_bytes(reply_topic, seal_answer(request.header, request.key, message))

    def say_bytes(self, reply_topic: str, payload: bytes) -> None:
        """Publish any bytes to the edge, as soon as the session takes them."""
        give_up_at = time.monotonic() + 20.0
        while True:
            try:
                self.session.publish(Publication(reply_topic, payload, expiry_seconds=60))
            except PublishError:
                if self._stopping.wait(0.01) or time.monotonic() > give_up_at:
                    raise
            else:
                return

    def resume(self, request: OpenedRequest) -> AnswerMessage:
        """The spans of full depth for every window of a request."""
        held = {reader.digest: reader for reader in (self.reader, *self.others)}
        reader = held.get(request.header.release, self.reader)
        layers = reader.config.layers
        results = []
        for window in request.body.windows:
            state = self._state_of(window, reader)
            batch = reader.engine.pack([state], [window.question_tokens])
            batch = reader.run(batch, window.from_layer, layers)
            (spans,) = reader.spans(batch, layers, [window.index])
            found = tuple(
                SpanScore(span.start_token, span.end_token, span.start_logit, span.end_logit)
                for span in spans.spans
            )
            results.append(WindowResult(window.index, layers, spans.null_score, found))
        return AnswerMessage(tuple(results), self.name, 0.0, 0.0)

    def _state_of(self, window: RequestWindow, reader: Reader) -> FloatArray:
        tokens = window.length_tokens
        if window.codec != TOKENS:
            return reader.codecs.decode(window.codec, window.from_layer, window.state, tokens)
        ids = decode_tokens(window.state, tokens, reader.config.vocab_size)
        engine = reader.engine
        return engine.states(engine.embed([ids], [window.question_tokens]))[0]

    def _run(self) -> None:
        while not self._stopping.is_set():
            delivery = self.session.receive(0.2)
            if delivery is not None:
                self._take(delivery)
                self.session.acknowledge(delivery)

    def _take(self, delivery: Delivery) -> None:
        topic = parse_topic(delivery.topic)
        if isinstance(topic, CancelTopic):
            self.cancelled.append(topic.request.rpartition("-")[0])
            return
        assert isinstance(topic, RequestTopic)
        assert delivery.response_topic is not None
        self.requests.append(topic.request.rpartition("-")[0])
        self.payloads.append(delivery.payload)
        directory = EdgeKeyring({self.edge.edge: self.edge.public})
        try:
            opened = open_request(delivery.payload, self.pool, directory, time.time(), topic)
        except ProtocolError as error:
            raise AssertionError(
                f"the edge sent a request that cannot be opened: {error}"
            ) from error
        self.behaviour(self, opened, delivery.response_topic)
