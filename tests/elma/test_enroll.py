"""From nothing to a secured broker, a worker and edges, by the command line and its bundles alone.

Real processes on a real mosquitto over TLS. While questions are asked, others are enrolled and
revoked and the pool's key is rotated: nobody else loses a question or a connection.
"""

from __future__ import annotations

import getpass
import itertools
import json
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.session import Session
from edge_agent.settings import load_settings as load_edge_settings
from protocol.key_files import load_pool_keys, load_pool_public
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

    def log(self, name: str) -> Path:
        """The log of a process."""
        return self.folder / f"{name}.log"


@pytest.fixture
def site(mosquitto_program: Path, tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Site]:
    """Keys, a broker's folder, an edge and a worker, all made by the command line."""
    model = make_tiny_model(tmp_path / "tiny")
    elma(tmp_path, "keys", "pool", "--out", "elma-keys")
    elma(tmp_path, "keys", "publisher", "--out", "elma-keys")
    init = ("broker", "init", "elma-broker", "--host", "127.0.0.1", "--listen", "127.0.0.1")
    elma(tmp_path, *init, "--port", str(free_port()), "--user", getpass.getuser())
    with ExitStack() as stack:
        yield Site(tmp_path, model, stack)


def enroll(site: Site, name: str, verb: str = "enroll", *options: str) -> dict[str, Any]:
    """Enrol an edge or worker with the tiny model."""
    out = ("--out", f"bundles/{name}")
    return told(site.folder, verb, name, *out, "--model", str(site.model), *options)


def test_members_come_and_go_and_the_pool_key_changes_while_nobody_else_loses_a_question(
    site: Site,
) -> None:
    assert not enroll(site, "kitchen")["is_live"]
    site.start_broker()
    assert enroll(site, "north", "enroll-worker", "--here")["is_live"]
    worker = site.start_worker("north")
    edge, url = site.start_edge("kitchen")
    load = Load(url)
    try:
        load.wait_for_more()
        assert enroll(site, "garage")["is_live"]
        settings = load_edge_settings(site.folder / "bundles" / "garage" / "edge.toml")
        assert settings.broker is not None
        with Session(settings.broker, "edge-garage") as garage:
            assert garage.wait_connected(WAIT_SECONDS)
            load.wait_for_more()
            revoked = told(site.folder, "revoke", "garage")
            assert revoked["is_live"]
            assert revoked["key_removed"]
            assert not (site.folder / "elma-keys" / "edges" / "garage.json").exists()
            assert revoked["list_is_read"]
            wait_until(lambda: not garage.is_connected, "garage is out")
            # Each further attempt fails in the handshake: there is no second connection.
            wait_until(lambda: "Administrative" not in str(garage.failure), "another attempt")
            assert garage.connections_total == 1
        load.wait_for_more()
        rotated = told(site.folder, "keys", "rotate", "--bundles", "bundles")
        assert rotated["live_key_ids"] == ["pool-1", "pool-2"]
        load.wait_for_more()
        # Who is enrolled from now on has the new key, and is answered beside the one with the old.
        enroll(site, "hall")
        _, hall = site.start_edge("hall")
        second = Load(hall)
        second.wait_for_more()
        second.stop()
    finally:
        load.stop()
    assert not load.failures
    assert not second.failures
    answers = [*load.answers, *second.answers]
    assert {answer["resolved_by"] for answer in answers} == {"cloud"}
    assert not any(answer["degraded"] for answer in answers)
    assert len(edge.events("broker_connected")) == 1
    assert len(worker.events("broker_connected")) == 1
    assert worker.events("pool_keys_read"), "the rotation did not reach the worker"


def test_a_bundle_holds_what_its_member_needs_and_its_secrets_are_for_its_owner(
    site: Site,
) -> None:
    enroll(site, "kitchen")
    bundle = site.folder / "bundles" / "kitchen"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in bundle.iterdir()}
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o700
    assert {modes["client-key.pem"], modes["edge-secret.json"]} == {0o600}
    assert {"edge.toml", "authority.pem", "pool-public.json", "publisher-public.json"} <= set(modes)
    assert (site.folder / "elma-keys" / "edges" / "kitchen.json").exists()
    again = elma(site.folder, "enroll", "kitchen", "--out", "bundles/other", fails=True)
    assert "revoke" in again.stderr
    (bundle / "client-key.pem").chmod(0o640)
    refused = elma(site.folder, "edge", "run", "--config", str(bundle / "edge.toml"), fails=True)
    assert f"chmod 600 {bundle / 'client-key.pem'}" in refused.stderr


def test_an_authority_key_that_others_may_read_enrols_nobody(site: Site) -> None:
    key = site.folder / "elma-broker" / "authority" / "authority-key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.chmod(0o644)
    refused = elma(site.folder, "enroll", "kitchen", "--out", "bundles/kitchen", fails=True)
    assert f"chmod 600 {key}" in refused.stderr
    assert not (site.folder / "elma-keys" / "edges" / "kitchen.json").exists()
    assert not (site.folder / "bundles" / "kitchen").exists()


def test_a_rotation_changes_each_bundle_s_copy_and_leaves_another_pool_s_alone(site: Site) -> None:
    enroll(site, "kitchen")
    enroll(site, "north", "enroll-worker")
    elma(site.folder, "keys", "pool", "--out", "bundles/foreign")
    foreign = (site.folder / "bundles" / "foreign" / "pool-secret.json").read_bytes()
    first = told(site.folder, "keys", "rotate", "--bundles", "bundles")
    assert len(first["changed_copies"]) == 2
    second = told(site.folder, "keys", "rotate", "--bundles", "bundles")
    assert second["dropped_key_ids"] == ["pool-1"]
    assert second["live_key_ids"] == ["pool-2", "pool-3"]
    bundles = site.folder / "bundles"
    pool = load_pool_keys(site.folder / "elma-keys" / "pool-secret.json")
    assert load_pool_keys(bundles / "north" / "pool-secret.json").ids == pool.ids
    assert load_pool_public(bundles / "kitchen" / "pool-public.json") == pool.public
    assert (bundles / "foreign" / "pool-secret.json").read_bytes() == foreign
