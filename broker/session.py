"""One MQTT v5 identity that stays connected: what edge and worker use to reach each other.

    with Session(settings, "edge-kitchen", subscriptions=[Subscription(...)], ...) as session:
        receipt = session.publish(Publication(topic, payload))
        delivery = session.receive(timeout_seconds=1.0)
        session.acknowledge(delivery)

A session starts whether or not there is a broker, and reconnects for ever; certificates that are
renewed in place are taken up without a restart. Neighbours: `keeper` has the thread that does so,
`inbox` the deliveries that wait.

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
from collections.abc import Callable, Sequence
from types import TracebackType

from broker.connection import Connection, Identity
from broker.errors import BrokerError, BrokerSettingsError, NotConnected, SessionStopped
from broker.exchange import Delivery, Outcome, Publication, Receipt, Subscription
from broker.inbox import Inbox, Put
from broker.keeper import Hooks, Keeper
from broker.settings import BrokerSettings
from broker.subscribing import AddedFilters
from protocol.checks import is_name

WILL_DELAY_SECONDS = 10
QUEUE_BOUND_BYTES = 256 * 1024 * 1024

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
        self.callback_failures_total = 0
        self._settings = settings
        identity = Identity(
            client_id,
            tuple(subscriptions),
            receive_maximum,
            clean_start,
            session_expiry_seconds,
            will,
            will_delay_seconds,
            largest,
        )
        self._persists = not clean_start and session_expiry_seconds > 0
        self._added = AddedFilters(
            (subscription.topic_filter for subscription in subscriptions), are_kept=self._persists
        )
        self._inbox = Inbox(client_id, queue_bound, queue_bound_bytes, largest)
        hooks = Hooks(
            beginning=self._forget_stale,
            changed=self._tell,
            stopping=self._inbox.wake,
            delivered=self._take_in,
            subscription_refused=self._tell_refused,
            callback_failed=self._count_callback_failure,
        )
        self._keeper = Keeper(settings, identity, birth, self._added, hooks, generator)

    # -- life ------------------------------------------------------------------------------

    def start(self) -> Session:
        """Begin to connect; returns at once. Raises BrokerSettingsError for unusable files."""
        self._keeper.start()
        return self

    def stop(self) -> None:
        """Publish the will ourselves, disconnect, and end the session's threads. Idempotent."""
        self._keeper.stop()

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
        return self._keeper.is_connected

    @property
    def is_running(self) -> bool:
        """Whether the thread that keeps it connected lives."""
        return self._keeper.is_running

    @property
    def epoch(self) -> int:
        """The number of the present or last connection; 0 before the first."""
        return self._keeper.epoch

    def broker_certificate_expires(self) -> float:
        """When the certificate expires that the broker showed last, in unix seconds; else 0."""
        return self._keeper.broker_certificate_expires

    @property
    def connections_total(self) -> int:
        """How often it has been connected."""
        return self._keeper.connections_total

    @property
    def dropped_total(self) -> int:
        """Deliveries that found no place."""
        return self._inbox.dropped_total

    @property
    def failure(self) -> BrokerError | None:
        """Why there is no connection, if that is known; None while connected."""
        return self._keeper.failure

    @property
    def maximum_packet_bytes(self) -> int:
        """The largest packet that the broker takes, as far as it has said."""
        connection = self._keeper.connection
        return (
            self._settings.maximum_packet_bytes
            if connection is None
            else (connection.maximum_packet_bytes)
        )

    @property
    def in_flight_limit(self) -> int:
        """How many publications may wait for the broker's acknowledgement at once."""
        connection = self._keeper.connection
        return self._settings.max_in_flight if connection is None else connection.in_flight_limit

    def wait_connected(self, timeout_seconds: float) -> bool:
        """Whether the session is connected, or becomes so within `timeout_seconds`."""
        return self._keeper.wait_connected(timeout_seconds)

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
        if self._keeper.is_stopping or not self._keeper.is_running:
            raise SessionStopped(f"{self.client_id}: the session is not running")
        connection = self._keeper.connection
        if connection is None:
            raise NotConnected(f"{self.client_id}: not connected to {self._settings.address}")
        return connection

    def receive(self, timeout_seconds: float) -> Delivery | None:
        """The next delivery, or None after `timeout_seconds`, or at once when stopped and empty."""
        return self._inbox.take(timeout_seconds, lambda: self._keeper.is_stopping)

    def acknowledge(self, delivery: Delivery) -> bool:
        """Tell the broker that a delivery is safe here. False, and nothing sent, if its connection
        is gone (it may come again) or if it was acknowledged before."""
        connection = self._keeper.connection
        return connection is not None and connection.acknowledge(delivery)

    # -- the keeper's hooks ----------------------------------------------------------------

    def _take_in(self, delivery: Delivery) -> None:
        """Queue a delivery; on paho's thread. See the module's word on a full queue."""
        put = self._inbox.put(delivery)
        if put is Put.TAKEN or delivery.qos == 0:
            return
        connection = self._keeper.connection
        if put is Put.TOO_LARGE or not self._persists:
            self.acknowledge(delivery)
        elif connection is not None and connection.epoch == delivery.epoch:
            connection.abandon("too many deliveries wait here; the next connection brings them")

    def _forget_stale(self) -> None:
        """Drop queued deliveries that a persistent session is about to be sent again."""
        if self._persists:
            self._inbox.forget_what_comes_again()

    def _tell(self, connected: bool) -> None:
        if self.on_connection_change is not None:
            self.on_connection_change(connected)

    def _tell_refused(self, topic_filter: str) -> None:
        """Hand a refusal to the caller's hook; `Connection` keeps an exception from harm."""
        self._added.discard(topic_filter)
        if self.on_subscription_refused is not None:
            self.on_subscription_refused(topic_filter)

    def _count_callback_failure(self) -> None:
        self.callback_failures_total += 1
