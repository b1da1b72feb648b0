"""Subscriptions that come and go while a connection lives, as for the chunks of a release."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from broker.connection import MAX_SUBSCRIBING
from broker.errors import BrokerSettingsError, NotConnected, SessionStopped, TooManyInFlight
from broker.exchange import Delivery, Outcome, Publication, Subscription
from broker.run import RunningBroker
from broker.session import Session
from broker.settings import BrokerSettings
from tests.broker.conftest import WAIT_SECONDS, Connect
from tests.broker.test_refusals import NOT_AUTHORISED, Peer, connack, suback
from tests.broker.test_session import PERSISTENT, QUIET_SECONDS, receive, wait_until

CHUNK_BYTES = 64 * 1024


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A peer that says what the test tells it to."""
    made = Peer()
    yield made
    made.close()


def retain(session: Session, topic: str, payload: bytes) -> None:
    """Publish a retained message and wait until the broker has it."""
    receipt = session.publish(Publication(topic, payload, retain=True))
    assert receipt.wait(WAIT_SECONDS) in (Outcome.ACKNOWLEDGED, Outcome.NO_SUBSCRIBER)


def publish_until_heard(publisher: Session, listener: Session, topic: str) -> Delivery:
    """Publish again and again until the listener, whose subscription is on its way, hears."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        assert time.monotonic() < deadline, f"nothing came on {topic}"
        publisher.publish(Publication(topic, b"now"))
        delivery = listener.receive(0.1)
        if delivery is not None:
            listener.acknowledge(delivery)
            return delivery


def drain(session: Session) -> None:
    """Acknowledge everything that is on its way."""
    while (delivery := session.receive(QUIET_SECONDS)) is not None:
        session.acknowledge(delivery)


def test_a_retained_message_arrives_when_it_is_subscribed_to(
    broker: RunningBroker, connect: Connect
) -> None:
    publisher = connect(broker, "publisher")
    retain(publisher, "blob/a/0", b"chunk 0")
    retain(publisher, "blob/a/1", b"chunk 1")
    edge = connect(broker, "edge-1", subscriptions=[Subscription("ans/+")])
    edge.subscribe(Subscription("blob/a/1"))
    delivery = receive(edge)
    assert (delivery.topic, delivery.payload, delivery.retained) == ("blob/a/1", b"chunk 1", True)
    assert edge.acknowledge(delivery)
    assert edge.receive(QUIET_SECONDS) is None


def test_a_retained_message_arrives_again_when_it_is_subscribed_to_again(
    broker: RunningBroker, connect: Connect
) -> None:
    publisher = connect(broker, "publisher")
    retain(publisher, "blob/a/0", b"chunk 0")
    edge = connect(broker, "edge-1")
    for _ in range(3):
        edge.subscribe(Subscription("blob/a/0"))
        delivery = receive(edge)
        assert edge.acknowledge(delivery)
        assert delivery.payload == b"chunk 0"
        edge.unsubscribe("blob/a/0")


def test_after_unsubscribing_nothing_more_arrives(broker: RunningBroker, connect: Connect) -> None:
    publisher = connect(broker, "publisher")
    edge = connect(broker, "edge-1", subscriptions=[Subscription("ans/+")])
    edge.subscribe(Subscription("t/1"))
    publish_until_heard(publisher, edge, "t/1")
    drain(edge)
    edge.unsubscribe("t/1")
    # Its own subscription comes after the UNSUBSCRIBE on the same connection: a marker.
    edge.subscribe(Subscription("marker/1"))
    publish_until_heard(publisher, edge, "marker/1")
    drain(edge)
    publisher.publish(Publication("t/1", b"late"))
    publisher.publish(Publication("ans/1", b"answer"))
    assert receive(edge).payload == b"answer"
    assert edge.receive(QUIET_SECONDS) is None


def test_many_chunks_come_through_a_window_of_four(broker: RunningBroker, connect: Connect) -> None:
    publisher = connect(broker, "publisher")
    chunks = {f"blob/a/{number}": bytes([number]) * CHUNK_BYTES for number in range(24)}
    for topic, payload in chunks.items():
        retain(publisher, topic, payload)
    edge = connect(broker, "edge-1", receive_maximum=8, queue_bound=8)
    wanted, had = list(chunks), {}
    for topic in wanted[:4]:
        edge.subscribe(Subscription(topic))
    rest = iter(wanted[4:])
    while len(had) < len(chunks):
        delivery = receive(edge)
        edge.acknowledge(delivery)
        had[delivery.topic] = delivery.payload
        edge.unsubscribe(delivery.topic)
        following = next(rest, None)
        if following is not None:
            edge.subscribe(Subscription(following))
    assert had == chunks
    assert edge.dropped_total == 0
    assert edge.epoch == 1


def test_a_reconnect_forgets_what_was_added_and_keeps_its_own(
    broker: RunningBroker, connect: Connect
) -> None:
    publisher = connect(broker, "publisher")
    edge = connect(broker, "edge-1", subscriptions=[Subscription("ans/+")])
    edge.subscribe(Subscription("t/1"))
    publish_until_heard(publisher, edge, "t/1")
    cut(edge)
    publisher.publish(Publication("t/1", b"for nobody"))
    publisher.publish(Publication("ans/1", b"answer"))
    wait_until(lambda: edge.is_connected)
    assert publish_until_heard(publisher, edge, "ans/2").topic.startswith("ans/")
    drain(edge)
    publisher.publish(Publication("t/1", b"for nobody"))
    assert edge.receive(QUIET_SECONDS) is None


def test_a_broker_that_keeps_the_session_is_told_to_forget_what_was_added(
    mosquitto: RunningBroker, connect: Connect
) -> None:
    """mosquitto only: the embedded broker keeps no session. An edge's session lives an hour, and
    with it every subscription, whoever made it."""
    publisher = connect(mosquitto, "publisher")
    edge = connect(mosquitto, "edge-1", subscriptions=[Subscription("ans/+")], **PERSISTENT)
    for topic in ("t/1", "ans/7"):
        edge.subscribe(Subscription(topic))
        publish_until_heard(publisher, edge, topic)
    drain(edge)
    for _ in range(2):
        cut(edge)
        publisher.publish(Publication("t/1", b"for nobody"))
        publisher.publish(Publication("ans/7", b"its own"))
        delivery = receive(edge)
        assert (delivery.topic, delivery.payload) == ("ans/7", b"its own")
        edge.acknowledge(delivery)
        assert edge.receive(QUIET_SECONDS) is None
    edge.subscribe(Subscription("t/1"))
    assert publish_until_heard(publisher, edge, "t/1").topic == "t/1"


def cut(session: Session) -> None:
    """End the connection as a failing link does, and wait for the next."""
    epoch, connection = session.epoch, session._keeper.connection
    assert connection is not None
    connection.abandon("cut by the test")
    wait_until(lambda: session.epoch > epoch and session.is_connected)


def test_a_refusal_is_reported_and_the_session_goes_on(peer: Peer, connect: Connect) -> None:
    peer.replies = [connack(), suback(NOT_AUTHORISED)]
    refused: list[str] = []
    edge = connect(peer.settings, "edge-1")
    edge.on_subscription_refused = refused.append
    edge.subscribe(Subscription("blob/a/0"))
    wait_until(lambda: refused == ["blob/a/0"])
    assert edge.is_connected
    assert edge.epoch == 1


def test_an_exception_in_the_hook_is_counted_and_the_session_goes_on(
    peer: Peer, connect: Connect
) -> None:
    def hook(_topic_filter: str) -> None:
        raise RuntimeError("a fault of the caller")

    peer.replies = [connack(), suback(NOT_AUTHORISED)]
    edge = connect(peer.settings, "edge-1")
    edge.on_subscription_refused = hook
    edge.subscribe(Subscription("blob/a/0"))
    wait_until(lambda: edge.callback_failures_total == 1)
    assert edge.is_connected


def test_subscriptions_without_an_answer_are_bounded(peer: Peer, connect: Connect) -> None:
    peer.replies = [connack()]
    edge = connect(peer.settings, "edge-1")
    for number in range(MAX_SUBSCRIBING):
        edge.subscribe(Subscription(f"blob/{number}"))
    with pytest.raises(TooManyInFlight, match="one/too/many"):
        edge.subscribe(Subscription("one/too/many"))


def test_subscribing_needs_a_connection(connect: Connect) -> None:
    edge = connect(BrokerSettings(port=1), "edge-1", wait=False)
    with pytest.raises(NotConnected):
        edge.subscribe(Subscription("t/1"))
    with pytest.raises(NotConnected):
        edge.unsubscribe("t/1")
    edge.stop()
    with pytest.raises(SessionStopped):
        edge.subscribe(Subscription("t/1"))
    with pytest.raises(SessionStopped):
        edge.unsubscribe("t/1")


def test_a_sessions_own_subscriptions_stay(broker: RunningBroker, connect: Connect) -> None:
    publisher = connect(broker, "publisher")
    edge = connect(broker, "edge-1", subscriptions=[Subscription("ans/+")])
    with pytest.raises(BrokerSettingsError, match=r"ans/\+"):
        edge.unsubscribe("ans/+")
    publisher.publish(Publication("ans/1", b"answer"))
    assert receive(edge).payload == b"answer"
