"""A release is proved in a process of its own: whatever happens there, the process goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from elma.cli import app
from reader.canaries import CANARIES_FILE
from reader.model import Reader
from releases import proving as check_module
from releases.errors import (
    CanariesFailed,
    CannotLoad,
    FetchInterrupted,
    ProofStarved,
    ProofTimedOut,
    ReleaseRejected,
)
from releases.proving import CheckReport, Computing, check_here, check_in_child
from tests.edge_agent.press import canaries_of
from tests.tiny import make_tiny_model

COMPUTING = Computing()
MORE_THAN_ANY_MACHINE = 1 << 50


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A folder as a device has it before it takes the release."""
    folder = make_tiny_model(tmp_path / "release")
    (folder / CANARIES_FILE).write_bytes(canaries_of(Reader.load(folder)))
    return folder


def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """Put a shell script in the place of the child."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))


def test_a_sound_release_passes_in_a_child_with_what_it_took(release: Path) -> None:
    report = check_in_child(release, COMPUTING)
    assert (report.canaries, report.failed, report.failure) == (3, 0, "")
    assert report.peak_bytes > 10_000_000


@pytest.mark.parametrize("how", ["other answers", "no canaries", "malformed canaries"])
def test_failed_or_missing_canaries_are_told_apart_from_what_cannot_be_loaded(
    how: str, release: Path, tmp_path: Path
) -> None:
    canaries = release / CANARIES_FILE
    if how == "other answers":
        other = Reader.load(make_tiny_model(tmp_path / "other", seed=9))
        canaries.write_bytes(canaries_of(other))
    elif how == "no canaries":
        canaries.unlink()
    else:
        canaries.write_bytes(b"{}")
    report = check_here(release, COMPUTING)
    assert report.reason_code == "canaries"
    assert report.failure
    (release / CANARIES_FILE).write_bytes(b"[]")
    with pytest.raises(CanariesFailed):
        check_in_child(release, COMPUTING)


def test_weights_that_do_not_fit_are_no_crash(release: Path) -> None:
    weights = release / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    report = check_here(release, COMPUTING)
    assert report.reason_code == "cannot_load"
    with pytest.raises(CannotLoad):
        check_in_child(release, COMPUTING)


def test_a_child_that_speaks_nonsense_refuses_the_release(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, tmp_path, "exit 3")
    with pytest.raises(CannotLoad, match="ended with status 3"):
        check_in_child(release, COMPUTING)
    play(monkeypatch, tmp_path, 'echo "all is well"')
    with pytest.raises(CannotLoad, match="ended with status 0"):
        check_in_child(release, COMPUTING)
    play(monkeypatch, tmp_path, "kill -SEGV $$")
    with pytest.raises(CannotLoad, match="was ended by SIGSEGV"):
        check_in_child(release, COMPUTING)


def test_want_of_memory_says_nothing_against_the_release(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, tmp_path, "kill -9 $$")
    with pytest.raises(ProofStarved, match="SIGKILL"):
        check_in_child(release, COMPUTING)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(ProofStarved, match="could not be run"):
        check_in_child(release, COMPUTING)
    starved = '{"canaries": 0, "failed": 0, "seconds": 1.0, "failure": "-", "reason_code": "%s"}'
    play(monkeypatch, tmp_path, f"echo '{starved % ProofStarved.reason_code}'")
    with pytest.raises(ProofStarved, match="no memory"):
        check_in_child(release, COMPUTING)
    assert not issubclass(ProofStarved, ReleaseRejected)


@pytest.mark.parametrize("where", ["Reader.load", "Reader.split"])
def test_a_check_that_finds_no_memory_says_so(
    release: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starves(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(f"reader.model.{where}", starves)
    assert check_here(release, COMPUTING).reason_code == ProofStarved.reason_code


@pytest.mark.parametrize("where", ["TorchEngine.__init__", "TorchEngine.run"])
def test_torchs_own_word_for_no_memory_is_no_verdict_on_the_release(
    release: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocates(*_: object, **__: object) -> None:
        torch.empty(MORE_THAN_ANY_MACHINE)  # refused by the system: a RuntimeError of torch's

    monkeypatch.setattr(f"reader.engines.torch_engine.{where}", allocates)
    monkeypatch.setattr("reader.engines.torch_engine.TorchEngine.run_mixed", allocates)
    report = check_here(release, Computing(engine="torch"))
    assert report.reason_code == ProofStarved.reason_code
    assert "memory" in report.failure


def test_any_other_word_of_torch_is_one(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object, **__: object) -> None:
        torch.empty(2, 3) @ torch.empty(2, 3)

    monkeypatch.setattr("reader.engines.torch_engine.TorchEngine.run", breaks)
    monkeypatch.setattr("reader.engines.torch_engine.TorchEngine.run_mixed", breaks)
    report = check_here(release, Computing(engine="torch"))
    assert report.reason_code == CanariesFailed.reason_code


def test_what_lies_in_the_present_folder_is_not_run(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    assert check_in_child(release, COMPUTING).canaries == 3


def test_a_child_that_hangs_is_ended_by_its_time_or_by_the_agent(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, tmp_path, "sleep 30")
    with pytest.raises(ProofTimedOut, match=r"within 0\.2 seconds"):
        check_in_child(release, COMPUTING, timeout_seconds=0.2)
    with pytest.raises(FetchInterrupted):
        check_in_child(release, COMPUTING, is_stopping=lambda: True)


def test_the_child_ends_itself_when_nobody_is_left_to_end_it(release: Path) -> None:
    """Its own alarm, which needs no interpreter to run a handler."""
    with pytest.raises(ProofTimedOut, match="alarm"):
        check_module._read_or_refuse(*_run_child(release, seconds=0.05))


def test_the_child_may_not_take_more_memory_than_is_free(
    release: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limits: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(check_module.os, "nice", lambda _niceness: 0)
    monkeypatch.setattr(check_module.signal, "setitimer", lambda *_: (0.0, 0.0))
    monkeypatch.setattr(check_module.resource, "setrlimit", lambda *a: limits.append(a))
    monkeypatch.setattr(check_module, "free_bytes", lambda: 3 * 1024**3)
    monkeypatch.setattr(check_module.ctypes, "CDLL", _NoLibrary)
    monkeypatch.setattr(check_module, "OOM_FILE", tmp_path / "oom_score_adj")
    check_module.main([str(release), "auto", "auto", "60"])
    assert (tmp_path / "oom_score_adj").read_text(encoding="ascii") == "1000"
    assert limits == [(check_module.resource.RLIMIT_DATA, (3 * 1024**3, 3 * 1024**3))]
    assert CheckReport(**json.loads(capsys.readouterr().out)).canaries == 3


def test_the_command_says_what_an_agent_would_do(release: Path) -> None:
    told = CliRunner().invoke(app, ["edge", "check-release", str(release), "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.output)["canaries"] == 3
    (release / CANARIES_FILE).unlink()
    told = CliRunner().invoke(app, ["edge", "check-release", str(release)])
    assert told.exit_code == 1


class _NoLibrary:
    def __init__(self, _name: object) -> None:
        raise OSError


def _run_child(release: Path, *, seconds: float) -> tuple[bytes, int]:
    command = check_module.child_command(release, COMPUTING, seconds)
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60.0, check=False)
    return done.stdout, done.returncode
