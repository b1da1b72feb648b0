"""Which windows run next, together: batches across requests and across depths.

Inputs: windows that wait for their next layer, the time. Output: one batch at a time, of windows
whose next layers share their parameters; each then comes back one layer further on, or is done, and
new windows join at the layer they need. Neighbours: `request_queue` owns the scheduler, `resume`
runs the batches. No thread, no clock, no network, and no look into the states.

The order, in this sequence:

1. A window that arrived `max_wait_seconds` ago or earlier, the oldest first: nothing waits for ever
   behind a stream of others. Counted from the arrival and not from the last layer, so that under
   load what is oldest is finished, instead of everything taking turns.
2. A window whose deadline is nearer than `urgent_seconds`, the nearest first.
3. The parameter group that can make the fullest batch, where `enough_windows` count as full; among
   equals the one with the nearest deadline. "Enough" is small on purpose: past it a batch gains
   little, and finishing what was begun beats moving everybody one layer on.

The chosen window's batch is filled in the order of deadlines with windows of the same release and
parameter group, at whatever depth, as long as padding, windows and tokens stay within the limits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from torch import Tensor

Request = TypeVar("Request")


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of a batch, and when a window goes first.

    `max_tokens` counts padding; `max_padding` is its largest share of a batch. A window that is
    larger than `max_tokens` by itself runs alone.
    """

    max_windows: int = 16
    max_tokens: int = 4_096
    max_padding: float = 0.25
    enough_windows: int = 4
    urgent_seconds: float = 1.0
    max_wait_seconds: float = 10.0


@dataclass(frozen=True, eq=False)
class WaitingWindow(Generic[Request]):
    """A window after `layer`, waiting for `layer + 1`, whose parameters are those of `group`.

    `due` and `arrived` are seconds of the owner's monotonic clock. `state` is `[T, H]`.
    """

    request: Request
    index: int
    release: str
    layer: int
    group: int
    due: float
    arrived: float
    question_tokens: int
    state: Tensor = field(repr=False)

    @property
    def length_tokens(self) -> int:
        """T."""
        return int(self.state.shape[0])

    def moved_on(self, state: Tensor, group: int) -> WaitingWindow[Request]:
        """The same window one layer later; `group` is that of its new next layer."""
        return replace(self, layer=self.layer + 1, group=group, state=state)


class Scheduler(Generic[Request]):
    """The waiting windows, and the choice among them. Not for two threads at once."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._waiting: list[WaitingWindow[Request]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, windows: Iterable[WaitingWindow[Request]]) -> None:
        """Let windows wait for their next layer."""
        self._waiting.extend(windows)

    def drop(self, request: Request) -> int:
        """Take all windows of a request out; returns how many there were."""
        before = len(self._waiting)
        self._waiting = [window for window in self._waiting if window.request is not request]
        return before - len(self._waiting)

    def next_batch(self, now: float) -> list[WaitingWindow[Request]]:
        """The windows to run next, taken out; all of one release and parameter group.

        `now` is in seconds of the clock that `due` and `arrived` are in. Empty when nothing
        waits.
        """
        if not self._waiting:
            return []
        first = self._first_to_go(now)
        batch = self._fullest_batch() if first is None else self._batch_around(first)
        taken = {id(window) for window in batch}
        self._waiting = [window for window in self._waiting if id(window) not in taken]
        return batch

    def _first_to_go(self, now: float) -> WaitingWindow[Request] | None:
        """Rules 1 and 2: the window that may not wait for a better batch."""
        oldest = min(self._waiting, key=lambda window: window.arrived)
        if now - oldest.arrived >= self._limits.max_wait_seconds:
            return oldest
        nearest = min(self._waiting, key=lambda window: window.due)
        return nearest if nearest.due - now <= self._limits.urgent_seconds else None

    def _fullest_batch(self) -> list[WaitingWindow[Request]]:
        """Rule 3."""
        nearest: dict[tuple[str, int], WaitingWindow[Request]] = {}
        for window in self._waiting:
            known = nearest.setdefault((window.release, window.group), window)
            if window.due < known.due:
                nearest[window.release, window.group] = window
        batches = [self._batch_around(window) for window in nearest.values()]
        enough = self._limits.enough_windows
        return min(batches, key=lambda batch: (-min(len(batch), enough), batch[0].due))

    def _batch_around(self, first: WaitingWindow[Request]) -> list[WaitingWindow[Request]]:
        """`first` and what may run with it, nearest deadline first, within the limits."""
        limits = self._limits
        mates = sorted(
            (
                window
                for window in self._waiting
                if window is not first
                and (window.release, window.group) == (first.release, first.group)
            ),
            key=lambda window: window.due,
        )
        batch, longest, tokens = [first], first.length_tokens, first.length_tokens
        for window in mates:
            if len(batch) == limits.max_windows:
                break
            padded = max(longest, window.length_tokens) * (len(batch) + 1)
            padding = padded - (tokens + window.length_tokens)
            if padded <= limits.max_tokens and padding <= limits.max_padding * padded:
                batch.append(window)
                longest = max(longest, window.length_tokens)
                tokens += window.length_tokens
        return batch
