"""What a session gives and takes: Subscription, Publication, Receipt, Delivery.

Plain values without paho's types, so that nobody outside `connection` depends on the library.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from enum import Enum

from broker.errors import InvalidPublication

MAX_EXPIRY_SECONDS = 2**32 - 1
MAX_TOPIC_BYTES = 1024
MAX_CORRELATION_BYTES = 1024
_PROPERTY_BYTES = 64


@dataclass(frozen=True)
class Subscription:
    """A topic filter (`+`, `#` and `$share/...` allowed) and the QoS to receive it with."""

    topic_filter: str
    qos: int = 1

    def __post_init__(self) -> None:
        _check_topic("topic filter", self.topic_filter)
        _check_qos(self.qos)


@dataclass(frozen=True)
class Publication:
    """One message to publish. `expiry_seconds`: how long the broker may keep it, at least 1."""

    topic: str
    payload: bytes = field(repr=False)
    qos: int = 1
    retain: bool = False
    expiry_seconds: int | None = None
    response_topic: str | None = None
    correlation: bytes | None = None

    def __post_init__(self) -> None:
        _check_topic("topic", self.topic)
        _check_qos(self.qos)
        if "+" in self.topic or "#" in self.topic:
            raise InvalidPublication(f"a wildcard in the topic {self.topic!r}; name one topic")
        if self.response_topic is not None:
            _check_topic("response topic", self.response_topic)
        if not isinstance(self.payload, bytes):
            raise InvalidPublication(f"{self.topic}: the payload must be bytes")
        if self.correlation is not None and len(self.correlation) > MAX_CORRELATION_BYTES:
            raise InvalidPublication(f"{self.topic}: correlation over {MAX_CORRELATION_BYTES} B")
        expiry = self.expiry_seconds
        if expiry is not None and not (
            isinstance(expiry, int) and 1 <= expiry <= MAX_EXPIRY_SECONDS
        ):
            raise InvalidPublication(
                f"{self.topic}: expiry_seconds must be a whole number of at least 1, not {expiry}"
            )

    @property
    def packet_bytes(self) -> int:
        """An upper bound of the MQTT packet's size on the wire."""
        response = len((self.response_topic or "").encode())
        names = len(self.topic.encode()) + response + len(self.correlation or b"")
        return len(self.payload) + names + _PROPERTY_BYTES


@dataclass(frozen=True)
class Delivery:
    """One message from the broker. `epoch` and `serial` say which one an acknowledgement means.

    `expiry_seconds` is what was left of the message's life when the broker sent it.
    """

    topic: str
    payload: bytes = field(repr=False)
    epoch: int
    mid: int
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_seconds: int | None = None
    qos: int = 1
    retained: bool = False
    serial: int = 0


class Outcome(Enum):
    """What became of a publication at the broker. Only an answer is success."""

    PENDING = "pending"
    ACKNOWLEDGED = "acknowledged"
    """The broker took it (QoS 0: it was written to the socket); it may drop it still."""
    NO_SUBSCRIBER = "no_subscriber"
    """The broker took it and nobody is subscribed."""
    REFUSED = "refused"
    """The broker said no: not authorised, quota exceeded, ..."""
    LOST = "lost"
    """The connection ended first: it may have arrived or not."""


class Receipt:
    """Follows one publication. Thread-safe."""

    def __init__(self) -> None:
        self._settled = threading.Event()
        self._outcome = Outcome.PENDING
        self._reason = ""

    @property
    def outcome(self) -> Outcome:
        """What is known now."""
        return self._outcome

    @property
    def reason(self) -> str:
        """The broker's own words for REFUSED, the cause for LOST; empty otherwise."""
        return self._reason

    def wait(self, timeout_seconds: float) -> Outcome:
        """The outcome, or PENDING when `timeout_seconds` passed without one."""
        self._settled.wait(timeout_seconds)
        return self._outcome

    def settle(self, outcome: Outcome, reason: str = "") -> None:
        """Called once, by the connection; a second call changes nothing."""
        if not self._settled.is_set():
            self._outcome, self._reason = outcome, reason
            self._settled.set()


def _check_topic(what: str, topic: str) -> None:
    if not topic or "\0" in topic:
        raise InvalidPublication(f"an empty {what}, or one with a null character")
    try:
        size = len(topic.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidPublication(f"a {what} that is not UTF-8") from error
    if size > MAX_TOPIC_BYTES:
        raise InvalidPublication(f"a {what} of {size} bytes; at most {MAX_TOPIC_BYTES}")


def _check_qos(qos: int) -> None:
    if qos not in (0, 1):
        raise InvalidPublication(f"QoS {qos}; ELMA uses 0 and 1")
