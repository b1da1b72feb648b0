"""What crosses the broker, seen from the edge: requests sealed and sent, words opened and checked.

Inputs: a question with its packed windows; deliveries. Outputs: publications on a session, opened
messages, results that fit the reading they belong to. Neighbours: `offload` calls it; `protocol`
knows the bytes and topics, `broker` carries them. No state but the keys.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from broker.errors import BrokerError
from broker.exchange import Delivery, Publication, Receipt, Subscription
from edge_agent.local_reading import Reading
from edge_agent.questions import Question
from protocol.errors import MalformedMessage
from protocol.keys import EdgeKeys, PoolPublic
from protocol.messages import (
    AnswerMessage,
    Presence,
    ResumeRequest,
    WindowResult,
    WorkerMessage,
    decode_message,
    encode_message,
)
from protocol.requests import WIRE_END_BYTES, wire_id_of
from protocol.sealing import (
    RequestHeader,
    RequestKey,
    open_answer,
    seal_cancel,
    seal_request,
)
from protocol.topics import AnswerTopic, CancelTopic, PresenceTopic, RequestTopic, parse_topic
from protocol.wire import WIRE_VERSION, Kind
from reader.spans import Span, WindowSpans
from reader.windows import Window

LONGEST_EXPIRY_SECONDS = 60


class CloudSession(Protocol):
    """What the edge needs of `broker.session.Session`; tests put their own in its place."""

    on_connection_change: Callable[[bool], None] | None
    on_subscription_refused: Callable[[str], None] | None

    @property
    def is_connected(self) -> bool:
        """Whether there is a live connection."""

    @property
    def maximum_packet_bytes(self) -> int:
        """The largest packet that the broker takes, as far as it has said."""

    def broker_certificate_expires(self) -> float:
        """When the broker's own certificate expires, in unix seconds; 0 without TLS."""

    def start(self) -> object:
        """Begin to connect, in the background."""

    def stop(self) -> None:
        """Disconnect."""

    def subscribe(self, subscription: Subscription) -> None:
        """Ask for one more while this connection lives."""

    def unsubscribe(self, topic_filter: str) -> None:
        """End what `subscribe` began."""

    def receive(self, timeout_seconds: float) -> Delivery | None:
        """The next delivery, or None."""

    def acknowledge(self, delivery: Delivery) -> bool:
        """Tell the broker that the delivery took effect."""

    def publish(self, publication: Publication) -> Receipt:
        """Hand a publication to the broker."""


@dataclass(frozen=True)
class SealedRequest:
    """A request as it is published, however often: the same id and the same bytes."""

    wire_id: str
    header: RequestHeader
    payload: bytes = field(repr=False)
    key: RequestKey = field(repr=False)


@dataclass(frozen=True)
class RequestSealer:
    """Seals and opens for one edge; `pool` gives the pool's key of now, for what is sealed next."""

    edge_keys: EdgeKeys
    pool: Callable[[], PoolPublic]

    @property
    def edge(self) -> str:
        """The edge's name in topics."""
        return self.edge_keys.edge

    def seal(self, question: Question, body: ResumeRequest, release: str) -> SealedRequest:
        """Seal a question's windows under its wire id. Raises ProtocolError.

        `release` is the digest of the reader that made the states, and must go on with them.
        """
        wire_id = wire_id_of(question.request_id, secrets.token_bytes(WIRE_END_BYTES))
        pool = self.pool()
        header = RequestHeader(
            version=WIRE_VERSION,
            pool_key_id=pool.key_id,
            edge=self.edge,
            request=wire_id,
            created=question.created,
            deadline=question.deadline,
            release=release,
        )
        payload, key = seal_request(header, body, self.edge_keys, pool)
        return SealedRequest(wire_id, header, payload, key)

    def publish(
        self,
        session: CloudSession,
        sealed: SealedRequest,
        remaining_seconds: float,
        priority: str,
    ) -> Receipt:
        """Publish a request that is wanted for `remaining_seconds`. Raises PublishError."""
        expiry_seconds = max(1, min(int(remaining_seconds) + 1, LONGEST_EXPIRY_SECONDS))
        return session.publish(
            Publication(
                str(RequestTopic(priority, self.edge, sealed.wire_id)),
                sealed.payload,
                expiry_seconds=expiry_seconds,
                response_topic=str(AnswerTopic(self.edge, sealed.wire_id)),
                correlation=sealed.wire_id.encode(),
            )
        )

    def open(self, payload: bytes, sealed: SealedRequest) -> WorkerMessage:
        """What a worker says to a request. Raises ProtocolError for forged or malformed bytes."""
        return open_answer(payload, sealed.header, sealed.key)

    def cancel(self, session: CloudSession, sealed: SealedRequest) -> None:
        """Take a request back where that is possible; a worker's spare work is the only loss."""
        topic = str(CancelTopic(self.edge, sealed.wire_id))
        payload = seal_cancel(sealed.header, sealed.key)
        with contextlib.suppress(BrokerError):
            session.publish(Publication(topic, payload, expiry_seconds=LONGEST_EXPIRY_SECONDS))


