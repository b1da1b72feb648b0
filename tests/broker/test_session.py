"""A session's promises, against real brokers: delivery, acknowledgement, limits, loss."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.errors import (
    BrokerSettingsError,
    ConnectFailed,
    NotConnected,
    PayloadTooLarge,
    SessionStopped,
    TooManyInFlight,
)
from broker.exchange import Delivery, Outcome, Publication, Subscription
from broker.run import RunningBroker, run_broker
from broker.session import Session
from broker.settings import BrokerSettings
from protocol.topics import RequestTopic, worker_subscription

WAIT_SECONDS = 15.0
QUIET_SECONDS = 0.4
"""How long to listen before believing that nothing comes."""
ROOT = Path(__file__).resolve().parents[2]
PERSISTENT = {"clean_start": False, "session_expiry_seconds": 3600}

Connect = Callable[..., Session]


def receive(session: Session) -> Delivery:
    """The next delivery, which must come."""
    delivery = session.receive(WAIT_SECONDS)
    assert delivery is not None, session.failure
    return delivery


def receive_all(session: Session, count: int) -> list[bytes]:
    """The next `count` payloads, each acknowledged."""
    payloads = []
    for _ in range(count):
        delivery = receive(session)
        session.acknowledge(delivery)
        payloads.append(delivery.payload)
    return payloads


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that has no event to wait for."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def frozen(broker: RunningBroker) -> Iterator[None]:
    """The broker's process stands still: the socket is open and nobody answers."""
    assert broker.process_id is not None
    os.kill(broker.process_id, signal.SIGSTOP)
    os.waitid(os.P_PID, broker.process_id, os.WSTOPPED)  # the signal is on its way for a while
    try:
        yield
    finally:
        if broker.process_id is not None:
            os.kill(broker.process_id, signal.SIGCONT)


def test_a_publication_arrives_with_its_properties(broker: RunningBroker, connect: Connect) -> None:
    worker = connect(broker, "worker-1", subscriptions=[Subscription("elma/v1/req/+/+/+")])
    edge = connect(broker, "edge-1")
    receipt = edge.publish(
        Publication(
            "elma/v1/req/normal/edge-1/r1",
            b"payload",
            expiry_seconds=60,
            response_topic="elma/v1/ans/edge-1/r1",
            correlation=b"r1",
        )
    )
    delivery = receive(worker)
    assert delivery.topic == "elma/v1/req/normal/edge-1/r1"
    assert delivery.payload == b"payload"
    assert delivery.response_topic == "elma/v1/ans/edge-1/r1"
    assert delivery.correlation == b"r1"
    assert delivery.expiry_seconds is not None
    assert 0 < delivery.expiry_seconds <= 60
    assert receipt.wait(WAIT_SECONDS) is Outcome.ACKNOWLEDGED
    assert worker.acknowledge(delivery)


def test_a_broker_without_tls_shows_no_certificate_that_could_end(
    broker: RunningBroker, connect: Connect
) -> None:
    assert connect(broker, "one").broker_certificate_expires() == 0


def test_a_large_payload_arrives_whole(broker: RunningBroker, connect: Connect) -> None:
    worker = connect(broker, "worker-1", subscriptions=[Subscription("big/+")])
    payload = os.urandom(5_000_000)
    connect(broker, "edge-1").publish(Publication("big/1", payload))
    assert receive(worker).payload == payload


def test_a_shared_subscription_gives_each_request_to_one_worker(
    broker: RunningBroker, connect: Connect
) -> None:
    shared = [Subscription(worker_subscription("normal"))]
    workers = [connect(broker, f"worker-{n}", subscriptions=shared) for n in range(2)]
    edge = connect(broker, "edge-1")
    sent = [f"request {number}".encode() for number in range(20)]
    for number, payload in enumerate(sent):
        topic = str(RequestTopic("normal", "edge-1", f"r{number}"))
        receipt = edge.publish(Publication(topic, payload))
        assert receipt.wait(WAIT_SECONDS) is Outcome.ACKNOWLEDGED
    received: list[list[bytes]] = [[], []]
    while sum(map(len, received)) < len(sent):
        for worker, mine in zip(workers, received, strict=True):
            delivery = worker.receive(0.05)
            if delivery is not None:
                worker.acknowledge(delivery)
                mine.append(delivery.payload)
    assert sorted(received[0] + received[1]) == sorted(sent)
    assert received[0]
    assert received[1]
    assert all(worker.receive(0.1) is None for worker in workers)


