"""The publisher's connection: publications go out in a window, everything heard goes into a view.

    with Line(settings, "stable", role_name="main") as line:
        line.wait_ready(10.0)
        line.send([Publication(...), ...], deadline)

In: publications. Out: their acknowledgement, and a `FleetView` that is complete after `wait_ready`.
Neighbours: `upload`, `sending` and `watching` send through it.

When has everything retained arrived? MQTT does not say. But what a broker sends to one client comes
in order, and retained messages are queued with the subscription: so once our own presence, which is
published after the subscriptions were granted, comes back to us, all that was retained is here.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType

from broker.errors import PayloadTooLarge, PublishError, TooManyInFlight
from broker.exchange import Delivery, Outcome, Publication, Receipt, Subscription
from broker.log import SafeLog
from broker.session import Session
from broker.settings import BrokerSettings
from protocol.messages import Presence, encode_message
from protocol.topics import BlobTopic, PresenceTopic, parse_topic
from publisher.errors import UploadFailed
from publisher.fleet import FleetView

ROLE = "publisher"
VISITOR = "visitor-"
"""Begins the name of who is only passing."""
RECEIVE_SECONDS = 0.5
QUEUE_BOUND = 4096
ACKNOWLEDGE_SECONDS = 20.0
"""After this long without an acknowledgement the broker counts as stuck."""
_log = SafeLog("elma.publisher")

Sent = Callable[[Publication], None]


class Line:
    """One connection of the publisher. `send` is for one thread; the rest for any.

    A passing visitor (`name` None) takes a random identity and leaves no presence behind; a service
    has a name and is seen as a publisher that is online or offline. With an account, the account's
    name is the `identity` of either.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        channel: str,
        *,
        name: str | None = None,
        on_connection_change: Callable[[bool], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.view = FleetView(channel)
        self.address = settings.address
        self._clock = clock
        self._on_connection_change = on_connection_change
        self._chunks: dict[str, bytes | None] = {}
        self._chunk_came = threading.Condition()
        self._echoes = 0
        self._is_complete = threading.Event()
        self._stopping = threading.Event()
        identity = settings.username or name or f"{VISITOR}{secrets.token_hex(4)}"
        self.identity = identity
        self._presence = str(PresenceTopic(ROLE, identity))
        self._birth = Publication(self._presence, encode_message(Presence(True)), 1, True)
        gone = encode_message(Presence(False)) if name else b""
        self.session = Session(
            settings,
            settings.username or f"{ROLE}-{identity}",
            subscriptions=self.view.subscriptions,
            receive_maximum=64,
            queue_bound=QUEUE_BOUND,
            will=Publication(self._presence, gone, 1, True),
            birth=self._birth,
            on_connection_change=self._connection_changed,
        )
        self._reader = threading.Thread(target=self._read, name="elma-publisher-line", daemon=True)

    def __enter__(self) -> Line:
        self.session.start()
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self.session.stop()
        self._reader.join(4 * RECEIVE_SECONDS)

    @property
    def is_complete(self) -> bool:
        """Connected, and everything that the broker retains for the view has arrived."""
        return self.session.is_connected and self._is_complete.is_set()

    def wait_ready(self, timeout_seconds: float) -> None:
        """Return when the view is complete. Raises UploadFailed after `timeout_seconds`."""
        end = self._clock() + timeout_seconds
        if not self.session.wait_connected(timeout_seconds):
            cause = self.session.failure
            raise UploadFailed(
                f"no connection to broker {self.address} within {timeout_seconds:g} seconds; "
                "check --broker-host and --broker-port, and that the broker runs"
            ) from cause
        if not self._is_complete.wait(max(0.0, end - self._clock())):
            raise UploadFailed(
                f"broker {self.address} does not give our own presence back; may this account read "
                "elma/v1/presence/+/+, elma/v1/state/+/+ and elma/v1/model/#?"
            )

    def send(
        self,
        publications: Iterable[Publication],
        *,
        patience_seconds: float,
        sent: Sent | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        """Publish all of them, each acknowledged; `sent` hears of each one.

        What a broken connection may have lost is sent again on the next one. Raises UploadFailed
        when the broker refuses one, or nothing was acknowledged for `patience_seconds`, or `stop`
        was set.
        """
        waiting = deque[tuple[Publication, Receipt]]()
        source = iter(publications)
        again = deque[Publication]()
        progress_at = self._clock()
        following: Publication | None = None
        while True:
            if stop is not None and stop.is_set():
                raise UploadFailed("stopped; run it again to go on where it was")
            if following is None:
                following = again.popleft() if again else next(source, None)
            if following is None and not waiting:
                return
            handed = following is not None and self._hand_over(following, waiting)
            if handed:
                following = None
            if self._settle(waiting, again, sent, wait=not handed):
                progress_at = self._clock()
            if self._clock() - progress_at > patience_seconds:
                raise UploadFailed(
                    f"broker {self.address} acknowledged nothing for {patience_seconds:g} seconds "
                    f"({self.session.failure or 'though it is connected'}); "
                    "run the same command again, it goes on where it was"
                )

    def retained_chunk(self, sha256: str, chunk: int, timeout_seconds: float) -> bytes | None:
        """A chunk as the broker retains it; None when it has none, or does not answer in time."""
        try:
            return self.retained_chunks([(sha256, chunk)], timeout_seconds)[sha256, chunk]
        except UploadFailed:
            return None

    def retained_chunks(
        self, chunks: Iterable[tuple[str, int]], timeout_seconds: float
    ) -> dict[tuple[str, int], bytes | None]:
        """Chunks as the broker retains them, None for what it has not. Fetches all their bytes.

        The absence shows as everything does that was retained: our presence comes back without it.
        Raises UploadFailed when it does not come back within `timeout_seconds`.
        """
        topics = {chunk: str(BlobTopic(*chunk)) for chunk in chunks}
        with self._chunk_came:
            self._chunks.update(dict.fromkeys(topics.values()))
            echoes = self._echoes
        try:
            for topic in topics.values():
                self.session.subscribe(Subscription(topic))
            self.session.publish(self._birth)
            with self._chunk_came:
                came = self._chunk_came.wait_for(lambda: self._echoes > echoes, timeout_seconds)
            for topic in topics.values():
                self.session.unsubscribe(topic)
        except PublishError as error:
            raise UploadFailed(f"the connection to broker {self.address} broke: {error}") from error
        finally:
            with self._chunk_came:
                found = {chunk: self._chunks.pop(topic) for chunk, topic in topics.items()}
        if not came:
            raise UploadFailed(
                f"broker {self.address} did not say within {timeout_seconds:g} seconds what it "
                "retains"
            )
        return found

    def _hand_over(
        self, publication: Publication, waiting: deque[tuple[Publication, Receipt]]
    ) -> bool:
        """Whether the session took it now. Raises UploadFailed for what it can never take."""
        if len(waiting) >= self.session.in_flight_limit:
            return False
        try:
            waiting.append((publication, self.session.publish(publication)))
        except PayloadTooLarge as error:
            raise UploadFailed(
                f"the broker takes packets of {self.session.maximum_packet_bytes} bytes, and a "
                f"chunk needs {publication.packet_bytes}: raise its limit (mosquitto: "
                "max_packet_size)"
            ) from error
        except TooManyInFlight:
            return False
        except PublishError:  # not connected: the keeper is at work
            self.session.wait_connected(RECEIVE_SECONDS)
            return False
        return True

    def _settle(
        self,
        waiting: deque[tuple[Publication, Receipt]],
        again: deque[Publication],
        sent: Sent | None,
        *,
        wait: bool,
    ) -> bool:
        """Take settled receipts off, oldest first; whether there was one that arrived."""
        arrived = False
        if wait and waiting:
            waiting[0][1].wait(RECEIVE_SECONDS)
        while waiting and waiting[0][1].outcome is not Outcome.PENDING:
            publication, receipt = waiting.popleft()
            if receipt.outcome is Outcome.REFUSED:
                raise UploadFailed(
                    f"the broker refused {publication.topic}: {receipt.reason}; "
                    "may this account publish there?"
                )
            if receipt.outcome is Outcome.LOST:
                again.append(publication)
                continue
            arrived = True
            if sent is not None:
                sent(publication)
        return arrived

    def _connection_changed(self, connected: bool) -> None:
        """On the session's thread: a connection's view begins empty.

        It is called after the birth was published, so nothing retained can have been read before
        unless it belongs to this connection: the deliveries' epoch tells.
        """
        if not connected:
            self._is_complete.clear()
        if self._on_connection_change is not None:
            self._on_connection_change(connected)

    def _read(self) -> None:
        """Take deliveries until stopped; never dies of one."""
        epoch = 0
        while not self._stopping.is_set():
            delivery = self.session.receive(RECEIVE_SECONDS)
            if delivery is None:
                continue
            try:
                if delivery.epoch != epoch:
                    epoch = delivery.epoch
                    self._is_complete.clear()
                    self.view.forget_channel()
                self._take(delivery)
            except Exception:
                _log.exception("publisher_delivery_failed", topic=delivery.topic)
            self.session.acknowledge(delivery)

    def _take(self, delivery: Delivery) -> None:
        is_echo = delivery.topic == self._presence and not delivery.retained
        with self._chunk_came:
            if delivery.topic in self._chunks:
                self._chunks[delivery.topic] = delivery.payload
            self._echoes += is_echo
            self._chunk_came.notify_all()
        if is_echo:
            self._is_complete.set()
        self.view.take(delivery)


def is_chunk(publication: Publication) -> tuple[str, int] | None:
    """Blob and number of the chunk that a publication carries; None for anything else."""
    topic = parse_topic(publication.topic)
    return (topic.sha256, topic.chunk) if isinstance(topic, BlobTopic) else None
