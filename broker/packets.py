"""Between our words and paho's: the client and the property sets of its packets.

`connection` uses these and nothing else makes paho's objects. `password` may raise
BrokerSettingsError.
"""

from __future__ import annotations

import ssl

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from broker.exchange import Delivery, Outcome, Publication, Subscription
from broker.settings import BrokerSettings

NO_MATCHING_SUBSCRIBERS = 16


def make_client(
    settings: BrokerSettings, client_id: str, tls_context: ssl.SSLContext | None
) -> paho.Client:
    """A client that speaks MQTT v5, acknowledges nothing by itself, and does not reconnect."""
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        protocol=paho.MQTTv5,
        reconnect_on_failure=False,
        manual_ack=True,
    )
    client.connect_timeout = settings.connect_timeout_seconds
    if settings.username is not None:
        client.username_pw_set(settings.username, settings.password())
    if tls_context is not None:
        client.tls_set_context(tls_context)
    return client


def set_will(client: paho.Client, will: Publication, delay_seconds: int) -> None:
    """What the broker publishes for us, `delay_seconds` after we vanish."""
    properties = _properties(PacketTypes.WILLMESSAGE)
    properties.WillDelayInterval = delay_seconds
    if will.expiry_seconds is not None:
        properties.MessageExpiryInterval = will.expiry_seconds
    client.will_set(will.topic, will.payload, will.qos, will.retain, properties)


def connect_properties(
    session_expiry_seconds: int, receive_maximum: int, maximum_packet_bytes: int
) -> Properties:
    """What we ask of the broker in CONNECT."""
    properties = _properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = session_expiry_seconds
    properties.ReceiveMaximum = receive_maximum
    properties.MaximumPacketSize = maximum_packet_bytes
    return properties


def publish_properties(publication: Publication) -> Properties:
    """Expiry, response topic and correlation data of a publication."""
    properties = _properties(PacketTypes.PUBLISH)
    if publication.expiry_seconds is not None:
        properties.MessageExpiryInterval = publication.expiry_seconds
    if publication.response_topic is not None:
        properties.ResponseTopic = publication.response_topic
    if publication.correlation is not None:
        properties.CorrelationData = publication.correlation
    return properties


def delivery_of(message: paho.MQTTMessage, epoch: int, serial: int) -> Delivery:
    """paho's message in our words."""
    properties = message.properties
    return Delivery(
        topic=message.topic,
        payload=bytes(message.payload),
        epoch=epoch,
        mid=message.mid,
        response_topic=getattr(properties, "ResponseTopic", None),
        correlation=getattr(properties, "CorrelationData", None),
        expiry_seconds=getattr(properties, "MessageExpiryInterval", None),
        qos=message.qos,
        retained=bool(message.retain),
        serial=serial,
    )


def filter_of(subscription: Subscription) -> tuple[str, SubscribeOptions]:
    """What paho wants of a subscription."""
    return subscription.topic_filter, SubscribeOptions(qos=subscription.qos)


def outcome_of(reason: ReasonCode) -> tuple[Outcome, str]:
    """The broker's word about a publication, and its reason where it refused."""
    if reason.value == NO_MATCHING_SUBSCRIBERS:
        return Outcome.NO_SUBSCRIBER, ""
    return (Outcome.REFUSED, str(reason)) if reason.is_failure else (Outcome.ACKNOWLEDGED, "")


def _properties(packet_type: int) -> Properties:
    return Properties(packet_type)  # type: ignore[no-untyped-call]  # paho leaves it untyped
