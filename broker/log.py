"""Logging that cannot hurt: a logger that never raises, and a limit for lines that others cause.

Inputs: events and their fields. Output: structlog lines. A thread that lives by its `except` block
must not die of the line it writes there, and nobody who sends us messages may choose how much we
write. Neighbours: every module of `broker` and `cloud_worker` that logs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

LINES_PER_SECOND = 10


class LineLimit:
    """At most `lines_per_second` in any one second; says how many were left out. Thread-safe."""

    def __init__(
        self,
        lines_per_second: int = LINES_PER_SECOND,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines_per_second, self._clock = lines_per_second, clock
        self._second_began = clock()
        self._admitted = self._left_out = 0
        self._lock = threading.Lock()

    def admit(self) -> int | None:
        """None: leave this line out. Else how many were left out since the last that was not."""
        with self._lock:
            now = self._clock()
            if now - self._second_began >= 1.0:
                self._second_began, self._admitted = now, 0
            if self._admitted >= self._lines_per_second:
                self._left_out += 1
                return None
            self._admitted += 1
            left_out, self._left_out = self._left_out, 0
            return left_out


class SafeLog:
    """structlog's logger `name`, whose failures stay its own."""

    def __init__(self, name: str) -> None:
        self._logger: Any = structlog.get_logger(name)

    def info(self, event: str, **fields: Any) -> None:
        """Tell what is normal."""
        with suppress(Exception):
            self._logger.info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Tell what someone should know."""
        with suppress(Exception):
            self._logger.warning(event, **fields)

    def limited_warning(self, limit: LineLimit, event: str, **fields: Any) -> None:
        """A warning that others can cause: within `limit`, with `left_out` where lines were."""
        left_out = limit.admit()
        if left_out is not None:
            self.warning(event, **fields, **({"left_out": left_out} if left_out else {}))

    def error(self, event: str, **fields: Any) -> None:
        """Tell what failed."""
        with suppress(Exception):
            self._logger.error(event, **fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Tell what failed, with the traceback of the exception at hand."""
        with suppress(Exception):
            self._logger.exception(event, **fields)
