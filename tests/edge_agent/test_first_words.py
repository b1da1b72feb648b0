"""A device whose engine cannot compute says so and ends; it is never ready, and loses nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_agent.agent import EdgeAgent
from edge_agent.errors import CannotCompute
from edge_agent.outbox import Outbox
from edge_agent.questions import Question
from edge_agent.settings import EdgeSettings
from reader.engines.onnx_engine import OnnxEngine
from reader.engines.torch_engine import TorchEngine
from reader.model import Reader
from tests.edge_agent.conftest import PASSAGE, QUESTION, edge_settings, wait_until

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_THE_RIGHT = (
    "from reader.engines.torch_engine import TorchEngine\n"
    "def embed(*_arguments, **_words):\n"
    "    raise RuntimeError('could not create a primitive')\n"
    "TorchEngine.embed = embed\n"
    "from elma.cli import main\n"
    "main()\n"
)
"""`elma` as systemd's MemoryDenyWriteExecute leaves it: torch loads, and fails when it computes."""


def refuse(*_arguments: object, **_words: object) -> None:
    raise RuntimeError("could not create a primitive")


def left_question(settings: EdgeSettings) -> None:
    """A question of an earlier process in the outbox."""
    now = time.time()
    outbox = Outbox(settings.outbox)
    outbox.accept(Question("left", QUESTION, PASSAGE, 1, 60.0, now))
    outbox.close()


def test_the_process_ends_with_1_and_one_line_before_it_says_ready(
    model_folder: Path, tmp_path: Path
) -> None:
    settings = edge_settings(model_folder, tmp_path, None, None)
    left_question(settings)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        done = subprocess.run(
            [
                *(sys.executable, "-c", WITHOUT_THE_RIGHT, "edge", "run", "--port", "0"),
                *("--model", str(model_folder), "--outbox", str(settings.outbox)),
                *("--engine", "torch", "--precision", "fp32"),
            ],
            cwd=ROOT,
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
            stderr=subprocess.PIPE,
            text=True,
            timeout=60.0,
            check=False,
        )
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):  # not a word, and so not READY=1
            manager.recv(1_024)
    assert done.returncode == 1, done.stderr
    assert "edge_listening" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("elma: "))
    assert "engine torch in fp32 cannot compute" in line
    assert "RuntimeError at <string>:3" in line
    assert 'engine = "onnx"' in line
    assert "elma doctor" in line
    assert PASSAGE not in done.stderr
    outbox = Outbox(settings.outbox)
    assert outbox.pending_count == 1
    outbox.close()


def test_what_waits_in_the_outbox_is_answered_by_the_next_start_that_computes(
    model_folder: Path, tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = edge_settings(model_folder, tmp_path, None, None)
    left_question(settings)
    with monkeypatch.context() as patched:
        for engine in (TorchEngine, OnnxEngine):
            patched.setattr(engine, "embed", refuse)
        agent = EdgeAgent(settings, reader)
        agent.start()
        with pytest.raises(CannotCompute):
            agent.wait_begun()
        assert not agent.is_ready
        assert not agent.is_sound
        agent.stop()
        assert agent.pending_count == 1
    agent = EdgeAgent(settings, reader)
    agent.start()
    agent.wait_begun()
    wait_until(lambda: agent.pending_count == 0)
    entry, _ = agent.find("left")
    agent.stop()
    assert entry.outcome is not None
    assert hasattr(entry.outcome, "answer")


def test_a_device_without_weights_has_nothing_to_wait_for(
    model_folder: Path, tmp_path: Path
) -> None:
    agent = EdgeAgent(edge_settings(model_folder, tmp_path, None, None), None)
    agent.start()
    agent.wait_begun()
    assert not agent.is_ready
    agent.stop()
