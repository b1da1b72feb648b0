"""Broker, workers, edges and a publisher as processes, for what is measured about releases.

The edges run a copy of the program without the shipped models, whose tensors would otherwise be
taken from the disk instead of the broker.

In: an empty folder. Out: a `Plant` whose parts are started, killed and asked through the command
line and HTTP alone. Neighbours: `release_fleet` counts time and bytes on many edges, `release_cuts`
interrupts transfers, `release_rollout` fails in the middle of a rollout under load.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from broker.run import RunningBroker, run_broker
from elma.demonstration.processes import Child
from elma.demonstration.setup import LOOPBACK, free_ports, write_toml
from elma.output import CommandError, print_status

CHANNEL = "stable"
PACKAGES = ("reader", "protocol", "broker", "releases", "edge_agent", "elma")
WAIT_SECONDS = 180.0
COMMAND_SECONDS = 600.0
POLL_SECONDS = 0.25


class Edge:
    """One `elma edge run`; the same folder, keys, outbox and releases over all its lives."""

    def __init__(self, name: str, folder: Path, port: int, program: Path) -> None:
        self.name, self.folder, self._program = name, folder, program
        self.url = f"http://{LOOPBACK}:{port}"
        self._client = httpx.Client(base_url=self.url, timeout=90.0)
        self.child: Child | None = None
        self._lives = 0

    def start(self) -> Edge:
        """Start it, for the first time or again."""
        self._lives += 1
        log_file = self.folder / f"edge-{self._lives}.log"
        arguments = ["--log-format", "json", "edge", "run", "--config", str(self.config)]
        variables = {"PYTHONPATH": str(self._program), "PYTHONSAFEPATH": "1"}
        self.child = Child(self.name, arguments, log_file, variables)
        return self

    @property
    def config(self) -> Path:
        """Its settings file."""
        return self.folder / "edge.toml"

    def log(self) -> str:
        """What it has logged in this life."""
        return (self.folder / f"edge-{self._lives}.log").read_text(encoding="utf-8")

    def kill(self) -> None:
        """kill -9."""
        if self.child is not None:
            os.kill(self.child.pid, signal.SIGKILL)
            self.child.stop()

    def stop(self) -> None:
        """SIGTERM."""
        if self.child is not None:
            self.child.stop()

    def health(self) -> dict[str, Any]:
        """Its `/healthz`; empty while nobody listens."""
        try:
            document: dict[str, Any] = self._client.get("/healthz").json()
        except httpx.TransportError:
            return {}
        return document

    def metrics(self) -> dict[str, float]:
        """Its samples by name and labels as they stand in the text; empty while nobody listens."""
        try:
            text = self._client.get("/metrics").text
        except httpx.TransportError:
            return {}
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
        return {name: float(value) for name, value in lines}

    def ask(self, body: Mapping[str, Any]) -> httpx.Response:
        """POST /v1/answer."""
        return self._client.post("/v1/answer", json=dict(body))

    @property
    def release(self) -> str | None:
        """The digest of the release that answers now."""
        found = (self.health().get("model") or {}).get("digest")
        return found if found is None else str(found)


class Plant:
    """Everything that runs on this machine for one measurement; stopped with `stack`."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.broker: RunningBroker = stack.enter_context(run_broker("mosquitto", folder / "broker"))
        self.edges: dict[str, Edge] = {}
        self.workers: dict[str, Child] = {}
        self.worker_urls: dict[str, str] = {}
        self.keys = folder / "keys"
        self._program = copy_program(folder / "program")
        self.command("keys", "pool", "--out", str(self.keys))
        self.command("keys", "publisher", "--out", str(self.keys))

    def command(self, *arguments: str, may_fail: bool = False) -> dict[str, Any]:
        """Run `elma ARGUMENTS --json`; its document. Raises CommandError with its stderr."""
        done = subprocess.run(  # noqa: S603  # our own program with arguments of our own making
            [sys.executable, "-m", "elma", *arguments, "--json"],
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if done.returncode and not may_fail:
            raise CommandError(f"elma {' '.join(arguments[:2])} failed: {done.stderr[-2000:]}")
        return dict(json.loads(done.stdout)) if done.stdout.strip() else {}

    def publish(self, *arguments: str, may_fail: bool = False) -> dict[str, Any]:
        """`elma publish ARGUMENTS` to this plant's channel."""
        return self.command(
            *("publish", *arguments, "--channel", CHANNEL, *self.publisher_options),
            *("--key", str(self.keys / "publisher-secret.json")),
            may_fail=may_fail,
        )

    @property
    def publisher_options(self) -> list[str]:
        """Where the broker, the publisher's store and its public keys are."""
        return [
            *("--store", str(self.folder / "publisher")),
            *("--publisher-public", str(self.keys / "publisher-public.json")),
            *("--broker-host", LOOPBACK, "--broker-port", str(self.broker.port)),
        ]

    def edge(
        self,
        name: str,
        *,
        broker_port: int | None = None,
        releases: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Edge:
        """Enrol and start an edge that follows the channel; `settings` are as in edge.toml."""
        folder = self.folder / name
        folder.mkdir()
        public = str(self.keys / "pool-public.json")
        self.command("keys", "edge", name, "--pool", public, "--out", str(self.keys))
        [port] = free_ports(1)
        edge = Edge(name, folder, port, self._program)
        write_toml(
            edge.config,
            {
                "name": name,
                "outbox": "outbox.sqlite3",
                "threads": 1,
                **settings,
                "http": {"port": port},
                "broker": {
                    "host": LOOPBACK,
                    "port": broker_port or self.broker.port,
                    "reconnect_min_seconds": 0.1,
                    "reconnect_max_seconds": 1.0,
                },
                "offload": {
                    "edge_key_file": str(self.keys / name / "edge-secret.json"),
                    "pool_public_key_file": str(self.keys / name / "pool-public.json"),
                },
                "releases": {
                    "channel": CHANNEL,
                    "folder": "releases",
                    "publisher_public_key_file": str(self.keys / "publisher-public.json"),
                    **(releases or {}),
                },
            },
        )
        self._stack.callback(edge.stop)
        self.edges[name] = edge
        return edge.start()

    def worker(self, name: str, model: str, **settings: Any) -> Child:
        """Start a worker that follows the channel."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        [port] = free_ports(1)
        (self.keys / "edges").mkdir(exist_ok=True)
        write_toml(
            folder / "worker.toml",
            {
                "name": name,
                "model": model,
                "threads": 1,
                "pool_secret_file": str(self.keys / "pool-secret.json"),
                "edges_folder": str(self.keys / "edges"),
                **settings,
                "http": {"port": port},
                "broker": {"host": LOOPBACK, "port": self.broker.port},
                "releases": {
                    "channel": CHANNEL,
                    "folder": "releases",
                    "publisher_public_key_file": str(self.keys / "publisher-public.json"),
                },
            },
        )
        url = f"http://{LOOPBACK}:{port}"
        child = Child(
            name,
            ["--log-format", "json", "worker", "run", "--config", str(folder / "worker.toml")],
            folder / "worker.log",
        )
        self._stack.callback(child.stop)
        child.wait_until(lambda: answers(f"{url}/readyz"), wait_seconds=WAIT_SECONDS)
        self.workers[name], self.worker_urls[name] = child, url
        return child


def copy_program(folder: Path) -> Path:
    """The packages of this repository without the shipped models."""
    root = Path(__file__).resolve().parent.parent
    for package in PACKAGES:
        shutil.copytree(
            root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "models")
        )
    return folder


def wait_until(holds: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS) -> Any:
    """The first true value of `holds()`. Raises CommandError with `what` did not come."""
    end = time.monotonic() + seconds
    while not (value := holds()):
        if time.monotonic() > end:
            raise CommandError(f"not within {seconds:g} seconds: {what}")
        time.sleep(POLL_SECONDS)
    return value


def answers(url: str) -> bool:
    """Whether a page is there and says 200."""
    try:
        return httpx.get(url, timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False


def say(text: str) -> None:
    """One line of progress on stderr."""
    print_status(text)
