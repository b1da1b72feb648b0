"""A device as it is installed: the wheel with `[edge]` in a fresh environment, no torch anywhere.

`make test-device` runs this; `make test` does not, because it installs packages from the index.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    *("reader", "protocol", "broker", "releases", "edge_agent", "cloud_worker", "publisher"),
    *("elma", "pyproject.toml", "README.md", "LICENSE"),
)
RESIDENT_BOUND_BYTES = 200e6
QUESTIONS = [
    ("Who wrote the report?", "The report was written by Ada Miller.", "Ada Miller"),
    *(
        (asked["question"], asked["passage"], asked["expected"][0])
        for asked in json.loads((ROOT / "elma/passages/questions.json").read_text("utf-8"))
        if asked["kind"] == "easy"
    ),
]
pytestmark = [pytest.mark.device, pytest.mark.timeout(1_800)]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of a fresh environment in which only the device is installed."""
    folder = tmp_path_factory.mktemp("device")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:  # a copy: building leaves files behind
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("elma_qa-*.whl")
    venv.create(folder / "environment", with_pip=True)
    installed = folder / "environment" / "bin"
    pip(str(installed / "python"), "install", f"{wheel}[edge]")
    return installed


@pytest.fixture(scope="module")
def edge(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """A running `elma edge run` of that environment, with the shipped model."""
    folder = tmp_path_factory.mktemp("running")
    process = subprocess.Popen(
        [
            *(str(programs / "elma"), "--log-format", "json", "edge", "run"),
            *("--port", "0", "--threads", "1", "--outbox", str(folder / "outbox.sqlite3")),
        ],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        events = (json.loads(line) for line in process.stderr)
        yield Edge(process, next(e for e in events if e["event"] == "edge_listening"))
    finally:
        process.terminate()
        process.wait(60.0)


class Edge:
    """The process, and what it said when it began to listen."""

    def __init__(self, process: subprocess.Popen[str], listening: dict[str, Any]) -> None:
        self.process, self.listening = process, listening

    def ask(self, question: str, passage: str) -> dict[str, Any]:
        """The answer over HTTP."""
        response = httpx.post(
            f"{self.listening['url']}/v1/answer",
            json={"question": question, "context": passage},
            timeout=60.0,
        )
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def peak_resident_bytes(self) -> int:
        """The most memory that it ever had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024


def pip(python: str, *arguments: str) -> None:
    """Run pip; its settings (index and so on) are those of the person."""
    done = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments],
        capture_output=True,
        text=True,
        timeout=1_200,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_nothing_for_training_or_pictures_is_installed(programs: Path) -> None:
    listed = run(str(programs / "python"), "-m", "pip", "list", "--format", "json")
    names = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert {"elma-qa", "onnx", "onnxruntime"} <= names
    assert not names & {"torch", "transformers", "matplotlib", "accelerate", "datasets", "pandas"}


def test_the_doctor_finds_nothing_wrong_and_chooses_the_onnx_engine(
    programs: Path, tmp_path: Path
) -> None:
    done = run(str(programs / "elma"), "doctor", "--json", "--threads", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["engine"]["figures"]["name"] == "onnx"
    assert findings["canary"]["state"] == "ok", findings["canary"]
    assert "elma-qa[torch]" in findings["engine torch"]["advice"]


def test_questions_are_answered_over_http_within_the_memory_of_a_small_device(edge: Edge) -> None:
    assert edge.listening["engine"] == "onnx"
    for question, passage, expected in QUESTIONS:
        file = ROOT / "elma" / "passages" / passage if passage.endswith(".txt") else None
        answer = edge.ask(question, file.read_text("utf-8") if file else passage)
        assert expected in answer["answer"]
        assert answer["engine"] == "onnx"
    whole = (ROOT / "elma/passages/handbook.txt").read_text("utf-8")
    for _ in range(20):  # several windows at once
        edge.ask("What is the handbook about?", whole)
    assert edge.peak_resident_bytes() <= RESIDENT_BOUND_BYTES


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(programs: Path) -> None:
    done = run(str(programs / "elma"), "train", "--base", "x", "--data", "y", "--out", "z")
    assert done.returncode == 1
    assert "pip install 'elma-qa[train]'" in done.stderr
