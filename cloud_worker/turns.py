"""Whose turn it is: the order among the requests that a worker computes.

In: each request's priority, arrival, deadline and work; the time. Out: a key for each, the smaller
the sooner; and which request is the oldest. Neighbour: `scheduler` sorts windows by these keys.

The key is `(rank, fair)`. Ranks: URGENT, then the priorities in their order, then LATE.

    fair     arrived + PATIENCE * what it takes to compute: who asks for more waits longer, in
             proportion (the fair stretch; Bender et al. 1998), and of equals the first is first
    URGENT   near its deadline, still to be met, and with little left; the nearest deadline first
    LATE     past its deadline by this clock: only while nothing else waits

Little means at most `urgent_seconds`: a large request that has run late may not stop all the others
for its own sake. Each request is looked at when it can have become urgent or late, and then again
where that was too soon, from a heap: a step looks at few of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Generic, TypeVar

Request = TypeVar("Request")

PATIENCE = 20.0
URGENT = -1
LATE = 1_000_000
_SHORTEST_PAUSE_SECONDS = 0.01


@dataclass(eq=False)
class Turn:
    """One request's place in the order; `work` and `work_left` are in tokens times layers."""

    rank: int
    arrived: float
    due: float
    work: int
    work_left: int
    seconds_per_work: float
    key: tuple[int, float]
    is_over: bool = False

    @property
    def seconds_left(self) -> float:
        """What computing the rest would take with the machine to itself."""
        return self.work_left * self.seconds_per_work


class Turns(Generic[Request]):
    """The turns of all requests that wait or are computed. Not for two threads at once.

    `on_change` is called with a turn whose key has changed.
    """

    def __init__(self, urgent_seconds: float, on_change: Callable[[Turn], None]) -> None:
        self._urgent_seconds, self._on_change = urgent_seconds, on_change
        self._turns: dict[Request, Turn] = {}
        self._by_age: deque[Turn] = deque()
        self._to_look_at: list[tuple[float, int, Turn]] = []
        self._number = 0

    def find(self, request: Request) -> Turn | None:
        """The turn of a request that has begun and not ended."""
        return self._turns.get(request)

    def begin(
        self, request: Request, rank: int, arrived: float, due: float, work: int, seconds: float
    ) -> Turn:
        """Give a request its turn; `seconds` is what its `work` should take."""
        key = rank, arrived + PATIENCE * seconds
        turn = Turn(rank, arrived, due, work, work, seconds / max(work, 1), key)
        self._turns[request] = turn
        self._by_age.append(turn)
        self._look_again(turn, due - seconds - self._urgent_seconds)
        return turn

    def end(self, request: Request) -> Turn | None:
        """Forget a request; its turn, if it had one."""
        turn = self._turns.pop(request, None)
        if turn is not None:
            turn.is_over = True
        return turn

    def note_work(self, turn: Turn, work: int) -> bool:
        """So much of a request is being computed now; whether nothing is left to wait for."""
        turn.work_left -= work
        return turn.work_left <= 0

    def oldest(self, arrived_before: float) -> Turn | None:
        """The oldest request that is not late, if it arrived so early."""
        while self._by_age and (self._by_age[0].is_over or self._by_age[0].key[0] == LATE):
            self._by_age.popleft()
        first = self._by_age[0] if self._by_age else None
        return first if first is not None and first.arrived <= arrived_before else None

    def look_at_deadlines(self, now: float) -> None:
        """Raise those that have become urgent, put those past their deadline last."""
        while self._to_look_at and self._to_look_at[0][0] <= now:
            _, _, turn = heappop(self._to_look_at)
            if turn.is_over:
                continue
            if now > turn.due:
                self._change(turn, (LATE, turn.due))
                continue
            left = turn.seconds_left
            begins = turn.due - left - self._urgent_seconds
            if now < begins:
                self._look_again(turn, begins)
            elif left <= self._urgent_seconds and now + left <= turn.due:
                self._change(turn, (URGENT, turn.due))
                self._look_again(turn, turn.due + _SHORTEST_PAUSE_SECONDS)
            else:  # too much is left: perhaps not any more in a while
                pause = max(self._urgent_seconds / 4, _SHORTEST_PAUSE_SECONDS)
                self._look_again(turn, min(now + pause, turn.due + _SHORTEST_PAUSE_SECONDS))

    def _change(self, turn: Turn, key: tuple[int, float]) -> None:
        turn.key = key
        self._on_change(turn)

    def _look_again(self, turn: Turn, at: float) -> None:
        self._number += 1
        heappush(self._to_look_at, (at, self._number, turn))