def presence(edge: str, *, is_online: bool) -> Publication:
    """The retained presence message of an edge; the offline one is also its last will."""
    topic = str(PresenceTopic("edge", edge))
    return Publication(topic, encode_message(Presence(is_online)), retain=True)


def presence_of(delivery: Delivery) -> tuple[str, bool] | None:
    """(worker, is online) of a presence message, None for any other topic.

    Raises ProtocolError. An empty payload clears a retained message, as a removed worker does.
    """
    topic = parse_topic(delivery.topic)
    if not isinstance(topic, PresenceTopic):
        return None
    if not delivery.payload:
        return topic.id, False
    message = decode_message(delivery.payload, {Kind.PRESENCE})
    return topic.id, isinstance(message, Presence) and message.online


def request_of(delivery: Delivery) -> str:
    """The wire id that a worker's message belongs to. Raises ProtocolError."""
    topic = parse_topic(delivery.topic)
    if not isinstance(topic, AnswerTopic):
        raise MalformedMessage("a message on a topic that this edge did not subscribe to")
    return topic.request


def check_answer(body: AnswerMessage, reading: Reading) -> Mapping[int, WindowSpans]:
    """The results by window, if they are exactly what was asked for. Raises MalformedMessage."""
    return check_results(
        body,
        reading.windows,
        reading.unresolved,
        from_layer=reading.walks[0].last_layer,
        layers=reading.local.reader.config.layers,
    )


def check_results(
    body: AnswerMessage,
    windows: Sequence[Window],
    asked: Collection[int],
    *,
    from_layer: int,
    layers: int,
) -> Mapping[int, WindowSpans]:
    """The results of the windows whose indexes were `asked`. Raises MalformedMessage.

    A worker is authenticated but may still be wrong: spans must lie in the passage part of their
    window, or be the null span, and come from a layer after `from_layer`, up to `layers`.
    """
    results = {result.index: result for result in body.results}
    if set(results) != set(asked):
        raise MalformedMessage("the answer covers other windows than asked")
    for index, result in results.items():
        if not result.spans or not from_layer < result.layer <= layers:
            raise MalformedMessage(f"window {index} has no result of a layer up to {layers}")
    return {index: _checked(result, windows[index]) for index, result in results.items()}


def _checked(result: WindowResult, window: Window) -> WindowSpans:
    first, last = window.question_tokens, len(window.token_ids) - 2
    for span in result.spans:
        is_null = span.start_token == span.end_token == 0
        if not is_null and not first <= span.start_token <= span.end_token <= last:
            raise MalformedMessage(f"a span outside window {result.index}")
    spans = tuple(
        Span(span.start_token, span.end_token, span.start_logit, span.end_logit)
        for span in result.spans
    )
    return WindowSpans(result.index, result.layer, result.null_score, spans)
