"""When what failed is tried again: longer and longer waits, each drawn at random around its mean.

In: failures of one target after another. Out: how long to wait. Neighbour: `follower` asks.
For one thread, except for `forget_wait`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from releases.errors import NotEnoughSpace, ProofStarved

RETRY_SECONDS = (5.0, 600.0)
FULL_DISK_RETRY_SECONDS = 60.0
"""The longest wait for space: somebody is making some."""
STARVED_RETRY_SECONDS = 60.0
"""The first wait for memory: the few trials that a release has must not be over in a minute."""


class Retries:
    """The waits of what is wanted now. `seconds`: first and longest; `clock` is monotonic."""

    def __init__(
        self,
        seconds: tuple[float, float],
        clock: Callable[[], float],
        generator: random.Random,
    ) -> None:
        self._seconds, self._clock, self._generator = seconds, clock, generator
        self._failures = 0
        self._at = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the wait is over, or there is none."""
        return self._clock() >= self._at

    def due_in(self) -> float:
        """Seconds until then; negative once it is over."""
        return self._at - self._clock()

    def begin(self) -> None:
        """Something else is wanted now: nothing has failed yet."""
        self._failures, self._at = 0, 0.0

    def succeeded(self) -> None:
        """The next failure is the first again."""
        self._failures = 0

    def forget_wait(self) -> None:
        """What failed for want of a connection need not wait longer. From any thread."""
        self._at = 0.0

    def failed(self, error: Exception) -> None:
        """Wait twice as long as the last time, less for space on the disk, more for memory."""
        first, longest = self._seconds
        if isinstance(error, NotEnoughSpace):
            longest = min(longest, FULL_DISK_RETRY_SECONDS)
        if isinstance(error, ProofStarved):
            first = min(longest, max(first, STARVED_RETRY_SECONDS))
        seconds = min(longest, first * 2 ** min(self._failures, 20))
        self._failures += 1
        self._wait(seconds * self._generator.uniform(0.5, 1.5))

    def wait_longest(self) -> None:
        """Nothing is to be expected of an early try."""
        self._wait(self._seconds[1])

    def _wait(self, seconds: float) -> None:
        self._at = self._clock() + seconds
