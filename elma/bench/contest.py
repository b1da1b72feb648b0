"""Contestants side by side: a process each, asked in turn, so that noise of the machine hits all.

In: entries and questions. Out: milliseconds a question, memory and answers of every entry.
Neighbours: `contestant_process` is the other end, `edge` makes the table.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from elma.bench.contestants import Entry
from elma.output import CommandError

TURN_QUESTIONS = 10
LOAD_SECONDS = 180.0
TURN_SECONDS = 600.0
STOP_SECONDS = 10.0

# How each library is held to an instruction set. ONNX Runtime asks the processor itself and knows
# no such switch: its rows stay at full speed.
ISA_VARIABLES = {
    "native": {},
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
}


@dataclass(frozen=True)
class Timing:
    """What one entry came to: milliseconds a question in the order asked, memory, and the choice
    of engine, precision and threads."""

    milliseconds: tuple[float, ...]
    memory: dict[str, float]
    choice: dict[str, Any]


class Child:
    """One contestant process; used in a `with` block."""

    def __init__(
        self, entry: Entry, questions: Path, *, threads: int, no_answer_threshold: float, isa: str
    ) -> None:
        """Start it and hand it its task; `loaded` waits until it has loaded."""
        self.name = entry.name
        # Our own program with words of our own making, and no shell.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "elma.bench.contestant_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(threads, isa),
            text=True,
        )
        self._send(
            {
                "entry": entry.as_json(),
                "threads": threads,
                "no_answer_threshold": no_answer_threshold,
                "questions": str(questions),
            }
        )
        self.choice: dict[str, Any] = {}

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_SECONDS)

    def wait_loaded(self) -> None:
        """Return when it can answer; `choice` is known then. Raises CommandError."""
        self.choice = self._receive(LOAD_SECONDS)

    def time(self, numbers: Sequence[int]) -> list[float]:
        """Milliseconds of each question."""
        return list(self._call({"time": list(numbers)})["milliseconds"])

    def answers(self, numbers: Sequence[int]) -> list[str]:
        """The text of each answer."""
        return list(self._call({"answer": list(numbers)})["texts"])

    def memory(self) -> dict[str, float]:
        """Resident memory now and at its peak, MB."""
        return self._call({"memory": True})

    def _call(self, command: dict[str, Any]) -> dict[str, Any]:
        self._send(command)
        return self._receive(TURN_SECONDS)

    def _send(self, document: dict[str, Any]) -> None:
        try:
            _pipe(self._process.stdin).write(json.dumps(document) + "\n")
            _pipe(self._process.stdin).flush()
        except OSError as error:
            raise self._ended() from error

    def _receive(self, wait_seconds: float) -> dict[str, Any]:
        stdout = _pipe(self._process.stdout)
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if not selector.select(wait_seconds):
                raise CommandError(f"{self.name}: no word for {wait_seconds:.0f} seconds; ask less")
        line = stdout.readline()
        if not line:
            raise self._ended()
        document: dict[str, Any] = json.loads(line)
        return document

    def _ended(self) -> CommandError:
        status = self._process.wait(STOP_SECONDS)
        return CommandError(f"{self.name}: its process ended with status {status}; see above why")


def child_environment(threads: int, isa: str) -> dict[str, str]:
    """The environment of a child that computes with `threads` and one instruction set."""
    limits = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)
    )
    ours = {name: value for name, value in os.environ.items() if not name.startswith("ELMA_")}
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return ours | limits | quiet | offline | ISA_VARIABLES[isa]


def hold_contest(
    entries: Sequence[Entry],
    questions: Path,
    question_count: int,
    *,
    threads: int,
    no_answer_threshold: float,
    isa: str = "native",
    repeats: int = 1,
    progress: Callable[[str], None] = lambda _text: None,
) -> dict[str, Timing]:
    """Time every entry on the questions 0 .. `question_count` - 1 of a file.

    All processes live through the whole contest; in rounds of `TURN_QUESTIONS` questions each has
    its turn while the others sleep. With `repeats` a question's time is its smallest.
    """
    with ExitStack() as stack:
        children = []
        for entry in entries:
            progress(f"loading {entry.name}")
            child = Child(
                entry,
                questions,
                threads=threads,
                no_answer_threshold=no_answer_threshold,
                isa=isa,
            )
            children.append(stack.enter_context(child))
            child.wait_loaded()
        times: dict[str, list[float]] = {entry.name: [] for entry in entries}
        for first in range(0, question_count, TURN_QUESTIONS):
            numbers = range(first, min(first + TURN_QUESTIONS, question_count))
            for child in children:
                rounds = [child.time(numbers) for _ in range(repeats)]
                times[child.name] += [min(figures) for figures in zip(*rounds, strict=True)]
            progress(f"asked {numbers.stop} of {question_count} questions")
        return {
            child.name: Timing(tuple(times[child.name]), child.memory(), child.choice)
            for child in children
        }


def collect_answers(
    entries: Sequence[Entry],
    questions: Path,
    question_count: int,
    *,
    no_answer_threshold: float,
    isa: str = "native",
    progress: Callable[[str], None] = lambda _text: None,
) -> dict[str, list[str]]:
    """Every entry's answers, for F1: one thread each, as many processes at once as cores."""

    def answer_all(entry: Entry) -> list[str]:
        begin = time.monotonic()
        with Child(
            entry, questions, threads=1, no_answer_threshold=no_answer_threshold, isa=isa
        ) as child:
            child.wait_loaded()
            texts: list[str] = []
            for first in range(0, question_count, TURN_QUESTIONS):
                last = min(first + TURN_QUESTIONS, question_count)
                texts += child.answers(range(first, last))
        progress(f"F1 of {entry.name}: {time.monotonic() - begin:.0f} s")
        return texts

    with ThreadPoolExecutor(max_workers=max(1, os.cpu_count() or 1)) as pool:
        texts = list(pool.map(answer_all, entries))
    return {entry.name: found for entry, found in zip(entries, texts, strict=True)}


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:  # Popen was told PIPE for both
        raise CommandError("a contestant process has no pipe")
    return pipe
