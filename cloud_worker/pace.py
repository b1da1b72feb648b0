"""How fast a release is computed here: seconds of a step, told from its tokens.

In: a reader to measure at start, then every step's tokens and seconds. Out: `Pace`. Neighbours:
`releases` measures, `resume` tells each step, `scheduler` bounds batches by it.

One layer of a batch of n tokens takes about `(n + overhead_tokens) * seconds_per_token`: what a
step costs however little is in it (calls, weights that come from memory) is counted in tokens,
because that ratio belongs to the machine and the engine and stays, while the second factor moves
with what else the machine does.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from reader.model import Reader

SMALL_WINDOWS, LARGE_WINDOWS = 1, 16
WINDOW_TOKENS = 32
TIMES = 4
MOST_SECONDS = 2.0
"""A measurement that takes longer than this ends, with what it has."""
_MEMORY = 0.1
_LARGEST_CHANGE = 4.0
_LEAST_SECONDS_PER_TOKEN = 1e-9


class Pace:
    """What steps take. Told by one thread, read by any."""

    def __init__(self, seconds_per_token: float, overhead_tokens: float) -> None:
        self.seconds_per_token = max(seconds_per_token, _LEAST_SECONDS_PER_TOKEN)
        self.overhead_tokens = max(overhead_tokens, 0.0)
        self._noted_tokens = self._noted_seconds = 0.0

    def copy(self) -> Pace:
        """The same pace, to be told of other steps from now on."""
        return Pace(self.seconds_per_token, self.overhead_tokens)

    def step_seconds(self, tokens: int) -> float:
        """What one layer of so many tokens should take."""
        return (tokens + self.overhead_tokens) * self.seconds_per_token

    def tokens_within(self, seconds: float) -> int:
        """How many tokens one layer can be run on in that time; 0 when not even one."""
        return max(0, int(seconds / self.seconds_per_token - self.overhead_tokens))

    def efficiency(self, tokens: int) -> float:
        """The share of a step that its tokens are worth, 0..1: 1 for an endless batch."""
        return tokens / (tokens + self.overhead_tokens)

    def note(self, tokens: int, seconds: float, *, is_finished: bool = True) -> None:
        """A step took so long: move towards it, however far off it was by a bounded part.

        A step that is not finished, because its engine computes behind the caller's back, counts
        together with the next one that is.
        """
        self._noted_tokens += tokens + self.overhead_tokens
        self._noted_seconds += seconds
        if not is_finished:
            return
        ratio = self._noted_seconds / (self._noted_tokens * self.seconds_per_token)
        bounded = min(max(ratio, 1 / _LARGEST_CHANGE), _LARGEST_CHANGE)
        moved = self.seconds_per_token * (1 + _MEMORY * (bounded - 1))
        self.seconds_per_token = max(moved, _LEAST_SECONDS_PER_TOKEN)
        self._noted_tokens = self._noted_seconds = 0.0


def measure_pace(reader: Reader, clock: Callable[[], float] = time.perf_counter) -> Pace:
    """Run the first layer on a small and on a large batch, the fastest of some times each.

    It also warms the engine up. Exit scores are read, so that an engine that computes behind the
    caller's back has to finish.
    """
    began = clock()
    fastest: dict[int, float] = {}
    for _ in range(TIMES):
        for windows in (SMALL_WINDOWS, LARGE_WINDOWS):
            state = np.full((WINDOW_TOKENS, reader.config.hidden_size), 0.5, np.float32)
            batch = reader.engine.pack([state] * windows, [2] * windows)
            start = clock()
            after = reader.engine.run_mixed(batch, [1] * windows)
            reader.engine.exit_scores(reader.engine.select(after, [0]), 1)
            seconds = clock() - start
            fastest[windows] = min(seconds, fastest.get(windows, seconds))
        if clock() - began > MOST_SECONDS:
            break
    small, large = SMALL_WINDOWS * WINDOW_TOKENS, LARGE_WINDOWS * WINDOW_TOKENS
    slope = (fastest[LARGE_WINDOWS] - fastest[SMALL_WINDOWS]) / (large - small)
    slope = max(slope, fastest[LARGE_WINDOWS] / large / _LARGEST_CHANGE)  # noise: never nothing
    return Pace(slope, fastest[SMALL_WINDOWS] / slope - small)
