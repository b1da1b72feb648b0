"""Brings missing chunks: a few at a time, each verified before it is written, until all are here.

In: the chunks that lack, a transport. Out: chunks in a `ChunkFolder`. What is here stays, so a
fetch that ends in any way goes on with what is missing. Neighbours: `planning` says what lacks,
`transport` is the way they come, `pacing` when, `follower` decides what happens after a failure.

Nothing here goes round for ever: a chunk that does not come after several asks, with longer and
longer patience, is `ChunkMissing`; one that comes wrong again and again is `ChunkCorrupt`. Both
wait until the other chunks have come.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from broker.log import SafeLog
from releases.chunk_folder import ChunkFolder, chunk_is_right
from releases.errors import ChunkCorrupt, ChunkMissing, FetchInterrupted, TransportFailed
from releases.pacing import Pacer
from releases.transport import Arrival, ChunkKey, Transport, WantedChunk

LONG_POLL_SECONDS = 2.0
_log = SafeLog("elma.releases")


@dataclass(frozen=True)
class FetchRules:
    """`window` chunks are asked for at once. A chunk that is silent for `answer_seconds` (after the
    last thing that came) is asked for again, `max_asks` times in all, with doubled patience. One
    that comes wrong `max_wrong` times is given up, and the transport after `max_problems` problems
    in a row, or when it was not ready for `offline_seconds`."""

    window: int = 4
    answer_seconds: float = 20.0
    max_asks: int = 3
    max_wrong: int = 3
    max_problems: int = 3
    offline_seconds: float = 60.0
    poll_seconds: float = 0.2


class ChunkFetcher:
    """Fetches into `chunks`. For one thread.

    `is_busy`: questions wait for the cloud; the window is one chunk then, to leave them the link.
    `is_interrupted`: asked often; True ends the fetch with `FetchInterrupted`. `on_fetched` hears
    the bytes of every chunk that was kept.
    """

    def __init__(
        self,
        chunks: ChunkFolder,
        pacer: Pacer,
        rules: FetchRules,
        *,
        is_busy: Callable[[], bool] = lambda: False,
        is_interrupted: Callable[[], bool] = lambda: False,
        on_fetched: Callable[[int], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_fetched = on_fetched
        self._chunks, self._pacer, self._rules = chunks, pacer, rules
        self._is_busy, self._is_interrupted, self._clock = is_busy, is_interrupted, clock

    def fetch(
        self,
        wanted: Sequence[WantedChunk],
        transport: Transport,
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Bring all of `wanted`; `on_bytes` hears the length of each that was kept.

        Raises ChunkMissing, ChunkCorrupt, TransportFailed, FetchInterrupted, NotEnoughSpace or
        StoreError.
        """
        run = _Run(wanted, transport, self._rules, self._clock)
        try:
            while run.missing:
                if self._is_interrupted():
                    raise FetchInterrupted(f"{len(run.missing)} chunks are still missing")
                run.note_time()
                self._ask_more(run)
                run.check_given_up()
                arrival = transport.arrived(self._pause_seconds(run))
                if arrival is not None:
                    self._take(run, arrival, on_bytes)
        finally:
            run.forget_all()

    def _ask_more(self, run: _Run) -> None:
        """Fill the window, as far as pace, questions and the transport allow."""
        window = 1 if self._is_busy() else self._rules.window
        while run.waiting and len(run.asked) < window and self._pacer.wait_seconds() <= 0:
            if not run.ask_next():
                return
            self._pacer.spend(run.last_asked_bytes)

    def _pause_seconds(self, run: _Run) -> float:
        """How long to wait for something to come; longer where nothing may be asked for."""
        poll = self._rules.poll_seconds
        return poll if run.asked else max(poll, min(self._pacer.wait_seconds(), LONG_POLL_SECONDS))

    def _take(self, run: _Run, arrival: Arrival, on_bytes: Callable[[int], None]) -> None:
        """Keep what is right; count what is not."""
        chunk = run.missing.get(arrival.key)
        if chunk is None:
            return
        if arrival.problem:
            run.note_problem(chunk, arrival.problem)
        elif not chunk_is_right(chunk.blob, chunk.chunk, arrival.content):
            run.note_wrong(chunk)
        else:
            self._chunks.put(chunk.blob, chunk.chunk, arrival.content)
            run.note_right(chunk)
            self._on_fetched(chunk.length_bytes)
            on_bytes(chunk.length_bytes)


