"""Chunks as retained messages: subscribe to one chunk's topic, unsubscribe when it has come.

In: the link's deliveries, from whichever thread reads them. Out: arrivals. Neighbours: `follower`
hands over every delivery of a blob topic, `fetching` asks and verifies.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from contextlib import suppress
from typing import Protocol

from broker.errors import BrokerError
from broker.exchange import Delivery, Subscription
from protocol.errors import TopicError
from protocol.topics import BlobTopic, parse_topic
from releases.transport import Arrival, ChunkKey, WantedChunk

QUEUE_BOUND = 32
RECENT_BOUND = 256


class Link(Protocol):
    """What is needed of `broker.session.Session`."""

    @property
    def is_connected(self) -> bool:
        """Connected, with every subscription granted."""

    def subscribe(self, subscription: Subscription) -> None:
        """Ask the broker for a topic, on this connection only."""

    def unsubscribe(self, topic_filter: str) -> None:
        """Tell the broker that the topic is not wanted any more."""

    def acknowledge(self, delivery: Delivery) -> bool:
        """Tell the broker that the delivery is safe here."""


class MqttTransport:
    """Fetches chunks over a link. `offer`, `refused` and `reconnected` come from other threads."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._wanted: set[ChunkKey] = set()
        self._recent: deque[ChunkKey] = deque(maxlen=RECENT_BOUND)
        self._arrivals: queue.Queue[Arrival] = queue.Queue(QUEUE_BOUND)
        self._generation = 0
        self._lock = threading.Lock()

    # -- from the link's threads -----------------------------------------------------------

    def offer(self, topic: BlobTopic, payload: bytes) -> None:
        """A delivery of a blob topic: queued if it is wanted, dropped if not. Quick."""
        key = (topic.sha256, topic.chunk)
        with self._lock:
            if key in self._wanted:
                # An empty payload is the publisher clearing a retained chunk.
                if payload:
                    with suppress(queue.Full):  # never with a sound broker; it is asked for again
                        self._arrivals.put_nowait(Arrival(key, payload))
                return
            is_known = key in self._recent
            self._recent.append(key)
        if not is_known:  # left over from an earlier life of a persistent session
            with suppress(BrokerError):
                self._link.unsubscribe(str(topic))

    def refused(self, topic_filter: str) -> None:
        """The broker denied a subscription."""
        with suppress(TopicError):
            topic = parse_topic(topic_filter)
            if isinstance(topic, BlobTopic):
                with suppress(queue.Full):
                    self._arrivals.put_nowait(
                        Arrival(
                            (topic.sha256, topic.chunk),
                            problem="the broker refuses the subscription; check the access rules",
                        )
                    )

    def reconnected(self) -> None:
        """The link is another one than before: nothing that was subscribed to still is."""
        with self._lock:
            self._generation += 1

    # -- Transport -------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether the link is connected."""
        return self._link.is_connected

    @property
    def generation(self) -> int:
        """Counts the link's connections."""
        return self._generation

    def ask(self, wanted: WantedChunk) -> bool:
        """Subscribe to the chunk's topic."""
        with self._lock:
            self._wanted.add(wanted.key)
        try:
            self._link.subscribe(Subscription(_topic(wanted)))
        except BrokerError:
            return False
        return True

    def arrived(self, timeout_seconds: float) -> Arrival | None:
        """The next thing that came."""
        try:
            return self._arrivals.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def forget(self, wanted: WantedChunk) -> None:
        """Unsubscribe from the chunk's topic."""
        with self._lock:
            self._wanted.discard(wanted.key)
            self._recent.append(wanted.key)
        with suppress(BrokerError):
            self._link.unsubscribe(_topic(wanted))

    def close(self) -> None:
        """Drop what came and was not taken."""
        with self._lock:
            self._wanted.clear()
        with suppress(queue.Empty):
            while True:
                self._arrivals.get_nowait()


def _topic(wanted: WantedChunk) -> str:
    return str(BlobTopic(*wanted.key))