def test_a_publication_that_expires_while_nobody_listens_is_not_delivered(
    broker: RunningBroker, connect: Connect
) -> None:
    listening = [Subscription("news/+")]
    connect(broker, "edge-1", subscriptions=listening, **PERSISTENT).stop()
    other = connect(broker, "other")
    for name, expiry_seconds in (("short", 1), ("long", 600)):
        receipt = other.publish(
            Publication(f"news/{name}", name.encode(), expiry_seconds=expiry_seconds)
        )
        assert receipt.wait(WAIT_SECONDS) is not Outcome.PENDING
    time.sleep(2.5)  # expiry counts whole seconds
    again = connect(broker, "edge-1", subscriptions=listening, **PERSISTENT)
    assert receive(again).payload == b"long"
    assert again.receive(QUIET_SECONDS) is None


VANISHING = """
import sys, time
from broker.session import Publication, Session
from broker.settings import BrokerSettings
topic = "elma/v1/presence/worker/w1"
Session(
    BrokerSettings(port=int(sys.argv[1])), "worker-1",
    will=Publication(topic, b"offline", retain=True),
    birth=Publication(topic, b"online", retain=True),
    will_delay_seconds=1,
).start()
time.sleep(60)
"""


def test_a_killed_process_is_announced_by_its_last_will(
    broker: RunningBroker, connect: Connect
) -> None:
    presence = [Subscription("elma/v1/presence/worker/+")]
    observer = connect(broker, "observer", subscriptions=presence)
    process = subprocess.Popen([sys.executable, "-c", VANISHING, str(broker.port)], cwd=ROOT)
    try:
        assert receive_all(observer, 1) == [b"online"]
        late = receive(connect(broker, "late-1", subscriptions=presence))
        assert (late.payload, late.retained) == (b"online", True)
    finally:
        process.kill()
        process.wait(WAIT_SECONDS)
    assert receive_all(observer, 1) == [b"offline"]
    late = receive(connect(broker, "late-2", subscriptions=presence))
    assert (late.payload, late.retained) == (b"offline", True)


def test_a_clean_stop_says_goodbye_itself(broker: RunningBroker, connect: Connect) -> None:
    observer = connect(broker, "observer", subscriptions=[Subscription("presence/+")])
    worker = connect(
        broker,
        "worker-1",
        will=Publication("presence/w1", b"offline", retain=True),
        birth=Publication("presence/w1", b"online", retain=True),
    )
    assert receive_all(observer, 1) == [b"online"]
    worker.stop()
    assert receive_all(observer, 1) == [b"offline"]
    assert observer.receive(QUIET_SECONDS) is None
    with pytest.raises(SessionStopped):
        worker.publish(Publication("x", b""))
    worker.stop()


def test_a_payload_over_the_brokers_limit_is_refused_and_nothing_is_sent(
    broker_kind: str, tmp_path: Path, connect: Connect
) -> None:
    with run_broker(broker_kind, tmp_path / "small", maximum_packet_bytes=20_000) as broker:  # type: ignore[arg-type]
        worker = connect(broker, "worker-1", subscriptions=[Subscription("t/+")])
        edge = connect(broker, "edge-1")
        assert edge.maximum_packet_bytes == 20_000
        with pytest.raises(PayloadTooLarge, match="20000"):
            edge.publish(Publication("t/1", b"x" * 20_001))
        edge.publish(Publication("t/2", b"x" * 19_000))
        assert receive(worker).topic == "t/2"
        assert edge.epoch == 1


def test_the_limit_that_the_broker_announces_counts(
    mosquitto_program: Path, tmp_path: Path, connect: Connect
) -> None:
    """mosquitto only: the embedded broker announces no limit; its settings name it."""
    with run_broker("mosquitto", tmp_path / "small", maximum_packet_bytes=20_000) as broker:
        edge = connect(BrokerSettings(port=broker.port), "edge-1")
        assert edge.maximum_packet_bytes == 20_000


