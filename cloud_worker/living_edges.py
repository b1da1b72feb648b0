"""Which releases the living edges use, or are about to: what a worker must not free.

Inputs: the retained `ModelState` messages of all edges. Output: the digests that they name.
Neighbours: `release_keeper` listens to the topic and asks.

An edge lives for `LIFE_SECONDS` after its last word, as long as the broker keeps that. Whoever can
publish under an edge's name can keep a release from being freed, no more: only releases that a
publisher has signed are ever in memory, and only so many.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from protocol.release_messages import ModelState

LIFE_SECONDS = 7 * 24 * 3_600.0
MAX_EDGES = 200_000
"""Of more, those that have been silent for longest are forgotten."""


@dataclass(frozen=True)
class _Word:
    releases: frozenset[str]
    until: float


class LivingEdges:
    """Edge -> what it named last. Thread-safe; `wall_clock` gives unix seconds."""

    def __init__(self, wall_clock: Callable[[], float], bound: int = MAX_EDGES) -> None:
        self._wall_clock, self._bound = wall_clock, bound
        self._words: dict[str, _Word] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return len(self._words)

    def note(self, edge: str, state: ModelState | None) -> None:
        """What an edge says now; None when its message was cleared.

        A clock that runs ahead counts as ours: nobody lives longer for it.
        """
        with self._lock:
            self._words.pop(edge, None)
            if state is None:
                return
            named = frozenset({state.release, state.target} - {None})
            until = min(state.updated, self._wall_clock()) + LIFE_SECONDS
            self._words[edge] = _Word(frozenset(one for one in named if one), until)
            if len(self._words) > self._bound:
                del self._words[next(iter(self._words))]

    def named(self) -> frozenset[str]:
        """Every release that a living edge names; forgets the others' words."""
        now = self._wall_clock()
        with self._lock:
            self._words = {edge: word for edge, word in self._words.items() if word.until > now}
            return frozenset().union(*{word.releases for word in self._words.values()})
