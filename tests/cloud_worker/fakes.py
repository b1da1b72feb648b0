"""Stand-ins for the network and the clock: what tests of single parts inject."""

from __future__ import annotations

from collections import deque

from broker.errors import NotConnected, TooManyInFlight
from broker.exchange import Delivery, Outcome, Publication, Receipt


class FakeClock:
    """Seconds that pass only when a test says so."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class FakeSession:
    """Takes publications and acknowledgements, and is connected as a test likes."""

    def __init__(self) -> None:
        self.is_connected = True
        self.maximum_packet_bytes = 1_000_000
        self.in_flight_limit = 100
        self.settles_receipts = True
        self.published: list[Publication] = []
        self.receipts: deque[Receipt] = deque()
        self.acknowledged: list[Delivery] = []
        self.done: list[str] = []
        """Topics published and topics acknowledged, in their order."""

    def publish(self, publication: Publication) -> Receipt:
        if not self.is_connected:
            raise NotConnected("no broker")
        if sum(one.outcome is Outcome.PENDING for one in self.receipts) >= self.in_flight_limit:
            raise TooManyInFlight("enough")
        receipt = Receipt()
        if self.settles_receipts:
            receipt.settle(Outcome.ACKNOWLEDGED)
        self.receipts.append(receipt)
        self.published.append(publication)
        self.done.append(f"published {publication.topic}")
        return receipt

    def acknowledge(self, delivery: Delivery) -> bool:
        self.acknowledged.append(delivery)
        self.done.append(f"acknowledged {delivery.topic}")
        return True

    def receive(self, timeout_seconds: float) -> Delivery | None:  # noqa: ARG002 - as the session has it
        return None

    def wait_connected(self, timeout_seconds: float) -> bool:  # noqa: ARG002
        return self.is_connected
