"""A request that a worker has accepted, from its acceptance to its end.

Inputs: an opened request. Outputs: what replies are sealed with, when its lease and its deadline
end, and how far its windows are. Neighbours: `receive` makes it, `request_queue` holds it, `resume`
fills in its results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.tracing import Span
from cloud_worker.releases import LoadedRelease
from protocol.messages import Provisional
from protocol.requests import request_id_of
from protocol.sealing import RequestHeader, RequestKey
from reader.spans import WindowSpans


@dataclass(frozen=True)
class Asker:
    """Whom a reply is for, and the key that seals it; `span` covers the request, if traced."""

    header: RequestHeader
    key: RequestKey = field(repr=False)
    span: Span | None = field(default=None, repr=False, compare=False)

    @property
    def log_fields(self) -> dict[str, str]:
        """Which request it is, in every log line: the question's id, as the edge says it, first."""
        wire_id = self.header.request
        named = {
            "request_id": request_id_of(wire_id),
            "wire_id": wire_id,
            "edge": self.header.edge,
        }
        is_traced = self.span is not None and self.span.is_sampled
        return {**named, "trace_id": self.span.trace_id} if is_traced and self.span else named


@dataclass(eq=False)
class HeldRequest:
    """One accepted request. Times are seconds of the worker's monotonic clock.

    `loaded` is the release that made its states; it stays in memory for as long as it is held.
    `provisional` are the edge's own spans by window, where it sent them; `is_audit` as in
    `ResumeRequest`. `rank` is 0 for the first of the worker's priorities. `dropped_windows` waited
    when it ended.

    `is_open` belongs to the queue's lock, `lease_until` to whoever renews it (a race renews twice),
    and the results to the compute thread, as does `is_computing`, which says that a window of it
    was in a batch; `phase` is the span of its queueing, then of its computing.
    """

    asker: Asker
    loaded: LoadedRelease
    top_spans: int
    window_count: int
    state_bytes: int
    arrived: float
    due: float
    lease_until: float
    rank: int = 0
    provisional: Mapping[int, Provisional] = field(default_factory=dict)
    is_audit: bool = False
    is_open: bool = True
    dropped_windows: int = 0
    compute_seconds: float = 0.0
    results: dict[int, WindowSpans] = field(default_factory=dict)
    phase: Span | None = field(default=None, repr=False)
    is_computing: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """Edge and request id."""
        return self.asker.header.edge, self.asker.header.request

    @property
    def release(self) -> str:
        """Digest of the reader that made its states."""
        return self.asker.header.release

    @property
    def is_complete(self) -> bool:
        """Whether every window has its result."""
        return len(self.results) == self.window_count

    def wait_seconds(self, now: float) -> float:
        """How long it was here without being computed."""
        return max(0.0, now - self.arrived - self.compute_seconds)
