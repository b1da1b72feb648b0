"""One life of a connection: from CONNECT to its end. Made new for every reconnect.

Paho lives in this file and in `packets`. A connection that ends is thrown away with its paho
client, so nothing of it can leak into the next: no message that paho would resend past the
broker's limits for ever, no acknowledgement that hits another message of the same number.

paho's callbacks run on its network thread: here they only note and hand on. Neighbours: `keeper`
makes connections and keeps them alive; `callbacks` keeps exceptions from paho's thread; `lifetime`,
`in_flight` and `subscribing` hold what is noted.
"""

from __future__ import annotations

import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from broker.callbacks import hang_in
from broker.certificate_expiry import shown_certificate_expiry
from broker.errors import (
    ConnectFailed,
    InvalidPublication,
    NotConnected,
    PayloadTooLarge,
    SubscriptionRefused,
    TooManyInFlight,
)
from broker.exchange import Delivery, Publication, Receipt, Subscription
from broker.in_flight import InFlight
from broker.lifetime import Lifetime
from broker.log import SafeLog
from broker.packets import (
    connect_properties,
    delivery_of,
    filter_of,
    make_client,
    outcome_of,
    publish_properties,
    set_will,
)
from broker.settings import BrokerSettings
from broker.subscribing import Subscribing

CLOSE_SECONDS = 2.0
MQTT_RECEIVE_MAXIMUM = 65_535
MAX_SUBSCRIBING = 64
_serials = itertools.count(1)
_log = SafeLog("elma.broker")


@dataclass(frozen=True)
class Identity:
    """Who connects and what it wants to hear."""

    client_id: str
    subscriptions: Sequence[Subscription]
    receive_maximum: int
    clean_start: bool
    session_expiry_seconds: int
    will: Publication | None
    will_delay_seconds: int
    largest_packet_bytes: int
    """Announced to the broker, which keeps larger ones from us."""
    stale_filters: Sequence[str] = ()
    """What a persistent session may still be subscribed to and must not be any more."""