def test_after_a_crash_of_the_broker_the_session_hears_again(
    broker: RunningBroker, connect: Connect
) -> None:
    changes: list[bool] = []
    worker = connect(
        broker,
        "worker-1",
        subscriptions=[Subscription("t/+")],
        on_connection_change=changes.append,
    )
    edge = connect(broker, "edge-1")
    broker.kill()
    wait_until(lambda: not worker.is_connected and not edge.is_connected)
    wait_until(lambda: changes == [True, False])
    with pytest.raises(NotConnected):
        edge.publish(Publication("t/1", b"lost"))
    port = broker.port
    broker.restart()
    assert broker.port == port
    assert worker.wait_connected(WAIT_SECONDS)
    assert edge.wait_connected(WAIT_SECONDS)
    assert worker.epoch > 1
    assert worker.failure is None
    edge.publish(Publication("t/1", b"again"))
    assert receive(worker).payload == b"again"
    wait_until(lambda: changes == [True, False, True])


def test_a_publication_cut_off_by_a_crash_is_lost_and_not_sent_later(
    broker: RunningBroker, connect: Connect
) -> None:
    worker = connect(broker, "worker-1", subscriptions=[Subscription("t/+")])
    edge = connect(broker, "edge-1")
    with frozen(broker):
        receipt = edge.publish(Publication("t/1", b"cut off"))
        assert receipt.wait(0.1) is Outcome.PENDING
        broker.kill()
    assert receipt.wait(WAIT_SECONDS) is Outcome.LOST
    assert "gone" in receipt.reason
    broker.restart()
    assert worker.wait_connected(WAIT_SECONDS)
    assert edge.wait_connected(WAIT_SECONDS)
    edge.publish(Publication("t/2", b"next"))
    assert receive(worker).payload == b"next"


def test_an_unacknowledged_delivery_comes_again_and_an_acknowledged_one_does_not(
    broker: RunningBroker, connect: Connect
) -> None:
    listening = [Subscription("t/+")]
    edge = connect(broker, "edge-1", subscriptions=listening, **PERSISTENT)
    worker = connect(broker, "worker-1")
    for payload in (b"first", b"second"):
        receipt = worker.publish(Publication("t/1", payload))
        assert receipt.wait(WAIT_SECONDS) is Outcome.ACKNOWLEDGED
    first, second = receive(edge), receive(edge)
    assert (first.payload, second.payload) == (b"first", b"second")
    assert edge.acknowledge(first)
    edge.stop()
    again = connect(broker, "edge-1", subscriptions=listening, **PERSISTENT)
    assert receive_all(again, 1) == [b"second"]
    assert again.receive(QUIET_SECONDS) is None


def test_an_acknowledgement_of_an_older_epoch_touches_no_newer_delivery(
    broker: RunningBroker, connect: Connect
) -> None:
    listening = [Subscription("t/+")]
    edge = connect(broker, "edge-1", subscriptions=listening, **PERSISTENT)
    worker = connect(broker, "worker-1")
    worker.publish(Publication("t/1", b"old"))
    old = receive(edge)
    broker.kill()
    broker.restart()
    wait_until(lambda: edge.epoch > old.epoch and edge.is_connected)
    assert worker.wait_connected(WAIT_SECONDS)
    worker.publish(Publication("t/1", b"new"))
    new = receive(edge)
    while new.payload == b"old":  # redelivered, where the broker had saved it
        edge.acknowledge(new)
        new = receive(edge)
    assert not edge.acknowledge(old)
    edge.stop()
    again = connect(broker, "edge-1", subscriptions=listening, **PERSISTENT)
    assert receive(again).payload == b"new"


