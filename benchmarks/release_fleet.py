"""A release on its way to many edges at once: time and bytes, beside what the wire allows.

    python -m benchmarks.release_fleet --model elma-small --edges 20 --json

Starts mosquitto, a worker and the edges, which have no weights at all, as processes on this
machine; publishes the model by one `elma publish`; waits until each edge answers a question with
it. Then as many bare MQTT clients, each a process, read the same retained chunks all at once,
without checking or keeping anything: the wire limit.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import threading
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.release_plant import Edge, Plant, say, wait_until
from broker.exchange import Subscription
from broker.session import Session
from broker.settings import BrokerSettings
from elma.bench.machine import describe_machine
from elma.bench.results import percentile
from elma.demonstration.processes import signals_raise
from elma.log_form import LogForm, LogFormat
from elma.output import JsonOption, configure_logging, print_json, print_table

QUESTION = {
    "question": "Who wrote the report?",
    "context": "The report was written by Ada Miller, and two keepers read it.",
}
QUIET_SECONDS = 60.0


def main(
    model: Annotated[str, typer.Option(help="Model folder, or the name of one.")] = "elma-small",
    edges: Annotated[int, typer.Option(min=1, max=100, help="How many edges at once.")] = 20,
    engine: Annotated[str, typer.Option(help="Of the edges.")] = "onnx",
    as_json: JsonOption = False,
) -> None:
    """Measure, and print one table or one JSON document."""
    with signals_raise(), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="elma-fleet-")))
        plant = Plant(folder, stack)
        result = measure(plant, model, edges, engine)
    if as_json:
        print_json(result)
    else:
        shown = {name: value for name, value in result.items() if name != "machine"}
        print_table(("what", "value"), [(name, str(value)) for name, value in shown.items()])


def measure(plant: Plant, model: str, count: int, engine: str) -> dict[str, Any]:
    """Publish to `count` edges and to bare readers."""
    say(f"starting a worker and {count} edges without weights")
    plant.worker("worker-1", "elma-fast" if model == "elma-small" else "elma-small")
    fleet = [
        plant.edge(f"edge-{number:02}", model="none", engine=engine) for number in range(count)
    ]
    wait_until(lambda: all(edge.health() for edge in fleet), "every edge serves")
    taken = _Taken(fleet)
    say("publishing")
    begin = time.time()
    published = plant.publish(model)
    publish_seconds = time.time() - begin
    say("waiting for every edge to answer")
    taken.wait()
    ready_after = sorted(at - begin for at in taken.ready_at.values())
    taken_after = sorted(at - begin for at in taken.active_at.values())
    received = [taken_bytes(edge) for edge in fleet]
    transfers = sorted(transfer_seconds(edge) for edge in fleet)
    plant_port = plant.broker.port
    for edge in fleet:
        edge.stop()
    say("the same chunks to bare readers")
    wire = {clients: read_bare(plant_port, clients) for clients in (1, count)}
    return {
        "model": Path(model).name,
        "edges": count,
        "engine": engine,
        "published": published,
        "publish_command_seconds": round(publish_seconds, 2),
        "first_edge_active_seconds": round(taken_after[0], 2),
        "median_edge_active_seconds": round(percentile(taken_after, 50), 2),
        "last_edge_active_seconds": round(taken_after[-1], 2),
        "last_edge_answered_seconds": round(ready_after[-1], 2),
        "transfer_seconds": {
            "median": round(percentile(transfers, 50), 2),
            "last": round(transfers[-1], 2),
        },
        "bytes_per_edge": {"least": min(received), "most": max(received)},
        "wire_limit": {
            f"{clients} clients": {"bytes_each": size, "seconds": round(seconds, 3)}
            for clients, (size, seconds) in wire.items()
        },
        "machine": describe_machine(1),
    }


class _Taken:
    """Watches edges: when each said that the release is active, and when it answered by it."""

    def __init__(self, fleet: list[Edge]) -> None:
        self.active_at: dict[str, float] = {}
        self.ready_at: dict[str, float] = {}
        self._threads = [threading.Thread(target=self._watch, args=[edge]) for edge in fleet]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Return when every edge has answered."""
        for thread in self._threads:
            thread.join()

    def _watch(self, edge: Edge) -> None:
        wait_until(lambda: edge.release, f"a release on {edge.name}", seconds=600.0)
        self.active_at[edge.name] = time.time()
        wait_until(lambda: edge.ask(QUESTION).status_code == 200, f"an answer of {edge.name}")
        self.ready_at[edge.name] = time.time()


def taken_bytes(edge: Edge) -> int:
    """What an edge has downloaded, by its own count."""
    return int(edge.metrics().get("elma_edge_download_bytes_total", 0.0))


def transfer_seconds(edge: Edge) -> float:
    """From the first chunk asked for to the complete folder, by the edge's log."""
    lines = [json.loads(line) for line in edge.log().splitlines() if line.startswith("{")]
    at = {
        line["state"]: datetime.fromisoformat(line["timestamp"]).timestamp()
        for line in reversed(lines)
        if line.get("event") == "release"
    }
    return at["verified"] - at["downloading"]


def read_bare(port: int, clients: int) -> tuple[int, float]:
    """Bytes of retained chunks that each of so many bare clients got, and when the last had all."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(clients + 1), context.Queue()
    processes = [
        context.Process(target=_read_all, args=(port, number, barrier, results))
        for number in range(clients)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    begin = time.time()
    found = [results.get(timeout=QUIET_SECONDS) for _ in processes]
    for process in processes:
        process.join()
    return max(size for size, _ in found), max(at for _, at in found) - begin


def _read_all(port: int, number: int, barrier: Any, results: Any) -> None:
    """One bare client: every retained chunk, until none came for a second."""
    configure_logging("error", LogForm(LogFormat.CONSOLE))
    settings = BrokerSettings(port=port)
    session = Session(
        settings, f"bare-{number}", receive_maximum=32, queue_bound=4096, largest_packet_bytes=None
    )
    session.start()
    session.wait_connected(10.0)
    barrier.wait()
    session.subscribe(Subscription("elma/v1/blob/+/+"))
    size, last = 0, time.time()
    while (delivery := session.receive(1.0)) is not None:
        session.acknowledge(delivery)
        size, last = size + len(delivery.payload), time.time()
    results.put((size, last))
    session.stop()


if __name__ == "__main__":
    typer.run(main)
