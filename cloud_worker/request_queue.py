"""The bounded queue of accepted requests, with their windows in the scheduler. Thread-safe.

Inputs: accepted requests (from `receive`), windows that moved on (from `resume`). Outputs: batches,
requests whose lease is to be renewed or whose deadline has passed. A request has a place from
`reserve` to `remove`, which says True exactly once, so that it has exactly one end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from cloud_worker.held import HeldRequest
from cloud_worker.pace import Pace
from cloud_worker.scheduler import BatchLimits, Scheduler, WaitingWindow
from reader.arrays import FloatArray
from reader.config import ReaderConfig

Window = WaitingWindow[HeldRequest]


def waiting_window(
    request: HeldRequest,
    config: ReaderConfig,
    *,
    index: int,
    layer: int,
    question_tokens: int,
    state: FloatArray,
) -> Window:
    """A window of a request as it came: its state `[T, H]` after `layer`, which is not the last."""
    return Window(
        request=request,
        index=index,
        release=request.release,
        layer=layer,
        last_layer=config.layers,
        group=config.group_of(layer + 1),
        rank=request.rank,
        due=request.due,
        arrived=request.arrived,
        length_tokens=len(state),
        question_tokens=question_tokens,
        state=state,
    )


class RequestQueue:
    """At most `bound` requests whose states take at most `bound_bytes`; `clock` is monotonic.

    `pace_of` gives the pace of a release.
    """

    def __init__(
        self,
        limits: BatchLimits,
        pace_of: Callable[[str], Pace],
        *,
        bound: int,
        bound_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        self._bound, self._bound_bytes, self._clock = bound, bound_bytes, clock
        self._scheduler: Scheduler[HeldRequest] = Scheduler(limits, pace_of)
        self._held: dict[tuple[str, str], HeldRequest] = {}
        self._held_bytes = 0
        self._changed = threading.Condition()

    def __len__(self) -> int:
        with self._changed:
            return len(self._held)

    @property
    def waiting_windows(self) -> int:
        """Windows that wait for their next layer."""
        with self._changed:
            return len(self._scheduler)

    def reserve(self, request: HeldRequest) -> bool:
        """Take a place for a request; False when the queue is full or its id is held.

        For an audit, which nobody waits for, it is full when half of it is.
        """
        with self._changed:
            share = 0.5 if request.is_audit else 1.0
            held_bytes = self._held_bytes + request.state_bytes
            if len(self._held) >= share * self._bound or held_bytes > share * self._bound_bytes:
                return False
            if request.key in self._held:
                return False
            self._held[request.key] = request
            self._held_bytes = held_bytes
            return True

    def enter(self, windows: Sequence[Window]) -> None:
        """Let windows of held requests wait for their next layer; those of ended ones vanish."""
        with self._changed:
            self._scheduler.add(window for window in windows if window.request.is_open)
            self._changed.notify_all()

    def find(self, edge: str, request: str) -> HeldRequest | None:
        """A held request by its id."""
        with self._changed:
            return self._held.get((edge, request))

    def remove(self, request: HeldRequest) -> bool:
        """End a request and free its place; False when it had ended before.

        Its windows that wait are never computed: `request.dropped_windows` counts them.
        """
        with self._changed:
            if not request.is_open or self._held.get(request.key) is not request:
                return False
            request.is_open = False
            del self._held[request.key]
            self._held_bytes -= request.state_bytes
            request.dropped_windows = self._scheduler.drop(request)
            self._changed.notify_all()
            return True

    def take_batch(self, wait_seconds: float) -> list[Window]:
        """The windows to run next; empty when none came within `wait_seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._scheduler), wait_seconds)
            return self._scheduler.next_batch(self._clock())

    def past_due(self, grace_seconds: float) -> list[HeldRequest]:
        """Requests whose deadline passed more than `grace_seconds` ago."""
        limit = self._clock() - grace_seconds
        with self._changed:
            return [request for request in self._held.values() if request.due < limit]

    def leases_to_renew(self, margin_seconds: float) -> list[HeldRequest]:
        """Requests whose lease ends within `margin_seconds`."""
        limit = self._clock() + margin_seconds
        with self._changed:
            return [request for request in self._held.values() if request.lease_until < limit]

    def all_held(self) -> list[HeldRequest]:
        """Every request that has not ended."""
        with self._changed:
            return list(self._held.values())

    def wait_empty(self, wait_seconds: float) -> bool:
        """Whether every request has ended, or does within `wait_seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._held, wait_seconds)
