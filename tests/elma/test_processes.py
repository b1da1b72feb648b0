"""A child of the demonstration is watched while it starts, and is gone after it was stopped."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from elma.demonstration.processes import Child, signals_raise
from elma.output import CommandError


def test_a_child_that_ends_before_it_is_ready_is_named_with_its_status(tmp_path: Path) -> None:
    child = Child("worker", ["no-such-verb"], tmp_path / "worker.log")
    with pytest.raises(CommandError, match="worker ended with status 2 before it was ready"):
        child.wait_until(lambda: False, wait_seconds=60)
    assert "no-such-verb" in child.log_tail()
    assert child.log_tail().startswith("  worker | ")


def test_a_child_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    child = Child("edge", ["--help"], tmp_path / "edge.log")
    with pytest.raises(CommandError, match=r"edge (was not ready|ended)"):
        child.wait_until(lambda: False, wait_seconds=0.01)
    child.stop()


def test_stopping_is_safe_to_repeat_and_tells_the_status(tmp_path: Path) -> None:
    child = Child("help", ["--help"], tmp_path / "help.log")
    with suppress(CommandError):  # it ends by itself
        child.wait_until(lambda: False, wait_seconds=60)
    assert child.stop() == 0
    assert child.stop() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_become_an_interrupt_so_that_clean_up_runs(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), signals_raise():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before
