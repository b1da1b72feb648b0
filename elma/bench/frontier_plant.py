"""Real processes for `elma bench frontier`: a broker, a worker, devices, a text service, links.

In: a model, the device's last layer, codecs. Out: `Plant`, which asks a question of any of them and
says how long it took and how many bytes crossed the link. Neighbours: `links` shapes,
`text_cloud` takes text, `frontier` asks.

The devices differ only in what makes the rows of the table:

    ours/CODEC   the exit policy; states go to the worker in this codec (tokens: the token ids)
    always       every question goes to the worker after the device's last layer
    at_layer     every question stops at the device's last layer; no broker
    full_depth   every question runs all layers; no broker
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from broker.run import run_broker
from cloud_worker.training.squad_files import Question
from elma.bench.contest import child_environment
from elma.bench.links import Link, ShapingProxy
from elma.demonstration.processes import Child
from elma.demonstration.scenario import has_broker, is_listening, is_ready
from elma.demonstration.setup import LOOPBACK, free_ports, write_toml
from elma.output import CommandError, print_status
from protocol.key_files import (
    EDGE_SECRET_NAME,
    EDGES_FOLDER_NAME,
    POOL_PUBLIC_NAME,
    POOL_SECRET_NAME,
    save_edge_keys,
    save_edge_public,
    save_pool_keys,
    save_pool_public,
)
from protocol.keys import EdgeKeys, PoolKeys
from reader.codecs import TOKENS
from reader.exits import ExitSettings
from reader.weights import load_config

TEXT = "text"
ALWAYS = "always"
AT_LAYER = "at_layer"
FULL_DEPTH = "full_depth"
START_SECONDS = 120.0
ANSWER_SECONDS = 120.0
DEADLINE_SECONDS = 60.0
# A slow link needs longer for one state than the default patience with a silent worker.
PATIENCE_SECONDS = 50.0
LARGEST_TOKENS_BYTES = 4_096
CERTAIN = 1e9  # a threshold that every uncertainty is below


@dataclass(frozen=True)
class Asking:
    """What one question came to: seconds at the asker, bytes over the link in both directions,
    and whether the cloud answered."""

    seconds: float
    bytes_up: int
    bytes_down: int
    by_cloud: bool


@dataclass(frozen=True)
class PlantPlan:
    """What is started."""

    model_folder: Path
    edge_layers: int
    codecs: tuple[str, ...]
    always_codec: str
    threads: int
    cloud_threads: int


class Plant:
    """Running processes; made by `running_plant`."""

    def __init__(
        self,
        urls: dict[str, str],
        broker_link: ShapingProxy,
        text_link: ShapingProxy,
        device_ids: Sequence[int],
    ) -> None:
        self._urls, self._broker_link, self._text_link = urls, broker_link, text_link
        self.device_ids = tuple(device_ids)
        self._client = httpx.Client(timeout=ANSWER_SECONDS, trust_env=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Everybody who can be asked."""
        return tuple(self._urls)

    def set_link(self, link: Link) -> None:
        """Change what lies between devices and cloud."""
        self._broker_link.link = self._text_link.link = link

    def ask(self, name: str, question: Question) -> Asking:
        """One question; raises CommandError when it is not answered."""
        proxy = self._text_link if name == TEXT else self._broker_link
        proxy.take_bytes()
        body = {"question": question.question, "context": question.context}
        if name != TEXT:
            body["deadline_seconds"] = DEADLINE_SECONDS  # type: ignore[assignment]
        begin = time.perf_counter()
        try:
            response = self._client.post(self._urls[name], json=body)
        except httpx.HTTPError as error:
            raise CommandError(f"{name} did not answer ({type(error).__name__})") from error
        seconds = time.perf_counter() - begin
        if response.status_code != httpx.codes.OK:
            raise CommandError(f"{name} answered with HTTP status {response.status_code}")
        by_cloud = name == TEXT or response.json()["resolved_by"] == "cloud"
        # Without the cloud, what crossed was some other device's sign of life.
        up, down = proxy.take_bytes() if by_cloud else (0, 0)
        return Asking(seconds, up, down, by_cloud)

    def close(self) -> None:
        """The client's connections."""
        self._client.close()


@contextmanager
def running_plant(plan: PlantPlan, folder: Path, link: Link) -> Iterator[Plant]:
    """Everything of a plan, ready to be asked. Raises CommandError, after the end of every log."""
    with ExitStack() as stack:
        processes = _Processes(plan, folder, stack)
        try:
            plant = _start(processes, link)
            stack.callback(plant.close)
            yield plant
        except CommandError:
            for child in processes.children:
                print_status(child.log_tail())
            raise


