"""One MQTT v5 identity that stays connected: what edge and worker use to reach each other.

    with Session(settings, "edge-kitchen", subscriptions=[Subscription(...)], ...) as session:
        receipt = session.publish(Publication(topic, payload))
        delivery = session.receive(timeout_seconds=1.0)
        session.acknowledge(delivery)

A session starts whether or not there is a broker, and reconnects for ever, with a back-off that
doubles and is drawn at random so that a restarted broker does not meet all clients at once. Its
own thread keeps one `Connection` after another and watches paho's thread.

Deliveries wait in a queue that is bounded in number and bytes. Nothing is acknowledged until the
caller says so, so at most `receive_maximum` unacknowledged ones come from a broker that keeps to
MQTT (the embedded one does not, and mosquitto 2.0.11 sends more of a backlog after an
acknowledgement). QoS 0 has no such bound: such deliveries fill half of the queue at most, and give
way to QoS 1. What finds no place is dropped, counted in `dropped_total` and logged. A QoS 1
delivery is then acknowledged where the session ends with the connection (nobody would send it
again, and it would hold a place for ever); where the session persists it is left unacknowledged
and the connection is ended, so that the next one brings it again.

The subscriptions that a session is made with are its own and come back with every connection.
`subscribe` adds one for as long as this connection lives, such as to a single chunk of a release.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType

from broker.connection import Connection, Identity
from broker.delivery_queue import DeliveryQueue
from broker.errors import (
    BrokerError,
    BrokerSettingsError,
    ConnectFailed,
    NotConnected,
    PublishError,
    SessionStopped,
)
from broker.exchange import Delivery, Outcome, Publication, Receipt, Subscription
from broker.log import LineLimit, SafeLog
from broker.settings import BrokerSettings
from broker.subscribing import AddedFilters
from protocol.checks import is_name

WATCHDOG_SECONDS = 1.0
DROPPED_LINES_PER_SECOND = 1
GOODBYE_SECONDS = 2.0
WILL_DELAY_SECONDS = 10
STABLE_SECONDS = 10.0
"""A connection that lived this long resets the back-off."""
QUEUE_BOUND_BYTES = 256 * 1024 * 1024
_log = SafeLog("elma.broker")

__all__ = [
    "Delivery",
    "Outcome",
    "Publication",
    "Receipt",
    "Session",
    "Subscription",
]


class Session:
    """One client id at one broker. Thread-safe; `start` and `stop` once each.

    `receive_maximum`: unacknowledged deliveries that the broker may send; at most `queue_bound`.
    `queue_bound`, `queue_bound_bytes`: deliveries that may wait, and the bytes of their payloads.
    `largest_packet_bytes`: what the broker may send at once; None takes the settings' bound.
    `clean_start` and `session_expiry_seconds`: forget at once (True, 0) or keep while away.
    `will`: published by the broker when we vanish, and by us on a clean stop.
    `birth`: published by us each time we are connected, such as a retained "online".
    `on_connection_change`: called on the session's thread with True or False; must be quick.

    The attribute `on_subscription_refused` may be set to a function: it is called with the topic
    filter of a `subscribe` that the broker refused, on paho's thread; must be quick.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        client_id: str,
        *,
        subscriptions: Sequence[Subscription] = (),
        receive_maximum: int = 10,
        clean_start: bool = True,
        session_expiry_seconds: int = 0,
        will: Publication | None = None,
        birth: Publication | None = None,
        queue_bound: int = 64,
        queue_bound_bytes: int = QUEUE_BOUND_BYTES,
        largest_packet_bytes: int | None = None,
        will_delay_seconds: int = WILL_DELAY_SECONDS,
        on_connection_change: Callable[[bool], None] | None = None,
        generator: random.Random | None = None,
    ) -> None:
        if not is_name(client_id):
            raise BrokerSettingsError("client_id must be 1 to 64 letters, digits, '_' or '-'")
        if not 1 <= receive_maximum <= min(queue_bound, 65_535):
            raise BrokerSettingsError(
                f"{client_id}: receive_maximum {receive_maximum} must be from 1 to queue_bound "
                f"{queue_bound}"
            )
        largest = settings.maximum_packet_bytes
        if largest_packet_bytes is not None:
            largest = min(largest, largest_packet_bytes)
        if not 1 <= largest <= queue_bound_bytes:
            raise BrokerSettingsError(
                f"{client_id}: the largest packet ({largest} bytes) must fit in queue_bound_bytes "
                f"{queue_bound_bytes}"
            )
        self.client_id = client_id
        self.on_connection_change = on_connection_change
        self.on_subscription_refused: Callable[[str], None] | None = None
        self.dropped_total = 0
        self.callback_failures_total = 0
        self.connections_total = 0
        self._settings = settings
        self._identity = Identity(
            client_id,
            tuple(subscriptions),
            receive_maximum,
            clean_start,
            session_expiry_seconds,
            will,
            will_delay_seconds,
            largest,
        )
        self._birth = birth
        self._persists = not clean_start and session_expiry_seconds > 0
        self._added = AddedFilters(
            (subscription.topic_filter for subscription in subscriptions), are_kept=self._persists
        )
        self._queue = DeliveryQueue(queue_bound, queue_bound_bytes)
        self._dropped_lines = LineLimit(DROPPED_LINES_PER_SECOND)
        self._arrived = threading.Condition()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._connection: Connection | None = None
        self._epoch = 0
        self._failure: BrokerError | None = None
        self._keeper: threading.Thread | None = None
        # Jitter against crowds of clients, not a secret.
        self._generator = generator or random.Random()  # noqa: S311

    # -- life ------------------------------------------------------------------------------

    def start(self) -> Session:
        """Begin to connect; returns at once. Raises BrokerSettingsError for unusable files."""
        if self._keeper is not None:
            raise BrokerSettingsError(f"{self.client_id}: a session starts once; make a new one")
        self._settings.password()
        self._settings.tls_context()
        self._keeper = threading.Thread(
            target=self._keep_connected, name=f"elma-session-{self.client_id}", daemon=True
        )
        self._keeper.start()
        return self

    def stop(self) -> None:
        """Publish the will ourselves, disconnect, and end the session's threads. Idempotent."""
        if self._stopping.is_set() or self._keeper is None:
            return
        self._say(self._identity.will, GOODBYE_SECONDS)
        self._stopping.set()
        with self._arrived:
            self._arrived.notify_all()
        connection = self._connection
        if connection is not None:
            connection.abandon()
        if threading.current_thread() is not self._keeper:
            patience = 4 * GOODBYE_SECONDS + 2 * self._settings.connect_timeout_seconds
            self._keeper.join(patience)
            if self._keeper.is_alive():
                _log.error("broker_session_did_not_stop", client=self.client_id)

    def __enter__(self) -> Session:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # -- state -----------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Connected, with every subscription granted."""
        connection = self._connection
        return connection is not None and connection.is_ready

    @property
    def is_running(self) -> bool:
        """Whether the thread that keeps it connected lives."""
        return self._keeper is not None and self._keeper.is_alive()

    @property
    def epoch(self) -> int:
        """The number of the present or last connection; 0 before the first."""
        return self._epoch

    @property
    def failure(self) -> BrokerError | None:
        """Why there is no connection, if that is known; None while connected."""
        return None if self.is_connected else self._failure

    @property
    def maximum_packet_bytes(self) -> int:
        """The largest packet that the broker takes, as far as it has said."""
        connection = self._connection
        if connection is None:
            return self._settings.maximum_packet_bytes
        return connection.maximum_packet_bytes

    @property
    def in_flight_limit(self) -> int:
        """How many publications may wait for the broker's acknowledgement at once."""
        connection = self._connection
        return self._settings.max_in_flight if connection is None else connection.in_flight_limit

    def wait_connected(self, timeout_seconds: float) -> bool:
        """Whether the session is connected, or becomes so within `timeout_seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_connected, timeout_seconds)

    # -- messages --------------------------------------------------------------------------

    def publish(self, publication: Publication) -> Receipt:
        """Hand a publication to the broker's connection; never queues while offline.

        Raises NotConnected, PayloadTooLarge, TooManyInFlight or SessionStopped. A receipt that is
        acknowledged is no proof of arrival: only the answer is.
        """
        return self._live_connection().publish(publication)

    def subscribe(self, subscription: Subscription) -> None:
        """Ask for one more subscription while this connection lives; any thread.

        Retained messages that match arrive like other deliveries. A refusal comes to
        `on_subscription_refused`. After a reconnect it is gone: subscribe again where it is still
        wanted. Raises NotConnected, TooManyInFlight or SessionStopped.
        """
        connection = self._live_connection()
        self._added.add(subscription.topic_filter)
        connection.subscribe(subscription)

    def unsubscribe(self, topic_filter: str) -> None:
        """End what `subscribe` began; deliveries on their way may still come.

        Raises NotConnected or SessionStopped, and BrokerSettingsError for one of the session's own.
        """
        if self._added.is_own(topic_filter):
            raise BrokerSettingsError(f"{self.client_id}: {topic_filter} is the session's own")
        self._live_connection().unsubscribe(topic_filter)
        self._added.discard(topic_filter)

    def _live_connection(self) -> Connection:
        """The present connection. Raises NotConnected or SessionStopped."""
        if self._stopping.is_set() or self._keeper is None:
            raise SessionStopped(f"{self.client_id}: the session is not running")
        connection = self._connection
        if connection is None:
            raise NotConnected(f"{self.client_id}: not connected to {self._settings.address}")
        return connection

    def receive(self, timeout_seconds: float) -> Delivery | None:
        """The next delivery, or None after `timeout_seconds`, or at once when stopped and empty."""
        with self._arrived:
            self._arrived.wait_for(
                lambda: len(self._queue) or self._stopping.is_set(), max(0.0, timeout_seconds)
            )
            return self._queue.take()

    def acknowledge(self, delivery: Delivery) -> bool:
        """Tell the broker that a delivery is safe here. False, and nothing sent, if its connection
        is gone (it may come again) or if it was acknowledged before."""
        connection = self._connection
        return connection is not None and connection.acknowledge(delivery)

    # -- the keeper's thread ---------------------------------------------------------------

    def _keep_connected(self) -> None:
        """One connection after another until stopped."""
        delay_seconds = self._settings.reconnect_min_seconds
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._live_once()
            except BrokerError as error:
                self._note_failure(error)
            except Exception as error:
                _log.exception("broker_session_failed", client=self.client_id)
                self._note_failure(ConnectFailed(f"{self.client_id}: {type(error).__name__}"))
            if time.monotonic() - began >= STABLE_SECONDS:
                delay_seconds = self._settings.reconnect_min_seconds
            self._stopping.wait(delay_seconds * self._generator.uniform(0.5, 1.5))
            delay_seconds = min(2 * delay_seconds, self._settings.reconnect_max_seconds)

    def _live_once(self) -> None:
        """Connect, stay until the connection ends or the session stops, and clean up."""
        connection = Connection(
            self._settings,
            replace(self._identity, stale_filters=self._added.begin_connection()),
            self._epoch + 1,
            self._take_in,
            self._count_callback_failure,
            self._tell_refused,
        )
        self._epoch += 1
        self._forget_stale()
        self._connection = connection
        try:
            connection.open()
            self._added.note_connected()
            self.connections_total += 1
            self._failure = None
            _log.info("broker_connected", client=self.client_id, epoch=self._epoch)
            self._say(self._birth, 0.0)
            self._tell(True)
            while not self._stopping.is_set() and not connection.wait_closed(WATCHDOG_SECONDS):
                pass
            if connection.failure is not None and not self._stopping.is_set():
                self._note_failure(connection.failure)
        finally:
            connection.close()
            self._connection = None
            if connection.was_ready:
                self._tell(False)

    def _take_in(self, delivery: Delivery) -> None:
        """Queue a delivery; on paho's thread. See the module's word on a full queue."""
        with self._arrived:
            # A broker that knows no limits may send more than was asked for; that stays unwanted.
            is_too_large = len(delivery.payload) > self._identity.largest_packet_bytes
            dropped = [delivery] if is_too_large else self._queue.put(delivery)
            self.dropped_total += len(dropped)
            self._arrived.notify()
        if not dropped:
            return
        _log.limited_warning(
            self._dropped_lines,
            "broker_delivery_dropped",
            client=self.client_id,
            topic=delivery.topic,
            payload_bytes=len(delivery.payload),
            dropped_total=self.dropped_total,
        )
        if delivery.qos == 0 or dropped[-1] is not delivery:
            return
        connection = self._connection
        if is_too_large or not self._persists:
            self.acknowledge(delivery)
        elif connection is not None and connection.epoch == delivery.epoch:
            connection.abandon("too many deliveries wait here; the next connection brings them")

    def _forget_stale(self) -> None:
        """Drop queued deliveries that a persistent session is about to be sent again."""
        if self._persists:
            with self._arrived:
                self._queue.keep_only_qos_0()

    def _say(self, publication: Publication | None, wait_seconds: float) -> None:
        """Publish our presence if we can; it only informs, so failing is no failure."""
        connection = self._connection
        if publication is None or connection is None:
            return
        try:
            receipt = connection.publish(publication)
        except PublishError as error:
            _log.info("broker_presence_not_published", client=self.client_id, why=str(error))
            return
        if wait_seconds > 0:
            receipt.wait(wait_seconds)

    def _tell(self, connected: bool) -> None:
        """Wake who waits for a connection, and call the caller's hook safely."""
        with self._changed:
            self._changed.notify_all()
        hook = self.on_connection_change
        if hook is None:
            return
        try:
            hook(connected)
        except Exception:
            self._count_callback_failure()
            _log.exception("broker_hook_failed", client=self.client_id)

    def _tell_refused(self, topic_filter: str) -> None:
        """Hand a refusal to the caller's hook; `Connection` keeps an exception from harm."""
        self._added.discard(topic_filter)
        if self.on_subscription_refused is not None:
            self.on_subscription_refused(topic_filter)

    def _note_failure(self, error: BrokerError) -> None:
        """Keep the reason for `failure`; log it when it is not the same as before."""
        if str(error) != str(self._failure):
            _log.warning("broker_not_connected", client=self.client_id, why=str(error))
        self._failure = error

    def _count_callback_failure(self) -> None:
        self.callback_failures_total += 1