def test_an_acknowledgement_counts_once(broker: RunningBroker, connect: Connect) -> None:
    worker = connect(broker, "worker-1", subscriptions=[Subscription("t/+")])
    edge = connect(broker, "edge-1")
    for number in range(3):
        edge.publish(Publication("t/1", b"%d" % number)).wait(WAIT_SECONDS)
    first = receive(worker)
    assert worker.acknowledge(first)
    assert not worker.acknowledge(first)
    assert worker.acknowledge(receive(worker))


def test_no_more_publications_are_in_flight_than_allowed(
    broker: RunningBroker, connect: Connect
) -> None:
    edge = connect(broker, "edge-1")
    limit = edge.in_flight_limit
    assert limit == 10
    with frozen(broker):
        receipts = [edge.publish(Publication("t/1", b"x")) for _ in range(limit)]
        with pytest.raises(TooManyInFlight, match="10 publications"):
            edge.publish(Publication("t/1", b"x"))
    for receipt in receipts:
        assert receipt.wait(WAIT_SECONDS) in (Outcome.ACKNOWLEDGED, Outcome.NO_SUBSCRIBER)
    assert edge.publish(Publication("t/1", b"x")).wait(WAIT_SECONDS) is not Outcome.PENDING


def test_a_publication_that_reaches_nobody_is_told_apart(
    mosquitto: RunningBroker, connect: Connect
) -> None:
    """mosquitto only: the embedded broker never says reason 16."""
    receipt = connect(mosquitto, "edge-1").publish(Publication("t/1", b"x"))
    assert receipt.wait(WAIT_SECONDS) is Outcome.NO_SUBSCRIBER


def test_at_most_receive_maximum_deliveries_are_unacknowledged(
    mosquitto: RunningBroker, connect: Connect
) -> None:
    """mosquitto only: the embedded broker ignores Receive Maximum.

    The newest is acknowledged here: for the oldest of n, mosquitto 2.0.11 sends up to n more of a
    backlog instead of one (so a session's queue is bounded by itself, not by the broker).
    """
    worker = connect(
        mosquitto, "worker-1", subscriptions=[Subscription("t/+")], receive_maximum=3, queue_bound=8
    )
    edge = connect(mosquitto, "edge-1")
    for number in range(6):
        edge.publish(Publication("t/1", b"%d" % number)).wait(WAIT_SECONDS)
    held = [receive(worker) for _ in range(3)]
    assert worker.receive(QUIET_SECONDS) is None
    assert worker.acknowledge(held[2])
    assert receive(worker).payload == b"3"
    assert worker.receive(QUIET_SECONDS) is None


def test_a_full_queue_drops_counts_and_goes_on(broker: RunningBroker, connect: Connect) -> None:
    worker = connect(
        broker,
        "worker-1",
        subscriptions=[Subscription("t/+", qos=0)],
        receive_maximum=2,
        queue_bound=4,  # half of it for QoS 0
    )
    edge = connect(broker, "edge-1")
    for number in range(5):
        assert edge.publish(Publication("t/1", b"%d" % number)).wait(WAIT_SECONDS)
    wait_until(lambda: worker.dropped_total == 3)
    assert receive_all(worker, 2) == [b"0", b"1"]
    edge.publish(Publication("t/1", b"after"))
    assert receive_all(worker, 1) == [b"after"]


def test_a_dropped_delivery_does_not_hold_a_place_for_ever(
    mosquitto: RunningBroker, connect: Connect
) -> None:
    """mosquitto only, which counts places. Deliveries of a lost connection still fill the queue."""
    options = {"receive_maximum": 2, "queue_bound": 2}
    worker = connect(mosquitto, "worker-1", subscriptions=[Subscription("t/+")], **options)
    edge = connect(mosquitto, "edge-1")
    for _ in range(2):
        edge.publish(Publication("t/1", b"old")).wait(WAIT_SECONDS)
    wait_until(lambda: len(worker._inbox) == 2)
    mosquitto.kill()
    mosquitto.restart()
    assert worker.wait_connected(WAIT_SECONDS)
    assert edge.wait_connected(WAIT_SECONDS)
    for _ in range(4):
        edge.publish(Publication("t/1", b"dropped")).wait(WAIT_SECONDS)
    wait_until(lambda: worker.dropped_total == 4)
    assert receive_all(worker, 2) == [b"old", b"old"]
    edge.publish(Publication("t/1", b"after"))
    assert receive_all(worker, 1) == [b"after"]


