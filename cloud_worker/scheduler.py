"""Which windows run next, together: batches across requests and across depths.

Inputs: windows that wait for their next layer, the time. Output: one batch at a time, of windows
whose next layers share their parameters; each then comes back one layer further on, or is done, and
new windows join at the layer they need. Neighbours: `request_queue` owns the scheduler, `resume`
runs the batches, `pace` says how long a step takes, `turns` keeps the order. No thread, no clock,
no network, and no look into the states.

Who leads the next batch, in this sequence:

1. The oldest request, once it is here `max_wait_seconds`, with `AGED_SHARE` of all tokens: nothing
   waits for ever behind a stream of others, and no stream waits long behind one large request.
2. The first in the order of `turns`: urgent ones, then by priority, then by when an answer is fair
   to expect, which is later the more there is to compute.
3. Unless its batch would leave the machine idle (`ENOUGH_EFFICIENCY`): then, among the heads of all
   lanes that are of its priority and not of far larger requests, the one with the fullest batch.

A lane is the waiting windows that can share a batch: same release, same parameter group. The
leader's batch is filled from its lane in that order, up to `step_seconds` at the pace measured so
far. Windows of far larger requests may only make it longer by a part of what it takes anyway, so
that a long passage cannot slow down the short questions that it keeps company.

Costs: a choice looks at a bounded number of windows of each lane, and a change is a bisection of a
lane; nothing looks at everything that waits.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from cloud_worker.pace import Pace
from cloud_worker.turns import Turn, Turns

Request = TypeVar("Request")

FAR_LARGER = 8.0
"""A request with so many times the work of another is far larger."""
LONGER_SHARE = 0.25
"""How much longer a step may become by windows of far larger requests."""
ENOUGH_EFFICIENCY = 0.8
AGED_SHARE = 0.1
LOOK_AHEAD = 8
"""How many windows that do not fit a choice passes over before it ends."""


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of a batch, and when a request goes first.

    A step is bounded by `step_seconds` at the measured pace, by `max_tokens` and by `max_windows`;
    a window that is larger by itself runs alone. `mixes_depths = False` keeps windows of different
    depths apart even where they share parameters; it is there to measure what mixing them gains.
    """

    max_windows: int = 256
    max_tokens: int = 32_768
    step_seconds: float = 0.02
    urgent_seconds: float = 1.0
    max_wait_seconds: float = 10.0
    mixes_depths: bool = True


@dataclass(frozen=True, eq=False)
class WaitingWindow(Generic[Request]):
    """A window after `layer` of `last_layer`, waiting for the next; `group` has its parameters.

    `due` and `arrived` are seconds of the owner's monotonic clock, `rank` is 0 for the first
    priority. `state` is the owner's business.
    """

    request: Request
    index: int
    release: str
    layer: int
    last_layer: int
    group: int
    rank: int
    due: float
    arrived: float
    length_tokens: int
    question_tokens: int
    state: Any = field(repr=False)

    @property
    def work(self) -> int:
        """Tokens times layers that are left."""
        return self.length_tokens * (self.last_layer - self.layer)

    def moved_on(self, state: Any, group: int) -> WaitingWindow[Request]:
        """The same window one layer later; `group` is that of its new next layer."""
        return replace(self, layer=self.layer + 1, group=group, state=state)


Lane = tuple[str, int, int]


@dataclass(frozen=True, order=True)
class _Place(Generic[Request]):
    """A waiting window in its lane, which is sorted by these."""

    key: tuple[int, float]
    number: int
    window: WaitingWindow[Request] = field(compare=False)
    turn: Turn = field(compare=False)


