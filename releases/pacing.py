"""When a download may ask for its next bytes: at most so many a second, and not in quiet hours.

In: the settings, a monotonic and a wall clock. Out: how long to wait. Neighbours: `fetching` asks
before every chunk. For one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from releases.settings import DAY_MINUTES, quiet_minutes

LONGEST_WAIT_SECONDS = 60.0
"""After that it is asked again: somebody may have set the wall clock."""


class Pacer:
    """Bytes per second (None: no bound) and quiet hours ("22:00-06:00" local time, None: none).

    A chunk that was asked for is booked at once, so that the mean over any stretch of asking stays
    within the bound, whatever the link could do.
    """

    def __init__(
        self,
        max_bytes_per_second: int | None = None,
        quiet_hours: str | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._rate = max_bytes_per_second
        self._quiet = None if quiet_hours is None else quiet_minutes(quiet_hours)
        self._clock, self._wall_clock = clock, wall_clock
        self._free_at = clock()

    def wait_seconds(self) -> float:
        """How long until the next chunk may be asked for; 0 for now."""
        quiet = self.quiet_seconds()
        return quiet if quiet > 0 else max(0.0, self._free_at - self._clock())

    def spend(self, asked_bytes: int) -> None:
        """Book what was asked for."""
        if self._rate is not None:
            self._free_at = max(self._clock(), self._free_at) + asked_bytes / self._rate

    def quiet_seconds(self) -> float:
        """How long it stays quiet, at most `LONGEST_WAIT_SECONDS`; 0 outside quiet hours."""
        if self._quiet is None:
            return 0.0
        local = time.localtime(self._wall_clock())
        minute = 60 * local.tm_hour + local.tm_min
        first, end = self._quiet
        if not (minute - first) % DAY_MINUTES < (end - first) % DAY_MINUTES:
            return 0.0
        left = 60.0 * ((end - minute) % DAY_MINUTES) - local.tm_sec
        return min(max(left, 1.0), LONGEST_WAIT_SECONDS)
