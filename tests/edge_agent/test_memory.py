"""Memory that is given back: after work, not during it, and never instead of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edge_agent import agent as agent_module
from reader.memory import give_back, keep_small, resident_bytes
from tests.edge_agent.conftest import StartEdge, wait_until

KNOWS_GLIBC = sys.platform == "linux" and keep_small()


@pytest.mark.skipif(not KNOWS_GLIBC, reason="this C library has no mallopt")
def test_what_was_freed_goes_back_to_the_system() -> None:
    source = (
        "from reader.memory import give_back, keep_small, resident_bytes\n"
        "assert keep_small()\n"
        # Small pieces, so that they lie in the heap; the last one keeps its end in use.
        "pieces = [bytes(1000) for _ in range(100_000)]\n"
        "last = bytes(1000)\n"
        "del pieces\n"
        "before = resident_bytes()\n"
        "assert give_back()\n"
        "assert before - resident_bytes() > 50e6, (before, resident_bytes())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_system_without_these_calls_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reader.memory._c_library", object)
    assert not keep_small()
    assert not give_back()


def test_resident_memory_is_that_of_this_process() -> None:
    resident = resident_bytes()
    assert resident is None or 5e6 < resident < 100e9


def test_an_agent_gives_back_once_after_its_questions(
    start_edge: StartEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    monkeypatch.setattr(agent_module, "give_back", lambda: given.append(1))
    monkeypatch.setattr("edge_agent.housekeeping.INTERVAL_SECONDS", 0.02)
    edge = start_edge()
    wait_until(lambda: edge.get("/readyz").status_code == 200)
    edge.ask()
    wait_until(lambda: edge.agent._pieces_rested == edge.agent._inference.pieces_run)
    assert given
    count = len(given)
    for _ in range(3):
        edge.agent._rest()  # nothing was asked in between
    assert len(given) == count
