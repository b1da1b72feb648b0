"""Deliveries that wait for their reader, bounded in number and in bytes.

Inputs: deliveries as they come. Outputs: the same in their order, and what was dropped for want of
a place. QoS 0, which no broker limits, may fill half of the queue and gives way to QoS 1.
Neighbour: `session` owns the queue, guards it with its lock, and decides what dropping means.
"""

from __future__ import annotations

from collections import deque

from broker.exchange import Delivery


class DeliveryQueue:
    """Deliveries that wait, bounded in number and bytes; QoS 0 gives way. Not thread-safe."""

    def __init__(self, bound: int, bound_bytes: int) -> None:
        self._bound, self._bound_bytes = bound, bound_bytes
        self._items: deque[Delivery] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, delivery: Delivery) -> list[Delivery]:
        """Queue a delivery; returns what was dropped for want of a place, itself perhaps."""
        if delivery.qos == 0:
            if not self._fits(delivery, share=2):
                return [delivery]
            self._append(delivery)
            return []
        given_way: list[Delivery] = []
        while not self._fits(delivery):
            lesser = next((item for item in self._items if item.qos == 0), None)
            if lesser is None:
                return [*given_way, delivery]
            self._items.remove(lesser)
            self._bytes -= len(lesser.payload)
            given_way.append(lesser)
        self._append(delivery)
        return given_way

    def take(self) -> Delivery | None:
        """The oldest delivery, or None."""
        if not self._items:
            return None
        delivery = self._items.popleft()
        self._bytes -= len(delivery.payload)
        return delivery

    def keep_only_qos_0(self) -> None:
        """Forget what a broker sends again."""
        self._items = deque(item for item in self._items if item.qos == 0)
        self._bytes = sum(len(item.payload) for item in self._items)

    def _fits(self, delivery: Delivery, share: int = 1) -> bool:
        """Whether there is room in 1/`share` of the queue; in an empty one there always is."""
        if not self._items:
            return True
        return (
            len(self._items) < max(1, self._bound // share)
            and self._bytes + len(delivery.payload) <= self._bound_bytes // share
        )

    def _append(self, delivery: Delivery) -> None:
        self._items.append(delivery)
        self._bytes += len(delivery.payload)
