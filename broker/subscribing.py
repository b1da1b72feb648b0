"""Subscriptions that come and go: those that wait for the broker's word, and those to be forgotten.

`Subscribing` belongs to one connection. The broker's word comes on paho's thread and may overtake
the call that asked, so asking and noting happen under one lock. `AddedFilters` belongs to a
session: a broker that keeps a session while it is away keeps all its subscriptions, whoever made
them, so what was added to earlier connections has to be ended at the next. Both are thread-safe.
Neighbours: `connection` asks, and says what a refusal means; `session` adds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from broker.errors import TooManyInFlight
from broker.exchange import Subscription

Refused = list[tuple[Subscription, ReasonCode]]


class Subscribing:
    """At most `limit` SUBSCRIBE packets without an answer, by paho's message number (mid)."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[Subscription, ...]] = {}

    @property
    def count(self) -> int:
        """Packets that wait now."""
        with self._lock:
            return len(self._waiting)

    def ask(
        self,
        subscriptions: Sequence[Subscription],
        send: Callable[[], tuple[MQTTErrorCode, int | None]],
    ) -> tuple[MQTTErrorCode, int | None]:
        """Call `send`, which hands the packet to paho, and note what it asks for.

        Returns what paho returned. Raises TooManyInFlight.
        """
        with self._lock:
            if len(self._waiting) >= self._limit:
                raise TooManyInFlight(
                    f"{subscriptions[0].topic_filter}: {self._limit} subscriptions wait for the "
                    "broker; try again when one is granted"
                )
            code, mid = send()
            if code == MQTTErrorCode.MQTT_ERR_SUCCESS and mid is not None:
                self._waiting[mid] = tuple(subscriptions)
        return code, mid

    def settle(self, mid: int, reasons: Sequence[ReasonCode]) -> Refused:
        """The broker has spoken about `mid`: which of its subscriptions were refused, and why."""
        with self._lock:
            asked = self._waiting.pop(mid, ())
        pairs = zip(asked, reasons, strict=False)
        return [(one, reason) for one, reason in pairs if reason.is_failure]


class AddedFilters:
    """Topic filters that were subscribed to beside a session's `own`.

    `are_kept`: the broker keeps the session, and its subscriptions, while it is away.
    """

    def __init__(self, own: Iterable[str], *, are_kept: bool) -> None:
        self._own = frozenset(own)
        self._are_kept = are_kept
        self._lock = threading.Lock()
        self._added: set[str] = set()  # while this connection lives
        self._stale: set[str] = set()  # what the broker may still remember of earlier ones

    def is_own(self, topic_filter: str) -> bool:
        """Whether it is one that the session was made with."""
        return topic_filter in self._own

    def add(self, topic_filter: str) -> None:
        """It is being subscribed to."""
        with self._lock:
            self._added.add(topic_filter)

    def discard(self, topic_filter: str) -> None:
        """It was unsubscribed from, or refused."""
        with self._lock:
            self._added.discard(topic_filter)

    def begin_connection(self) -> Sequence[str]:
        """A connection is about to be made: what it has to unsubscribe from first."""
        with self._lock:
            if self._are_kept:
                self._stale |= self._added - self._own
            self._added = set()
            return sorted(self._stale)

    def note_connected(self) -> None:
        """The connection has unsubscribed from what `begin_connection` returned."""
        with self._lock:
            self._stale.clear()
