"""Where log lines leave the process: never raising, and for a service never waiting.

Inputs: finished lines. Output: bytes on a file descriptor, written by a thread of its own. A log
whose reader went away, or stands still, or whose disk is full, costs lines and never an answer:
lines past the bound, and those that cannot be written, are dropped and counted, and the count goes
out before the next line that gets through. Neighbour: `elma.output` sends all logs here.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

LINE_BOUND = 10_000
CLOSING_SECONDS = 1.0
_PAUSE_SECONDS = 0.05


class LineWriter:
    """Takes lines from any thread; `put` returns at once and raises nothing.

    `describe_dropped` makes the line that tells how many lines were dropped.
    """

    def __init__(
        self,
        descriptor: int,
        describe_dropped: Callable[[int], str],
        *,
        bound: int = LINE_BOUND,
    ) -> None:
        self._descriptor, self._describe_dropped, self._bound = descriptor, describe_dropped, bound
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._is_writing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, line: str) -> None:
        """Hand over a line without its end; dropped and counted when too many wait."""
        with suppress(Exception), self._changed:
            if len(self._lines) >= self._bound:
                self._dropped += 1
                return
            self._lines.append(line)
            self._changed.notify_all()
            if self._thread is None:
                # A daemon: one that hangs in a write must not keep the process.
                thread = threading.Thread(target=self._write_all, name="elma-log", daemon=True)
                thread.start()
                self._thread = thread
                atexit.register(self.flush)

    def flush(self, wait_seconds: float = CLOSING_SECONDS) -> bool:
        """Whether every line is out, or is so within `wait_seconds`."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not (self._lines or self._is_writing), wait_seconds
            )

    def _write_all(self) -> None:
        """The writing thread."""
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                line = self._lines.popleft()
                dropped, self._dropped = self._dropped, 0
                self._is_writing = True
            try:
                if dropped:
                    line = f"{self._describe_dropped(dropped)}\n{line}"
                _write(self._descriptor, f"{line}\n".encode(errors="replace"))
            except Exception:
                with self._changed:
                    self._dropped += dropped + 1


class LineLogger:
    """What structlog writes with: every level hands its line to `put`."""

    def __init__(self, put: Callable[[str], None]) -> None:
        self._put = put

    def msg(self, message: str) -> None:
        """Write one line."""
        self._put(message)

    log = debug = info = warn = warning = error = critical = fatal = failure = exception = msg


class LineHandler(logging.Handler):
    """The log records of libraries, on the same way."""

    def __init__(self, put: Callable[[str], None]) -> None:
        super().__init__()
        self._put = put

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; one that cannot be formatted is left out."""
        with suppress(Exception):
            self._put(self.format(record))


def put_directly(stream: TextIO) -> Callable[[str], None]:
    """The way of a short command: each line at once, and none where that fails."""

    def put(line: str) -> None:
        with suppress(Exception):
            stream.write(f"{line}\n")
            stream.flush()

    return put


def make_put(
    stream: TextIO, *, in_background: bool, describe_dropped: Callable[[int], str]
) -> Callable[[str], None]:
    """How lines get to `stream`: by a thread where it has a descriptor, else directly."""
    if in_background:
        with suppress(Exception):
            return LineWriter(stream.fileno(), describe_dropped).put
    return put_directly(stream)


def _write(descriptor: int, content: bytes) -> None:
    """Write all of it, waiting for a descriptor that is full. Raises OSError."""
    left: Any = memoryview(content)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            time.sleep(_PAUSE_SECONDS)
