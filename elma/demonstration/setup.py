"""Keys, settings and free ports for one demonstration, all in one folder that is thrown away.

Inputs: an empty folder, the model, the kind of broker. Output: `Setup`, with the arguments of the
three processes. Neighbours: `scenario` starts them. What is written here is what a person writes by
hand (README, "Three processes").
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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

EDGE_NAME = "demo-edge"
WORKER_NAME = "demo-worker"
LOOPBACK = "127.0.0.1"

BrokerKind = Literal["mosquitto", "embedded"]


@dataclass(frozen=True)
class Setup:
    """Everything that the three processes are started with; they listen on 127.0.0.1 only."""

    folder: Path
    model: str
    broker_kind: BrokerKind
    broker_port: int
    worker_url: str
    edge_url: str

    @property
    def broker_arguments(self) -> list[str]:
        """Arguments of `elma` that start the broker."""
        folder = str(self.folder / "broker")
        port = str(self.broker_port)
        return ["broker", "run", "--dir", folder, "--kind", self.broker_kind, "--port", port]

    @property
    def worker_arguments(self) -> list[str]:
        """Arguments of `elma` that start the worker."""
        return ["worker", "run", "--config", str(self.folder / "worker.toml")]

    @property
    def edge_arguments(self) -> list[str]:
        """Arguments of `elma` that start the edge."""
        return ["edge", "run", "--config", str(self.folder / "edge.toml")]


def prepare(
    folder: Path,
    model: str,
    kind: Literal["auto", "mosquitto", "embedded"],
    max_edge_layers: int | None = None,
) -> Setup:
    """Make keys, write both settings files, choose free ports.

    `max_edge_layers` is that of the edge's settings; None leaves it to the model.
    """
    broker_port, worker_port, edge_port = free_ports(3)
    if Path(model).is_dir():  # the settings file lies elsewhere
        model = str(Path(model).resolve())
    _make_keys(folder)
    broker = {"host": LOOPBACK, "port": broker_port}
    threads = max(1, (os.cpu_count() or 1) // 2)  # worker and edge share this machine
    write_toml(
        folder / "worker.toml",
        {
            "name": WORKER_NAME,
            "model": model,
            "threads": threads,
            "pool_secret_file": POOL_SECRET_NAME,
            "edges_folder": EDGES_FOLDER_NAME,
            "http": {"host": LOOPBACK, "port": worker_port},
            "broker": broker,
        },
    )
    limit = {} if max_edge_layers is None else {"max_edge_layers": max_edge_layers}
    write_toml(
        folder / "edge.toml",
        {
            **limit,
            "name": EDGE_NAME,
            "model": model,
            "threads": threads,
            "outbox": "outbox.sqlite3",
            "http": {"host": LOOPBACK, "port": edge_port},
            "broker": broker,
            "offload": {
                "edge_key_file": f"{EDGE_NAME}/{EDGE_SECRET_NAME}",
                "pool_public_key_file": f"{EDGE_NAME}/{POOL_PUBLIC_NAME}",
            },
        },
    )
    return Setup(
        folder=folder,
        model=model,
        broker_kind=_choose_broker(kind),
        broker_port=broker_port,
        worker_url=f"http://{LOOPBACK}:{worker_port}",
        edge_url=f"http://{LOOPBACK}:{edge_port}",
    )


def free_ports(count: int) -> list[int]:
    """`count` different TCP ports of 127.0.0.1 that nobody listens on at the moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind((LOOPBACK, 0))
        return [int(listener.getsockname()[1]) for listener in sockets]


def write_toml(path: Path, settings: Mapping[str, Any]) -> None:
    """Write a settings file."""
    path.write_text(toml_text(settings), encoding="utf-8")


def toml_text(settings: Mapping[str, Any]) -> str:
    """Settings as TOML: plain values first, then one table for each mapping."""
    plain = {name: value for name, value in settings.items() if not isinstance(value, Mapping)}
    tables = {name: value for name, value in settings.items() if isinstance(value, Mapping)}
    lines = _toml_lines(plain)
    for name, table in tables.items():
        lines += ["", f"[{name}]", *_toml_lines(table)]
    return "\n".join(lines) + "\n"


def _toml_lines(values: Mapping[str, Any]) -> list[str]:
    # A JSON string, number or truth value is the same in TOML.
    return [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]


def _make_keys(folder: Path) -> None:
    """What `elma keys pool` and `elma keys edge` write."""
    pool = PoolKeys.make("demo-pool")
    save_pool_keys(folder / POOL_SECRET_NAME, pool)
    edge = EdgeKeys.make(EDGE_NAME)
    save_edge_keys(folder / EDGE_NAME / EDGE_SECRET_NAME, edge)
    save_pool_public(folder / EDGE_NAME / POOL_PUBLIC_NAME, pool.public)
    save_edge_public(folder / EDGES_FOLDER_NAME, EDGE_NAME, edge.public)


def _choose_broker(kind: Literal["auto", "mosquitto", "embedded"]) -> BrokerKind:
    if kind != "auto":
        return kind
    from broker.mosquitto import find_mosquitto

    return "mosquitto" if find_mosquitto() is not None else "embedded"
