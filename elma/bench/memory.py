"""`elma bench memory`: resident memory of a real `elma edge run` while it answers.

In: a model, questions, the engines to try. Out: a row an engine. Neighbours: the edge agent itself,
started as a person starts it; `machine.memory_of` reads the operating system's figures.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from elma.bench.machine import describe_machine, memory_of
from elma.bench.questions import BenchQuestions
from elma.bench.results import Table, write_results
from elma.demonstration.setup import LOOPBACK, free_ports, write_toml
from elma.output import CommandError
from reader.weights import resolve_model_folder

AIMS_MB = {"torch": 400.0, "onnx": 200.0}
START_SECONDS = 120.0
ANSWER_SECONDS = 60.0
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class MemoryPlan:
    """What is measured. `python` is the interpreter of the device, which may lack torch."""

    model: str
    engines: tuple[str, ...] = ("torch", "onnx")
    threads: int = 1
    questions: int = 40
    python: str = sys.executable

    @property
    def result_name(self) -> str:
        """Of its files: a device's own environment has results beside those of this one."""
        return "memory" if self.python == sys.executable else "memory-device"


def run_memory_bench(
    plan: MemoryPlan,
    questions: BenchQuestions,
    *,
    out: Path | None,
    progress: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """Measure every engine in a process of its own. Raises CommandError, `ModelFolderError`."""
    asked = questions.spread(plan.questions)
    rows = []
    for engine in plan.engines:
        progress(f"an edge with the engine {engine}")
        rows.append(_measure(plan, engine, asked))
    result = {
        "model": resolve_model_folder(plan.model).name,
        "questions": len(asked.questions),
        "data": asked.source,
        "machine": describe_machine(plan.threads),
        "rows": rows,
    }
    if out is not None:
        write_results(out, plan.result_name, result, markdown_of(result))
    return result


def markdown_of(result: Mapping[str, Any]) -> str:
    """The table as a person reads it."""
    table = Table(
        ("engine", "idle MB", "answering MB", "peak MB (with loading)", "aim MB", "torch loaded"),
        [
            (
                row["engine"],
                row["idle_mb"],
                row["rss_mb"],
                row["peak_mb"],
                row["aim_mb"],
                "yes" if row["torch_loaded"] else "no",
            )
            for row in result["rows"]
        ],
    )
    return "\n".join(
        [
            f"Resident memory of `elma edge run` with {result['model']}, "
            f"{result['questions']} questions one after another, "
            f"{result['machine']['threads']} thread(s).",
            "",
            table.markdown(),
        ]
    )


def _measure(plan: MemoryPlan, engine: str, asked: BenchQuestions) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="elma-bench-") as scratch:
        folder = Path(scratch)
        port = free_ports(1)[0]
        settings = {
            "model": str(resolve_model_folder(plan.model).resolve()),
            "engine": engine,
            "threads": plan.threads,
            "outbox": "outbox.sqlite3",
            "http": {"host": LOOPBACK, "port": port},
        }
        write_toml(folder / "edge.toml", settings)
        log_file = folder / "edge.log"
        with log_file.open("wb") as log:
            # Our own program with arguments of our own making, and no shell.
            process = subprocess.Popen(  # noqa: S603
                [plan.python, "-m", "elma", "edge", "run", "--config", str(folder / "edge.toml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
            )
        try:
            _wait_ready(process, f"http://{LOOPBACK}:{port}", log_file)
            idle = memory_of(process.pid)
            pairs = [(question.question, question.context) for question in asked.questions]
            answering = _ask_all(process.pid, f"http://{LOOPBACK}:{port}", pairs)
            return {
                "engine": engine,
                "idle_mb": idle["rss_mb"],
                "rss_mb": answering,
                "peak_mb": memory_of(process.pid)["peak_mb"],
                "aim_mb": AIMS_MB.get(engine),
                "torch_loaded": _has_loaded(process.pid, "libtorch"),
            }
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_SECONDS)


def _ask_all(process_id: int, url: str, pairs: Sequence[tuple[str, str]]) -> float:
    """The largest resident memory right after an answer, MB."""
    largest = 0.0
    with httpx.Client(base_url=url, timeout=ANSWER_SECONDS, trust_env=False) as client:
        for question, passage in pairs:
            body = {"question": question, "context": passage}
            response = client.post("/v1/answer", json=body)
            if response.status_code != httpx.codes.OK:
                raise CommandError(f"the edge answered with HTTP status {response.status_code}")
            largest = max(largest, memory_of(process_id)["rss_mb"])
    return largest


def _wait_ready(process: subprocess.Popen[bytes], url: str, log_file: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            tail = log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
            raise CommandError(f"the edge did not start: {' '.join(tail) or 'it said nothing'}")
        try:
            if httpx.get(f"{url}/healthz", timeout=2.0, trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise CommandError(f"the edge was not ready after {START_SECONDS:.0f} seconds")


def _has_loaded(process_id: int, library: str) -> bool:
    return library in Path(f"/proc/{process_id}/maps").read_text(encoding="utf-8")


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ELMA_")}