def test_a_flood_of_qos_0_leaves_room_for_qos_1(mosquitto: RunningBroker, connect: Connect) -> None:
    """mosquitto only: the embedded broker ignores Receive Maximum, which keeps QoS 1 in bounds."""
    edge = connect(
        mosquitto,
        "edge-1",
        subscriptions=[Subscription("t/+")],
        receive_maximum=6,
        queue_bound=8,
        **PERSISTENT,
    )
    stranger = connect(mosquitto, "stranger")
    for _ in range(20):
        stranger.publish(Publication("t/flood", b"flood", qos=0)).wait(WAIT_SECONDS)
    wait_until(lambda: edge.dropped_total == 16)
    answers = [b"answer %d" % number for number in range(9)]
    for answer in answers:
        stranger.publish(Publication("t/answer", answer)).wait(WAIT_SECONDS)
    wait_until(lambda: edge.dropped_total >= 18)  # two that waited gave way
    received: list[bytes] = []
    while set(received) < set(answers):
        delivery = receive(edge)
        edge.acknowledge(delivery)
        if delivery.qos == 1:
            received.append(delivery.payload)
    assert received == answers


def test_a_persistent_session_that_had_to_drop_qos_1_gets_it_again(
    broker: RunningBroker, connect: Connect
) -> None:
    """The queue holds two in bytes, so that a broker within Receive Maximum overfills it."""
    edge = connect(
        broker,
        "edge-1",
        subscriptions=[Subscription("t/+")],
        receive_maximum=8,
        queue_bound=8,
        queue_bound_bytes=2_500,
        largest_packet_bytes=2_000,
        **PERSISTENT,
    )
    worker = connect(broker, "worker-1")
    sent = {bytes([number]) * 1_000 for number in range(4)}
    for payload in sent:
        worker.publish(Publication("t/1", payload)).wait(WAIT_SECONDS)
    wait_until(lambda: edge.dropped_total > 0 and edge.epoch > 1)
    received: set[bytes] = set()
    while received < sent:
        delivery = receive(edge)
        edge.acknowledge(delivery)
        received.add(delivery.payload)
    assert received == sent


def test_deliveries_over_the_announced_size_do_not_come(
    broker: RunningBroker, connect: Connect
) -> None:
    worker = connect(
        broker, "worker-1", subscriptions=[Subscription("t/+")], largest_packet_bytes=10_000
    )
    edge = connect(broker, "edge-1")
    edge.publish(Publication("t/1", b"x" * 20_000)).wait(WAIT_SECONDS)
    edge.publish(Publication("t/1", b"small")).wait(WAIT_SECONDS)
    assert receive(worker).payload == b"small"
    assert worker.maximum_packet_bytes > 20_000  # what it sends is another matter


def test_a_queue_that_holds_no_packet_is_refused() -> None:
    with pytest.raises(BrokerSettingsError, match="queue_bound_bytes 1000"):
        Session(BrokerSettings(), "edge-1", queue_bound_bytes=1_000)


def test_a_session_lives_on_when_every_log_line_raises(
    broker: RunningBroker, connect: Connect, broken_log: None
) -> None:
    def fails(_connected: bool) -> None:
        raise RuntimeError("a fault of the caller")

    worker = connect(
        broker, "worker-1", subscriptions=[Subscription("t/+")], on_connection_change=fails
    )
    edge = connect(broker, "edge-1")
    broker.kill()
    wait_until(lambda: not worker.is_connected and not edge.is_connected)
    broker.restart()
    assert worker.wait_connected(WAIT_SECONDS)
    assert edge.wait_connected(WAIT_SECONDS)
    edge.publish(Publication("t/1", b"heard"))
    assert receive(worker).payload == b"heard"