class Connection:
    """One connection of one identity; `tls_context` is None for one without TLS.

    `broker_certificate_expires`: the end of the certificate that the broker showed, in unix
    seconds; 0 without TLS. `on_delivery` and `on_subscription_refused` (with the topic filter) run
    on paho's thread and must be quick.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        tls_context: ssl.SSLContext | None,
        identity: Identity,
        epoch: int,
        on_delivery: Callable[[Delivery], None],
        on_callback_failure: Callable[[], None],
        on_subscription_refused: Callable[[str], None],
    ) -> None:
        self.epoch = epoch
        self.maximum_packet_bytes = settings.maximum_packet_bytes
        self.broker_certificate_expires = 0.0
        self._settings = settings
        self._identity = identity
        self._on_delivery = on_delivery
        self._on_subscription_refused = on_subscription_refused
        self._lock = threading.Lock()
        self._life = Lifetime()
        self._in_flight = InFlight(settings.max_in_flight)
        self._subscribing = Subscribing(MAX_SUBSCRIBING)
        self._unacknowledged: dict[int, int] = {}  # mid -> serial of the delivery
        self._client = make_client(settings, identity.client_id, tls_context)
        if identity.will is not None:
            set_will(self._client, identity.will, identity.will_delay_seconds)
        callbacks = (
            self._on_connect,
            self._on_subscribe,
            self._on_publish,
            self._on_message,
            self._on_disconnect,
        )
        hang_in(self._client, callbacks, on_callback_failure)

    # -- life ------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, subscribe, and return once the broker granted both. Raises ConnectFailed."""
        settings, identity = self._settings, self._identity
        properties = connect_properties(
            identity.session_expiry_seconds,
            identity.receive_maximum,
            identity.largest_packet_bytes,
        )
        try:
            self._client.connect(
                settings.host,
                settings.port,
                keepalive=settings.keepalive_seconds,
                clean_start=identity.clean_start,
                properties=properties,
            )
        except (OSError, ValueError) as error:
            self._end(ConnectFailed(f"broker {settings.address} cannot be reached: {error}"))
            raise self._failure() from error
        self.broker_certificate_expires = shown_certificate_expiry(self._client.socket())
        self._client.loop_start()
        self._life.wait_settled(2 * settings.connect_timeout_seconds)
        if not self._life.was_ready:
            self._end(
                ConnectFailed(
                    f"broker {settings.address} did not answer within "
                    f"{2 * settings.connect_timeout_seconds:g} seconds"
                )
            )
            self.close()
            raise self._failure()

    @property
    def is_ready(self) -> bool:
        """Connected, every subscription granted, and not ended."""
        return self._life.is_ready

    @property
    def is_quiet(self) -> bool:
        """Whether nothing would be lost by ending it now, or have to be sent again."""
        return not (self._in_flight.count or self._unacknowledged or self._subscribing.count)

    @property
    def in_flight_limit(self) -> int:
        """How many publications may wait for their acknowledgement."""
        return self._in_flight.limit

    @property
    def was_ready(self) -> bool:
        """Whether it ever was."""
        return self._life.was_ready

    @property
    def failure(self) -> ConnectFailed | None:
        """Why it has ended."""
        return self._life.failure

    def wait_closed(self, timeout_seconds: float) -> bool:
        """Wait for the connection's end. Notices, too, when paho's network thread has died."""
        if self._life.wait_ended(timeout_seconds):
            return True
        thread = getattr(self._client, "_thread", None)  # paho has no public way to ask
        if thread is None or not thread.is_alive():
            self._end(ConnectFailed(f"the network thread of {self._identity.client_id} died"))
        return self._life.failure is not None

    def abandon(self, reason: str = "the session was stopped") -> None:
        """Tell whoever opens or watches this connection that it is over; from any thread."""
        self._end(ConnectFailed(reason))

    def close(self) -> None:
        """Say goodbye, wait `CLOSE_SECONDS` at most for the thread, then cut the socket.

        Only for the thread that opened the connection.
        """
        self._client.disconnect()
        thread = getattr(self._client, "_thread", None)
        if thread is not None:
            thread.join(CLOSE_SECONDS)
        if thread is None or thread.is_alive():
            self._cut_socket()
        if thread is not None:
            thread.join(CLOSE_SECONDS)
        self._end(ConnectFailed("closed"))

    # -- messages --------------------------------------------------------------------------

    def publish(self, publication: Publication) -> Receipt:
        """Hand a publication to paho. Raises NotConnected, PayloadTooLarge, TooManyInFlight."""
        self._check_ready()
        if publication.packet_bytes > self.maximum_packet_bytes:
            raise PayloadTooLarge(
                f"{publication.topic}: a packet of up to {publication.packet_bytes} bytes; the "
                f"broker takes {self.maximum_packet_bytes}: split it or finish locally"
            )
        if not self._in_flight.take_place():
            raise TooManyInFlight(
                f"{publication.topic}: {self.in_flight_limit} publications wait for the broker; "
                "try again when one is acknowledged"
            )
        try:
            information = self._client.publish(
                publication.topic,
                publication.payload,
                publication.qos,
                publication.retain,
                publish_properties(publication),
            )
        except (ValueError, TypeError) as error:
            self._in_flight.free_place()
            raise InvalidPublication(f"{publication.topic}: {error}") from error
        if information.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._in_flight.free_place()
        self._check_sent(publication.topic, information.rc)
        return self._in_flight.register(information.mid)

    def acknowledge(self, delivery: Delivery) -> bool:
        """Acknowledge a delivery once; False if it was already, or belongs to another epoch."""
        if delivery.epoch != self.epoch:
            return False
        with self._lock:
            if self._unacknowledged.get(delivery.mid) != delivery.serial:
                return False
            del self._unacknowledged[delivery.mid]
        self._client.ack(delivery.mid, delivery.qos)
        return True

    def subscribe(self, subscription: Subscription) -> None:
        """Ask for one more subscription. Raises NotConnected, TooManyInFlight."""
        self._check_ready()
        code, _ = self._subscribing.ask(
            [subscription],
            lambda: self._client.subscribe([filter_of(subscription)]),
        )
        self._check_sent(subscription.topic_filter, code)

    def unsubscribe(self, topic_filter: str) -> None:
        """End a subscription. Raises NotConnected."""
        self._check_ready()
        self._check_sent(topic_filter, self._client.unsubscribe(topic_filter)[0])

    def _check_ready(self) -> None:
        if not self.is_ready:
            raise NotConnected(f"not connected to broker {self._settings.address}")

    def _check_sent(self, topic: str, code: MQTTErrorCode) -> None:
        """Raises NotConnected where paho did not take a packet."""
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise NotConnected(f"{topic}: {paho.error_string(code)}")

    # -- paho's callbacks, on its thread ---------------------------------------------------

    def _on_connect(
        self, client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, granted: Any
    ) -> None:
        address = self._settings.address
        if reason.is_failure:
            self._end(
                ConnectFailed(
                    f"broker {address} refused {self._identity.client_id}: {reason}; "
                    "check username, password_file and the broker's log"
                )
            )
            return
        limit = getattr(granted, "MaximumPacketSize", None)
        if limit is not None:
            self.maximum_packet_bytes = min(self.maximum_packet_bytes, limit)
        receive_maximum = getattr(granted, "ReceiveMaximum", MQTT_RECEIVE_MAXIMUM)
        self._in_flight.limit = min(self._in_flight.limit, receive_maximum)
        if self._identity.stale_filters:
            client.unsubscribe(list(self._identity.stale_filters))
        wanted = self._identity.subscriptions
        if wanted:
            self._subscribing.ask(
                wanted, lambda: client.subscribe([filter_of(one) for one in wanted])
            )
        else:
            self._life.become_ready()

    def _on_subscribe(
        self, _client: Any, _data: Any, mid: int, reasons: list[ReasonCode], _properties: Any
    ) -> None:
        for subscription, reason in self._subscribing.settle(mid, reasons):
            refusal = SubscriptionRefused(
                f"broker {self._settings.address} refused {self._identity.client_id} the "
                f"subscription {subscription.topic_filter}: {reason}"
            )
            if not self._life.was_ready:
                self._end(refusal)
                return
            _log.warning("broker_subscription_refused", why=str(refusal))
            self._on_subscription_refused(subscription.topic_filter)
        self._life.become_ready()

    def _on_publish(
        self, _client: Any, _data: Any, mid: int, reason: ReasonCode, _properties: Any
    ) -> None:
        self._in_flight.settle(mid, *outcome_of(reason))

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        delivery = delivery_of(message, self.epoch, next(_serials))
        if delivery.qos > 0:
            with self._lock:
                self._unacknowledged[delivery.mid] = delivery.serial
        self._on_delivery(delivery)

    def _on_disconnect(
        self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        words = f"broker {self._settings.address} is gone: {reason}"
        card = self._settings.tls_certificate_file
        if card is not None and not self._life.was_ready:
            # With TLS 1.3 a refused certificate is heard of behind the handshake, without words.
            words += f"; was the certificate {card} revoked, or has it ended? `elma doctor` tells"
        self._end(ConnectFailed(words))

    # -- state -----------------------------------------------------------------------------

    def _end(self, failure: ConnectFailed) -> None:
        """Note the end, with its first cause, and tell everyone who waits for a receipt."""
        if self._life.end(failure):
            self._in_flight.lose_all(str(failure))

    def _failure(self) -> ConnectFailed:
        return self.failure or ConnectFailed(f"broker {self._settings.address}: connection ended")

    def _cut_socket(self) -> None:
        """Wake a network thread that waits for a peer that will never speak again."""
        connection = self._client.socket()
        if isinstance(connection, socket.socket):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