class Scheduler(Generic[Request]):
    """The waiting windows, and the choice among them. Not for two threads at once.

    `pace_of` gives the pace of a release.
    """

    def __init__(self, limits: BatchLimits, pace_of: Callable[[str], Pace]) -> None:
        self._limits, self._pace_of = limits, pace_of
        self._lanes: dict[Lane, list[_Place[Request]]] = {}
        self._places: dict[Turn, dict[int, _Place[Request]]] = {}
        self._turns: Turns[Request] = Turns(limits.urgent_seconds, self._sort_anew)
        self._waiting = self._number = 0
        self._owed_to_the_oldest = 0.0

    def __len__(self) -> int:
        return self._waiting

    def add(self, windows: Iterable[WaitingWindow[Request]]) -> None:
        """Let windows wait for their next layer; those of a new request come all at once."""
        added = list(windows)
        news: dict[Request, list[WaitingWindow[Request]]] = {}
        for window in added:
            if self._turns.find(window.request) is None:
                news.setdefault(window.request, []).append(window)
        for request, own in news.items():
            work = sum(window.work for window in own)
            seconds = work * self._pace_of(own[0].release).seconds_per_token
            first = own[0]
            self._turns.begin(request, first.rank, first.arrived, first.due, work, seconds)
        for window in added:
            turn = self._turns.find(window.request)
            if turn is not None:
                self._insert(window, turn)

    def drop(self, request: Request) -> int:
        """Forget a request with all its windows; returns how many waited."""
        turn = self._turns.end(request)
        if turn is None:
            return 0
        places = self._places.pop(turn, {})
        for place in places.values():
            self._remove_from_lane(place)
        self._waiting -= len(places)
        return len(places)

    def next_batch(self, now: float) -> list[WaitingWindow[Request]]:
        """The windows to run next, taken out; all of one release and parameter group.

        `now` is in seconds of the clock that `due` and `arrived` are in. Empty when nothing
        waits.
        """
        if not self._waiting:
            return []
        self._turns.look_at_deadlines(now)
        oldest = self._turns.oldest(now - self._limits.max_wait_seconds)
        batch = self._batch_of_the_oldest(oldest) if oldest else None
        if batch is None:
            batch = self._batch_in_order()
        if oldest:
            self._keep_account(oldest, batch)
        for place in batch:
            self._take(place)
        return [place.window for place in batch]

    def _batch_of_the_oldest(self, oldest: Turn) -> list[_Place[Request]] | None:
        """Rule 1: its batch, when it is owed so many tokens and has a window that waits."""
        places = self._places.get(oldest)
        if not places:
            return None
        place = places[min(places)]
        if place.window.length_tokens > self._owed_to_the_oldest:
            return None
        return self._batch_around(place)

    def _keep_account(self, oldest: Turn, batch: list[_Place[Request]]) -> None:
        tokens = sum(place.window.length_tokens for place in batch)
        own = sum(place.window.length_tokens for place in batch if place.turn is oldest)
        owed = self._owed_to_the_oldest + AGED_SHARE * tokens - own
        self._owed_to_the_oldest = min(max(owed, 0.0), float(self._limits.max_tokens))

    def _batch_in_order(self) -> list[_Place[Request]]:
        """Rules 2 and 3."""
        heads = [lane[0] for lane in self._lanes.values()]
        first = min(heads)
        batch = self._batch_around(first)
        best, fullest = batch, self._efficiency(batch)
        if fullest >= ENOUGH_EFFICIENCY:
            return batch
        for head in heads:
            if (
                head is not first
                and head.key[0] == first.key[0]
                and not _is_far_larger(head.turn, first.turn)
            ):
                other = self._batch_around(head)
                efficiency = self._efficiency(other)
                if efficiency > fullest:
                    best, fullest = other, efficiency
        return best

    def _efficiency(self, batch: list[_Place[Request]]) -> float:
        tokens = sum(place.window.length_tokens for place in batch)
        return self._pace_of(batch[0].window.release).efficiency(tokens)

    def _batch_around(self, leader: _Place[Request]) -> list[_Place[Request]]:
        """`leader` and what may run with it, in the lane's order, within the limits."""
        limits, pace = self._limits, self._pace_of(leader.window.release)
        budget = min(limits.max_tokens, pace.tokens_within(limits.step_seconds))
        batch, tokens = [leader], leader.window.length_tokens
        larger: list[_Place[Request]] = []
        passed_over = 0
        for place in self._lanes[self._lane_of(leader.window)]:
            if len(batch) == limits.max_windows or passed_over == LOOK_AHEAD:
                break
            if place is leader:
                continue
            if _is_far_larger(place.turn, leader.turn):
                larger.append(place)
                if len(larger) == limits.max_windows:
                    break
            elif tokens + place.window.length_tokens <= budget:
                batch.append(place)
                tokens += place.window.length_tokens
            else:
                passed_over += 1
        budget = min(budget, tokens + int(LONGER_SHARE * (tokens + pace.overhead_tokens)))
        for place in larger[: limits.max_windows - len(batch)]:
            if tokens + place.window.length_tokens <= budget:
                batch.append(place)
                tokens += place.window.length_tokens
        return batch

    def _lane_of(self, window: WaitingWindow[Request]) -> Lane:
        depth = 0 if self._limits.mixes_depths else window.layer
        return window.release, window.group, depth

    def _insert(self, window: WaitingWindow[Request], turn: Turn) -> None:
        self._number += 1
        place = _Place(turn.key, self._number, window, turn)
        insort(self._lanes.setdefault(self._lane_of(window), []), place)
        self._places.setdefault(turn, {})[place.number] = place
        self._waiting += 1

    def _take(self, place: _Place[Request]) -> None:
        """Out of the waiting, into a step."""
        self._remove_from_lane(place)
        own = self._places[place.turn]
        del own[place.number]
        if not own:
            del self._places[place.turn]
        self._waiting -= 1
        if self._turns.note_work(place.turn, place.window.length_tokens):
            self._turns.end(place.window.request)

    def _remove_from_lane(self, place: _Place[Request]) -> None:
        name = self._lane_of(place.window)
        lane = self._lanes[name]
        del lane[bisect_left(lane, place)]
        if not lane:
            del self._lanes[name]

    def _sort_anew(self, turn: Turn) -> None:
        """The key of a request has changed: its windows move within their lanes."""
        for number, place in list(self._places.get(turn, {}).items()):
            self._remove_from_lane(place)
            moved = replace(place, key=turn.key)
            insort(self._lanes.setdefault(self._lane_of(place.window), []), moved)
            self._places[turn][number] = moved


def _is_far_larger(one: Turn, other: Turn) -> bool:
    return one.work > FAR_LARGER * other.work