class _Run:
    """The book of one fetch: what is missing, waiting, asked for, given up."""

    def __init__(
        self,
        wanted: Sequence[WantedChunk],
        transport: Transport,
        rules: FetchRules,
        clock: Callable[[], float],
    ) -> None:
        self.missing: dict[ChunkKey, WantedChunk] = {one.key: one for one in wanted}
        self.waiting: deque[ChunkKey] = deque(self.missing)
        self.asked: dict[ChunkKey, float] = {}
        """Each with the time at which it was silent for too long."""
        self.last_asked_bytes = 0
        self._ever_asked: set[ChunkKey] = set()
        self._transport, self._rules, self._clock = transport, rules, clock
        self._generation = transport.generation
        self._silent: Counter[ChunkKey] = Counter()
        self._wrong: Counter[ChunkKey] = Counter()
        self._problems_in_a_row = 0
        self._ready_at = clock()

    def ask_next(self) -> bool:
        """Ask for the next chunk that waits."""
        key = self.waiting[0]
        chunk = self.missing.get(key)
        if chunk is None:  # it came late, after it had been put back
            self.waiting.popleft()
            self.last_asked_bytes = 0
            return True
        if not self._transport.ask(chunk):
            return False
        self.waiting.popleft()
        self._ever_asked.add(key)
        self.asked[key] = self._clock() + self._patience_seconds(key)
        self.last_asked_bytes = chunk.length_bytes
        return True

    def note_time(self) -> None:
        """Put back what was asked for in vain."""
        now = self._clock()
        if not self._transport.is_ready or self._transport.generation != self._generation:
            self._generation = self._transport.generation
            self.waiting.extendleft(reversed(self.asked))
            self.asked.clear()
        if self._transport.is_ready:
            self._ready_at = now
        elif now - self._ready_at >= self._rules.offline_seconds:
            raise TransportFailed("there is no connection; it goes on when there is one")
        for key in [key for key, until in self.asked.items() if now >= until]:
            self._silent[key] += 1
            self._put_back(key, given_up=self._silent[key] >= self._rules.max_asks)

    def note_right(self, chunk: WantedChunk) -> None:
        """It is here."""
        self._transport.forget(chunk)
        del self.missing[chunk.key]
        self.asked.pop(chunk.key, None)
        self._problems_in_a_row = 0
        now = self._clock()
        for key, until in self.asked.items():  # the link is alive; these stand behind in the line
            self.asked[key] = max(until, now + self._patience_seconds(key))

    def note_wrong(self, chunk: WantedChunk) -> None:
        """Something else came in its place."""
        self._wrong[chunk.key] += 1
        _log.warning("release_chunk_wrong", blob=chunk.blob.sha256, chunk=chunk.chunk)
        if chunk.key in self.asked:
            self._put_back(chunk.key, given_up=self._wrong[chunk.key] >= self._rules.max_wrong)

    def note_problem(self, chunk: WantedChunk, problem: str) -> None:
        """The transport says that it cannot bring it."""
        self._problems_in_a_row += 1
        if self._problems_in_a_row >= self._rules.max_problems:
            raise TransportFailed(f"{chunk}: {problem}")
        if chunk.key in self.asked:
            self._put_back(chunk.key, given_up=False)

    def check_given_up(self) -> None:
        """Raise once nothing but given-up chunks is left."""
        if self.waiting or self.asked or not self.missing:
            return
        key, chunk = next(iter(self.missing.items()))
        others = f" (and {len(self.missing) - 1} more)" if len(self.missing) > 1 else ""
        if self._wrong[key] >= self._rules.max_wrong:
            raise ChunkCorrupt(
                f"{chunk} came {self._wrong[key]} times with other bytes than were signed{others}: "
                "somebody changes them, or the upload was wrong; the publisher's service sends it "
                "again (elma rollout run)"
            )
        raise ChunkMissing(
            f"{chunk} is not at the broker{others}: the publisher's service brings it back "
            "(elma rollout run)"
        )

    def forget_all(self) -> None:
        """Nothing is wanted any more."""
        for key in self._ever_asked & set(self.missing):
            self._transport.forget(self.missing[key])

    def _put_back(self, key: ChunkKey, *, given_up: bool) -> None:
        """It stays wanted: on a slow link it may still come, and counts then."""
        del self.asked[key]
        if not given_up:
            self.waiting.append(key)

    def _patience_seconds(self, key: ChunkKey) -> float:
        return float(self._rules.answer_seconds * 2 ** self._silent[key])