def test_an_exception_in_a_callback_is_counted_and_the_session_goes_on(
    broker: RunningBroker, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Session._take_in

    def fails_once(self: Session, delivery: Delivery) -> None:
        if delivery.payload == b"poison":
            raise RuntimeError("a fault in our own code")
        good(self, delivery)

    monkeypatch.setattr(Session, "_take_in", fails_once)
    worker = connect(broker, "worker-1", subscriptions=[Subscription("t/+")])
    edge = connect(broker, "edge-1")
    edge.publish(Publication("t/1", b"poison"))
    edge.publish(Publication("t/1", b"good"))
    assert receive(worker).payload == b"good"
    assert worker.callback_failures_total == 1
    assert worker.epoch == 1


def test_an_exception_in_the_callers_hook_is_counted_and_the_session_goes_on(
    broker: RunningBroker, connect: Connect
) -> None:
    def hook(_connected: bool) -> None:
        raise RuntimeError("a fault of the caller")

    worker = connect(
        broker, "worker-1", subscriptions=[Subscription("t/+")], on_connection_change=hook
    )
    wait_until(lambda: worker.callback_failures_total == 1)
    connect(broker, "edge-1").publish(Publication("t/1", b"good"))
    assert receive(worker).payload == b"good"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_watchdog_replaces_a_connection_whose_thread_has_died(
    broker: RunningBroker, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = connect(broker, "worker-1", subscriptions=[Subscription("t/+")])
    edge = connect(broker, "edge-1")
    connection = worker._keeper.connection
    assert connection is not None

    def die(*_: object) -> None:
        raise RuntimeError("a fault in the library")

    monkeypatch.setattr(connection._client, "_loop", die)
    wait_until(lambda: worker.epoch == 2 and worker.is_connected)
    edge.publish(Publication("t/1", b"good"))
    assert receive(worker).payload == b"good"


def test_a_session_starts_without_a_broker_and_finds_it_later(
    broker_kind: str, tmp_path: Path, free_port: Callable[[], int], connect: Connect
) -> None:
    port = free_port()
    worker = connect(
        BrokerSettings(port=port), "worker-1", wait=False, subscriptions=[Subscription("t/+")]
    )
    wait_until(lambda: worker.failure is not None)
    assert isinstance(worker.failure, ConnectFailed)
    assert str(port) in str(worker.failure)
    with pytest.raises(NotConnected):
        worker.publish(Publication("t/1", b"x"))
    assert worker.receive(0.0) is None
    with run_broker(broker_kind, tmp_path / "late", port):  # type: ignore[arg-type]
        assert worker.wait_connected(WAIT_SECONDS)
        worker.publish(Publication("t/1", b"to myself"))
        assert receive(worker).payload == b"to myself"


def test_stop_ends_a_wait_for_a_delivery(broker: RunningBroker, connect: Connect) -> None:
    worker = connect(broker, "worker-1")
    worker.stop()
    assert worker.receive(WAIT_SECONDS * 100) is None


def test_stop_returns_while_the_broker_is_frozen(broker: RunningBroker, connect: Connect) -> None:
    worker = connect(broker, "worker-1", will=Publication("t/1", b"offline"))
    with frozen(broker):
        worker.stop()
    assert not worker.is_connected


def test_stop_without_start_is_harmless() -> None:
    session = Session(BrokerSettings(), "worker-1")
    session.stop()
    with pytest.raises(SessionStopped):
        session.publish(Publication("t", b""))


def test_a_session_starts_once(broker: RunningBroker, connect: Connect) -> None:
    session = connect(broker, "worker-1")
    with pytest.raises(BrokerSettingsError, match="once"):
        session.start()


@pytest.mark.parametrize("client_id", ["", "a/b", "x" * 65, "a b"])
def test_a_client_id_is_a_name(client_id: str) -> None:
    with pytest.raises(BrokerSettingsError):
        Session(BrokerSettings(), client_id)


@pytest.mark.parametrize(("receive_maximum", "queue_bound"), [(0, 5), (6, 5), (70_000, 80_000)])
def test_the_receive_maximum_fits_the_queue(receive_maximum: int, queue_bound: int) -> None:
    with pytest.raises(BrokerSettingsError, match="receive_maximum"):
        Session(
            BrokerSettings(), "worker-1", receive_maximum=receive_maximum, queue_bound=queue_bound
        )
