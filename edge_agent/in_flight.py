"""The requests that are under way to the cloud: the record of each, and the table of all.

Inputs: packed readings. Outputs: for each of them exactly one call, `on_answer` or `on_give_up`.
Neighbours: `offload` puts requests in and drives them, `worker_words` changes or ends them by what
workers say. The records are touched by the offload thread only; the table's counts by any.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from broker.exchange import Receipt
from broker.tracing import Span
from edge_agent.cloud_messages import SealedRequest
from edge_agent.lease import Lease, Reason
from edge_agent.local_reading import Reading
from edge_agent.packing import PackedRequest
from edge_agent.questions import OffloadRecord
from reader.spans import WindowSpans


@dataclass(frozen=True)
class CloudAnswer:
    """What a worker found: a result for each window of the request."""

    results: Mapping[int, WindowSpans]
    queue_seconds: float
    compute_seconds: float


OnAnswer = Callable[[Reading, CloudAnswer, OffloadRecord], None]
OnGiveUp = Callable[[Reading, Reason, OffloadRecord], None]


@dataclass
class Request:
    """One request under way; times are those of the offload thread's clock, in seconds.

    `span` covers its way, where there are traces, and `publishing` the publication under way.
    """

    reading: Reading
    packed: PackedRequest
    lease: Lease
    first_published: float | None = None
    last_published: float = 0.0
    receipt: Receipt | None = None
    worker: str | None = None
    bytes_sent: int = 0
    again_at: float = 0.0
    span: Span | None = None
    publishing: Span | None = None

    @property
    def sealed(self) -> SealedRequest:
        """The bytes that go out, and what is needed to understand the answer."""
        return self.packed.sealed

    @property
    def record(self) -> OffloadRecord:
        """How its way went so far."""
        return OffloadRecord(
            self.sealed.wire_id, self.lease.publications, self.bytes_sent, self.worker
        )


class InFlight:
    """All requests by their wire id, with how many and how large they are."""

    def __init__(self, on_answer: OnAnswer, on_give_up: OnGiveUp) -> None:
        self._on_answer, self._on_give_up = on_answer, on_give_up
        self._requests: dict[str, Request] = {}
        self._counting = threading.Lock()
        self._count = 0
        self._held_bytes = 0

    @property
    def count(self) -> int:
        """Requests that wait for the cloud, those not yet in the table included."""
        return self._count

    @property
    def held_bytes(self) -> int:
        """The bytes of all of them."""
        return self._held_bytes

    def reserve(self, packed: PackedRequest) -> None:
        """Count a request that is on its way into the table; any thread."""
        with self._counting:
            self._count += 1
            self._held_bytes += len(packed.sealed.payload)

    def add(self, request: Request) -> None:
        """Take in what was reserved; a wire id that is taken already gives it up."""
        if request.sealed.wire_id in self._requests:
            self._release(request)
            self._on_give_up(request.reading, Reason.REFUSED, request.record)
            return
        self._requests[request.sealed.wire_id] = request

    def all(self) -> list[Request]:
        """Those in the table now."""
        return list(self._requests.values())

    def find(self, wire_id: str) -> Request | None:
        """The request of a wire id."""
        return self._requests.get(wire_id)

    def replace(self, request: Request, packed: PackedRequest) -> None:
        """Other bytes for a request, which need another wire id: a worker takes an id once."""
        del self._requests[request.sealed.wire_id]
        with self._counting:
            self._held_bytes += len(packed.sealed.payload) - len(request.sealed.payload)
        request.packed, request.receipt = packed, None
        self._requests[packed.sealed.wire_id] = request

    def answered(self, request: Request, answer: CloudAnswer) -> None:
        """End a request with what a worker found."""
        self._remove(request)
        self._on_answer(request.reading, answer, request.record)

    def given_up(self, request: Request, reason: Reason) -> None:
        """End a request without an answer."""
        self._remove(request)
        self._on_give_up(request.reading, reason, request.record)

    def _remove(self, request: Request) -> None:
        del self._requests[request.sealed.wire_id]
        self._release(request)

    def _release(self, request: Request) -> None:
        with self._counting:
            self._count -= 1
            self._held_bytes -= len(request.sealed.payload)
