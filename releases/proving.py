"""Proves a release on this machine before it is taken: its canaries, in a process of their own.

Input: a release's folder. Output: a `CheckReport`, or the reason why the release is not taken.
Neighbours: the edge's `release_life` and the worker's `release_keeper` call `check_in_child`;
`reader.canaries` asks the questions.

    check_in_child -> python -m releases.proving FOLDER ... -> one line of JSON

A release that hangs the engine, crashes it or takes all memory is one failed child: it has a time
limit, which it also sets itself in case that its parent is gone, may not take more memory than is
free, goes first when the system runs out of it, and gives way to questions. It computes on one
thread: several that give way wait for each other at every product.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from reader.canaries import load_canaries, run_canaries
from reader.errors import CanaryError, ReaderError
from reader.memory import free_bytes, keep_small
from reader.model import Reader
from releases.errors import (
    CanariesFailed,
    CannotLoad,
    FetchInterrupted,
    ProofStarved,
    ProofTimedOut,
)

CHECK_SECONDS = 600.0
"""Sixteen canaries take a small device half a minute; a busy machine ten times that."""
LEAST_MEMORY_BYTES = 1024**3
MAX_REPORT_BYTES = 16 * 1024
NICENESS = 10
POLL_SECONDS = 0.1
OOM_FILE = Path("/proc/self/oom_score_adj")
_PARENT_DEATH_SIGNAL = 1


@dataclass(frozen=True)
class CheckReport:
    """How a release did: `failure` is "" when it passed; `reason_code` says what kind it is.

    `peak_bytes` is the most memory that the child had in use.
    """

    canaries: int
    failed: int
    seconds: float
    peak_bytes: int = 0
    failure: str = ""
    reason_code: str = ""


@dataclass(frozen=True)
class Computing:
    """What a release is computed with on this machine; as in the settings."""

    engine: str = "auto"
    precision: str = "auto"


def check_in_child(
    folder: Path,
    computing: Computing,
    timeout_seconds: float = CHECK_SECONDS,
    is_stopping: Callable[[], bool] = lambda: False,
) -> CheckReport:
    """Run the canaries of a release's folder in a process of their own.

    Raises CanariesFailed or CannotLoad; ProofTimedOut or ProofStarved where this machine could not
    tell now; FetchInterrupted once `is_stopping` says so.
    """
    begin = time.monotonic()
    try:
        child = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            child_command(folder, computing, timeout_seconds),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        raise ProofStarved(f"its canaries could not be run: {error}") from error
    with child:
        try:
            output = _await(child, timeout_seconds, is_stopping)
        finally:
            child.kill()
    report = _read_or_refuse(output, child.returncode)
    return replace(report, seconds=time.monotonic() - begin)


def child_command(folder: Path, computing: Computing, timeout_seconds: float) -> list[str]:
    """What runs the check in a process of its own."""
    return [
        *(sys.executable, "-P", "-m", "releases.proving"),  # -P: nothing of the present folder
        *(str(folder), computing.engine, computing.precision),
        str(timeout_seconds),
    ]


def check_here(folder: Path, computing: Computing) -> CheckReport:
    """The same in this process; raises nothing for a release that fails."""
    begin = time.monotonic()
    try:
        canaries = load_canaries(folder)
        reader = Reader.load(
            folder,
            engine=computing.engine,
            precision=computing.precision,
            threads=1,
        )
        report = run_canaries(reader, canaries)
    except CanaryError as error:
        return _failed(begin, str(error), CanariesFailed.reason_code)
    except ReaderError as error:
        return _failed(begin, str(error), CannotLoad.reason_code)
    except MemoryError as error:
        return _failed(begin, str(error) or "no memory", ProofStarved.reason_code)
    return CheckReport(
        len(canaries),
        len(report.failed),
        time.monotonic() - begin,
        _peak(),
        "" if report.has_passed else report.describe(),
        "" if report.has_passed else CanariesFailed.reason_code,
    )


def _failed(begin: float, failure: str, reason_code: str) -> CheckReport:
    return CheckReport(0, 0, time.monotonic() - begin, _peak(), failure, reason_code)


def _read_or_refuse(output: bytes, status: int) -> CheckReport:
    """The report of a child that found the release good. Raises as `check_in_child`."""
    report = _read_report(output)
    if status == -signal.SIGALRM:
        raise ProofTimedOut("the check of its canaries was ended by its own alarm")
    if status == -signal.SIGKILL:
        raise ProofStarved(
            "the check of its canaries was ended by SIGKILL: the system ran out of memory"
        )
    if report is None:
        raise CannotLoad(f"the check of its canaries {_ending(status)}")
    if report.reason_code == CanariesFailed.reason_code:
        raise CanariesFailed(report.failure)
    if report.reason_code == ProofStarved.reason_code:
        raise ProofStarved(f"there is no memory for its canaries: {report.failure}")
    if report.failure:
        raise CannotLoad(report.failure)
    return report


def _await(
    child: subprocess.Popen[bytes], timeout_seconds: float, is_stopping: Callable[[], bool]
) -> bytes:
    """What the child wrote until it ended."""
    give_up_at = time.monotonic() + timeout_seconds
    while True:
        try:
            return child.communicate(timeout=POLL_SECONDS)[0]
        except subprocess.TimeoutExpired as error:
            if is_stopping():
                raise FetchInterrupted("the process stops; the check begins anew later") from error
            if time.monotonic() >= give_up_at:
                raise ProofTimedOut(
                    f"it did not answer its canaries within {timeout_seconds:g} seconds: the "
                    "machine is too busy, or the release hangs"
                ) from error


def _read_report(output: bytes) -> CheckReport | None:
    """What the child wrote; None when it did not come to an end."""
    with suppress(ValueError, TypeError):
        return CheckReport(**json.loads(output[:MAX_REPORT_BYTES]))
    return None


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _confine(timeout_seconds: float) -> None:
    """In the child: bounds that hold even when the agent is killed meanwhile."""
    os.nice(NICENESS)
    signal.setitimer(signal.ITIMER_REAL, timeout_seconds)  # its default is the end of the process
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    with suppress(OSError):
        OOM_FILE.write_text("1000", encoding="ascii")
    available = free_bytes()
    if available is not None:
        with suppress(OSError, ValueError):
            limit = max(available, LEAST_MEMORY_BYTES)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def main(arguments: list[str]) -> None:
    """`FOLDER ENGINE PRECISION SECONDS`: check, and write the report to stdout."""
    folder, engine, precision, seconds = arguments
    _confine(float(seconds))
    keep_small()
    report = check_here(Path(folder), Computing(engine, precision))
    sys.stdout.write(json.dumps(asdict(report)))


if __name__ == "__main__":
    main(sys.argv[1:])
