"""A secured broker, workers and devices, made by the command line and started from their bundles.

`Site` is the folder with all of it, `Load` asks one device without a pause, `elma` and `told` run a
verb. Neighbours: the tests of enrolment, rotation and renewal.
"""

from __future__ import annotations

import getpass
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.cloud_worker.harness import WAIT_SECONDS, ElmaProcess, WorkerProcess, wait_until
from tests.tiny import make_tiny_model

ASKERS = 3
AFTER_EACH_STEP = 10


def elma(folder: Path, *arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end in a folder."""
    done = subprocess.run(
        [sys.executable, "-m", "elma", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/usr/sbin"},
    )
    assert (done.returncode != 0) == fails, done.stderr
    assert "Traceback" not in done.stderr
    return done


def told(folder: Path, *arguments: str) -> dict[str, Any]:
    """What a verb prints with --json."""
    document: dict[str, Any] = json.loads(elma(folder, *arguments, "--json").stdout)
    return document


@dataclass
class Load:
    """Asks one edge without a pause until it is stopped, and keeps every answer."""

    url: str
    answers: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(ASKERS)]
        for thread in self._threads:
            thread.start()

    def wait_for_more(self) -> None:
        """Return when some questions more have been answered."""
        wanted = len(self.answers) + AFTER_EACH_STEP
        wait_until(lambda: len(self.answers) >= wanted or self.failures, "more answers")

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(WAIT_SECONDS)

    def _ask(self) -> None:
        while not self._stopping.is_set():
            number = next(self._numbers)
            body = {
                "question": f"who built tower {number}",
                "context": f"the king of year {number} built the north tower. the city is old",
                "deadline_seconds": 30.0,
            }
            try:
                response = httpx.post(
                    f"{self.url}/v1/answer", json=body, timeout=60.0, trust_env=False
                )
                response.raise_for_status()
                self.answers.append(response.json())
            except httpx.HTTPError as error:
                self.failures.append(repr(error))


@dataclass
class Site:
    """A folder with keys and a secured broker, and what runs there."""

    folder: Path
    model: Path
    stack: ExitStack

    def start_broker(self) -> ElmaProcess:
        """`elma broker run DIR`."""
        process = ElmaProcess(
            ["broker", "run", str(self.folder / "elma-broker"), "--json"], self.log("broker")
        )
        self.stack.callback(lambda: (process.process.terminate(), process.wait()))
        wait_until(lambda: '"port"' in process.log, f"the broker answers: {process.log}")
        return process

    def start_worker(self, name: str) -> WorkerProcess:
        """`elma worker run` with nothing but its bundle."""
        process = WorkerProcess.__new__(WorkerProcess)
        config = str(self.folder / "bundles" / name / "worker.toml")
        ElmaProcess.__init__(
            process, ["worker", "run", "--config", config, "--port", "0"], self.log(name)
        )
        process.name, process._health_url = name, ""
        self.stack.callback(process.stop)
        return process.wait_ready()

    def start_edge(self, name: str) -> tuple[ElmaProcess, str]:
        """`elma edge run` with nothing but its bundle; the process and its address."""
        config = str(self.folder / "bundles" / name / "edge.toml")
        options = ["--port", "0", "--max-edge-layers", "2", "--precision", "fp32"]
        process = ElmaProcess(["edge", "run", "--config", config, *options], self.log(name))
        self.stack.callback(process.stop)
        url = str(process.wait_for_event("edge_listening")["url"])

        def is_connected() -> bool:
            health = httpx.get(f"{url}/healthz", timeout=10.0, trust_env=False).json()
            return bool((health.get("cloud") or {}).get("connected"))

        wait_until(is_connected, f"{name} connected: {process.log[-2000:]}")
        return process, url

    def start(self, name: str, *arguments: str) -> ElmaProcess:
        """Any other verb that runs on; it ends with the site."""
        process = ElmaProcess(arguments, self.log(name))
        self.stack.callback(process.stop)
        return process

    def log(self, name: str) -> Path:
        """The log of a process."""
        return self.folder / f"{name}.log"


def make_site(folder: Path, stack: ExitStack, free_port: Callable[[], int]) -> Site:
    """Keys of a pool and a publisher, and a broker's folder; nothing runs yet."""
    model = make_tiny_model(folder / "tiny")
    elma(folder, "keys", "pool", "--out", "elma-keys")
    elma(folder, "keys", "publisher", "--out", "elma-keys")
    init = ("broker", "init", "elma-broker", "--host", "127.0.0.1", "--listen", "127.0.0.1")
    elma(folder, *init, "--port", str(free_port()), "--user", getpass.getuser())
    return Site(folder, model, stack)


def enroll(site: Site, name: str, verb: str = "enroll", *options: str) -> dict[str, Any]:
    """Enrol an edge or worker with the tiny model."""
    out = ("--out", f"bundles/{name}")
    return told(site.folder, verb, name, *out, "--model", str(site.model), *options)