class _Processes:
    """The processes of a plan, each with its settings file in `folder`; they end with `stack`."""

    def __init__(self, plan: PlantPlan, folder: Path, stack: ExitStack) -> None:
        self.plan, self.folder, self.stack = plan, folder, stack
        self.children: list[Child] = []
        self._ready: list[Callable[[], bool]] = []

    def start_worker(self, port: int, broker_port: int, models: Sequence[Path]) -> None:
        """The worker; the first of `models` is its own, the others older ones."""
        settings = {
            "name": "bench",
            "model": str(models[0]),
            "older_models": [str(model) for model in models[1:]],
            "threads": self.plan.cloud_threads,
            "pool_secret_file": POOL_SECRET_NAME,
            "edges_folder": EDGES_FOLDER_NAME,
            "http": {"host": LOOPBACK, "port": port},
            "broker": {"host": LOOPBACK, "port": broker_port},
        }
        self._start("worker", settings, partial(is_ready, f"http://{LOOPBACK}:{port}/readyz"))

    def start_device(self, name: str, model: Path, port: int, cloud: dict[str, Any] | None) -> str:
        """A device, alone where `cloud` (its broker and offload settings) is None; where it is
        asked."""
        settings = {
            "name": _edge_name(name),
            "model": str(model),
            "threads": self.plan.threads,
            "outbox": f"{_edge_name(name)}.sqlite3",
            "max_edge_layers": self.plan.edge_layers,
            "http": {"host": LOOPBACK, "port": port},
            **(cloud or {}),
        }
        health = f"http://{LOOPBACK}:{port}/healthz"
        ready = partial(is_listening, port) if cloud is None else partial(has_broker, health)
        self._start(name, settings, ready)
        return f"http://{LOOPBACK}:{port}/v1/answer"

    def wait(self) -> None:
        """Until all are ready. Raises CommandError."""
        for child, ready in zip(self.children, self._ready, strict=True):
            child.wait_until(ready, wait_seconds=START_SECONDS)

    def _start(self, name: str, settings: dict[str, Any], ready: Callable[[], bool]) -> None:
        path = self.folder / f"{_edge_name(name)}.toml"
        write_toml(path, settings)
        role = "worker" if name == "worker" else "edge"
        arguments = [role, "run", "--config", str(path)]
        child = Child(name, arguments, path.with_suffix(".log"))
        self.stack.callback(child.stop)
        self.children.append(child)
        self._ready.append(ready)


def _start(processes: _Processes, link: Link) -> Plant:
    plan, folder, stack = processes.plan, processes.folder, processes.stack
    models = make_models(plan, folder)
    edges = {f"ours/{codec}": codec for codec in plan.codecs} | {ALWAYS: plan.always_codec}
    keys = _make_keys(folder, [_edge_name(name) for name in edges])
    broker = stack.enter_context(run_broker(directory=folder / "broker"))
    broker_link = stack.enter_context(ShapingProxy(broker.port, link))
    text_port = stack.enter_context(_text_cloud(plan))
    text_link = stack.enter_context(ShapingProxy(text_port, link))
    worker_port, *ports = free_ports(1 + len(edges) + 2)
    processes.start_worker(worker_port, broker.port, [plan.model_folder, models[ALWAYS]])
    urls = {TEXT: f"http://{LOOPBACK}:{text_link.port}/"}
    for name, port in zip([*edges, AT_LAYER, FULL_DEPTH], ports, strict=True):
        cloud = None
        if name in edges:
            cloud = _cloud_settings(broker_link.port, keys[_edge_name(name)], edges[name])
        model = models[name.partition("/")[0]]
        urls[name] = processes.start_device(name, model, port, cloud)
    processes.wait()
    devices = [child.pid for child in processes.children if child.name != "worker"]
    return Plant(urls, broker_link, text_link, devices)


def _cloud_settings(broker_port: int, key_file: str, codec: str) -> dict[str, Any]:
    """What a device with a cloud behind it has more than one without."""
    return {
        "broker": {"host": LOOPBACK, "port": broker_port},
        "offload": {
            "edge_key_file": key_file,
            "pool_public_key_file": POOL_PUBLIC_NAME,
            **_packing(codec),
            "accept_seconds": PATIENCE_SECONDS,
            "cloud_wait_seconds": PATIENCE_SECONDS,
        },
    }


def _packing(codec: str) -> dict[str, Any]:
    """Settings under which everything is sent in one codec: where no state would fit a request,
    a device that may send token ids sends these."""
    if codec == TOKENS:
        return {
            "codec": "auto",
            "privacy": "allow-tokens",
            "max_request_bytes": LARGEST_TOKENS_BYTES,
        }
    return {"codec": codec}


def make_models(plan: PlantPlan, folder: Path) -> dict[str, Path]:
    """The model folder as it is, one that never exits, and one that stops at the last layer of the
    device."""
    base = plan.model_folder
    layers = load_config(base).layers
    settings = ExitSettings.load(base) or ExitSettings.uncalibrated(layers)
    never = (-1.0,) * layers
    at_layer = (-1.0,) * (plan.edge_layers - 1) + (CERTAIN,) * (layers - plan.edge_layers + 1)
    models = {"ours": base}
    for name, thresholds in ((ALWAYS, never), (AT_LAYER, at_layer)):
        models[name] = folder / f"model-{name}"
        shutil.copytree(base, models[name])
        replace(settings, exit_thresholds=thresholds).save(models[name])
    models[FULL_DEPTH] = models[ALWAYS]
    return models


def _make_keys(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Keys of the pool and of every device; returns each device's key file, relative."""
    pool = PoolKeys.make("bench-pool")
    save_pool_keys(folder / POOL_SECRET_NAME, pool)
    save_pool_public(folder / POOL_PUBLIC_NAME, pool.public)
    files = {}
    for name in names:
        edge = EdgeKeys.make(name)
        files[name] = f"{name}/{EDGE_SECRET_NAME}"
        save_edge_keys(folder / files[name], edge)
        save_edge_public(folder / EDGES_FOLDER_NAME, name, edge.public)
    return files


@contextmanager
def _text_cloud(plan: PlantPlan) -> Iterator[int]:
    """The port of the text service."""
    # Our own program with words of our own making, and no shell.
    process = subprocess.Popen(
        [sys.executable, "-m", "elma.bench.text_cloud"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=child_environment(plan.cloud_threads, "native"),
        text=True,
    )
    try:
        task = {"model": str(plan.model_folder), "threads": plan.cloud_threads}
        line = ""
        if process.stdin is not None and process.stdout is not None:
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line.strip().isdigit():
            raise CommandError("the text service did not start; see above why")
        yield int(line)
    finally:
        process.kill()
        process.communicate(timeout=10.0)


def _edge_name(name: str) -> str:
    return name.replace("/", "-").replace("_", "-")
