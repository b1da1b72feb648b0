"""Child processes of the demonstration: started through the command line, watched, always stopped.

Inputs: arguments of `elma`, a log file. Outputs: a running child, or `CommandError`. Neighbours:
`scenario` starts the broker, the worker and the edge with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from elma.output import CommandError

LOG_LINES_SHOWN = 25


class Child:
    """One `elma ...` process in a session of its own: Ctrl-C reaches us, and we stop the child."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        log_file: Path,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Start it; `log_file` takes its stdout and stderr; `variables` join its environment."""
        self.name = name
        self._log_file = log_file
        with log_file.open("wb") as log:
            # Our own program with arguments of our own making, and no shell.
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "elma", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_environment() | dict(variables or {}),
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.poll() is None

    def wait_until(self, is_ready: Callable[[], bool], *, wait_seconds: float) -> None:
        """Return when `is_ready()` holds; raises CommandError when it ends or is not in time."""
        end = time.monotonic() + wait_seconds
        while not is_ready():
            if not self.is_running:
                raise CommandError(
                    f"the {self.name} ended with status {self._process.returncode} "
                    "before it was ready; the end of its log is above"
                )
            if time.monotonic() > end:
                raise CommandError(
                    f"the {self.name} was not ready after {wait_seconds:.0f} seconds; "
                    "the end of its log is above"
                )
            time.sleep(0.05)

    def stop(self, *, wait_seconds: float = 15.0) -> int:
        """SIGTERM, after `wait_seconds` SIGKILL; returns the exit status. Safe to repeat.

        What the child itself has started (the broker's mosquitto) ends with it.
        """
        if self.is_running:
            self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_seconds)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait(wait_seconds)

    def log_tail(self) -> str:
        """The last lines of its log, each behind the child's name."""
        text = self._log_file.read_text(encoding="utf-8", errors="replace")
        lines = text.splitlines()[-LOG_LINES_SHOWN:] or ["(it logged nothing)"]
        return "\n".join(f"  {self.name} | {line}" for line in lines)


@contextmanager
def signals_raise() -> Iterator[None]:
    """Within it SIGTERM raises KeyboardInterrupt as SIGINT does, so that clean-up always runs."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment() -> dict[str, str]:
    """Ours without ELMA's own settings: those of the demonstration are in its files."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ELMA_")}
