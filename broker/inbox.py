"""The deliveries of a session between paho's thread, which puts them, and the caller, who takes.

Inputs: deliveries as they come. Outputs: the same in their order, and a word on what found no
place. Neighbours: `session` owns it and tells the broker; `delivery_queue` knows who gives way.
Thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum

from broker.delivery_queue import DeliveryQueue
from broker.exchange import Delivery
from broker.log import LineLimit, SafeLog

DROPPED_LINES_PER_SECOND = 1
_log = SafeLog("elma.broker")


class Put(Enum):
    """What became of a delivery."""

    TAKEN = "taken"
    NO_PLACE = "no place"
    TOO_LARGE = "too large"


class Inbox:
    """Bounded in number and bytes; what is over `largest_bytes` is not wanted at all."""

    def __init__(self, client_id: str, bound: int, bound_bytes: int, largest_bytes: int) -> None:
        self.dropped_total = 0
        self._client_id, self._largest_bytes = client_id, largest_bytes
        self._queue = DeliveryQueue(bound, bound_bytes)
        self._arrived = threading.Condition()
        self._dropped_lines = LineLimit(DROPPED_LINES_PER_SECOND)

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, delivery: Delivery) -> Put:
        """Queue it; others, of QoS 0, may lose their place to it."""
        with self._arrived:
            # A broker that knows no limits may send more than was asked for.
            is_too_large = len(delivery.payload) > self._largest_bytes
            dropped = [delivery] if is_too_large else self._queue.put(delivery)
            self.dropped_total += len(dropped)
            self._arrived.notify()
        if not dropped:
            return Put.TAKEN
        _log.limited_warning(
            self._dropped_lines,
            "broker_delivery_dropped",
            client=self._client_id,
            topic=delivery.topic,
            payload_bytes=len(delivery.payload),
            dropped_total=self.dropped_total,
        )
        if is_too_large:
            return Put.TOO_LARGE
        return Put.NO_PLACE if dropped[-1] is delivery else Put.TAKEN

    def take(self, timeout_seconds: float, is_over: Callable[[], bool]) -> Delivery | None:
        """The next one, or None after `timeout_seconds`, or at once when it is over and empty."""
        with self._arrived:
            self._arrived.wait_for(lambda: len(self._queue) or is_over(), max(0.0, timeout_seconds))
            return self._queue.take()

    def wake(self) -> None:
        """Let whoever waits look again whether it is over."""
        with self._arrived:
            self._arrived.notify_all()

    def forget_what_comes_again(self) -> None:
        """Keep only QoS 0: the rest, unacknowledged, is sent anew by the next connection."""
        with self._arrived:
            self._queue.keep_only_qos_0()
