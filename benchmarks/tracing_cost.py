"""What traces cost: the same questions to plants without and with them, in turns.

    python benchmarks/tracing_cost.py --before CHECKOUT --rounds 30 --json

Starts one plant a case (a broker, a worker, an edge, each a process with one thread): `before`, an
older checkout, where one is named; `off`, the default; `on`, with a collector that answers;
`hanging`, with one that never does. In every round each plant gets the same questions, one after
the other, while the others stand idle; which one begins changes with the round. Told are the median
time at the client and the processor time of edge and worker, each a question, as they are and as
a share of `off`. On a machine that others load too, only the shares mean something, and `before`
against `off` says how little: so the spans that a device makes for an offloaded question are timed
by themselves as well, in processor time of the thread that makes them.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import httpx
import typer

from broker.tracing import Span, TracingSettings, begin, finish, open_tracing
from elma.demonstration.passages import load_questions
from elma.demonstration.processes import Child, signals_raise
from elma.demonstration.scenario import has_broker, is_listening, is_ready
from elma.demonstration.setup import free_ports, prepare
from elma.output import JsonOption, print_json, print_table

START_SECONDS = 120.0
FLUSH_SECONDS = 5.0
DEVICE_SPANS = 9
SPAN_ROUNDS = 5_000
WARM_UP = 10
BASE = "off"
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass
class Collector:
    """An OTLP/HTTP receiver: where it is, and how much it got."""

    url: str = ""
    bytes: int = 0


@dataclass
class Plant:
    """One case: its processes, and what its questions took."""

    url: str
    edge: Child
    worker: Child
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"edge": [], "cloud": []})
    edge_cpu_seconds: float = 0.0
    worker_cpu_seconds: float = 0.0
    degraded: int = 0


def main(
    before: Annotated[Path | None, typer.Option(help="A checkout to compare with.")] = None,
    model: Annotated[str, typer.Option(help="Model folder, or elma-small.")] = "elma-small",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each plant.")] = 30,
    questions: Annotated[int, typer.Option(min=1, help="Questions of one turn.")] = 10,
    max_edge_layers: Annotated[int, typer.Option(help="Deepest layer of the edge.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Measure, and print one table or one JSON document."""
    alone = time_spans()
    with signals_raise(), ExitStack() as stack:
        answering = stack.enter_context(run_collector(answers=True))
        hanging = stack.enter_context(run_collector(answers=False))
        cases: dict[str, dict[str, str]] = {
            "off": {},
            "on": traced_to(answering.url),
            "hanging": traced_to(hanging.url),
        }
        if before is not None:
            cases["before"] = {"PYTHONPATH": str(before.resolve()), "PYTHONSAFEPATH": "1"}
        plants = {
            name: start(stack, name, variables, model, max_edge_layers)
            for name, variables in cases.items()
        }
        measure(plants, rounds, questions)
        time.sleep(FLUSH_SECONDS)
        result = describe(plants, rounds * questions)
        all_asked = rounds * questions + WARM_UP
        result |= alone
        result["trace_bytes_a_question"] = round(answering.bytes / all_asked)
    if as_json:
        print_json(result)
        return
    rows = [(name, *values.values()) for name, values in result["cases"].items()]
    print_table(("case", *result["cases"][BASE]), rows)


def traced_to(url: str) -> dict[str, str]:
    """The settings that send an edge's and a worker's spans to a collector."""
    return {
        f"ELMA_{part}_TRACING__{name}": value
        for part in ("EDGE", "WORKER")
        for name, value in (("IS_ON", "true"), ("ENDPOINT", url))
    }


def start(
    stack: ExitStack, name: str, variables: dict[str, str], model: str, max_edge_layers: int
) -> Plant:
    """A plant that has read its first questions."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="elma-traces-")))
    setup = prepare(folder, model, "auto")

    def child(part: str, arguments: Sequence[str]) -> Child:
        started = Child(f"{part} of {name}", arguments, folder / f"{part}.log", variables)
        stack.callback(started.stop)
        return started

    broker = child("broker", setup.broker_arguments)
    broker.wait_until(lambda: is_listening(setup.broker_port), wait_seconds=START_SECONDS)
    (port,) = free_ports(1)
    worker = child("worker", [*setup.worker_arguments, "--port", str(port), "--threads", "1"])
    options = ["--max-edge-layers", str(max_edge_layers), "--threads", "1"]
    edge = child("edge", [*setup.edge_arguments, *options])
    ready = f"http://127.0.0.1:{port}/readyz"
    worker.wait_until(lambda: is_ready(ready), wait_seconds=START_SECONDS)
    edge.wait_until(lambda: has_broker(f"{setup.edge_url}/healthz"), wait_seconds=START_SECONDS)
    return Plant(setup.edge_url, edge, worker)


def measure(plants: dict[str, Plant], rounds: int, questions: int) -> None:
    """Ask every plant the same, in turns."""
    asked = cycle([(one.text, one.passage) for one in load_questions()])
    with httpx.Client(timeout=120.0, trust_env=False) as client:
        for plant in plants.values():
            for text, passage in islice(asked, WARM_UP):
                ask(client, plant, text, passage)
        for number in range(rounds):
            batch = list(islice(asked, questions))
            names = list(plants)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                take_turn(client, plants[name], batch)


def take_turn(client: httpx.Client, plant: Plant, batch: Sequence[tuple[str, str]]) -> None:
    """One plant's questions of a round."""
    edge_before, worker_before = cpu_seconds(plant.edge.pid), cpu_seconds(plant.worker.pid)
    for text, passage in batch:
        began = perf_counter()
        answer = ask(client, plant, text, passage)
        plant.seconds[answer["resolved_by"]].append(perf_counter() - began)
        plant.degraded += answer["degraded"]
    plant.edge_cpu_seconds += cpu_seconds(plant.edge.pid) - edge_before
    plant.worker_cpu_seconds += cpu_seconds(plant.worker.pid) - worker_before


def ask(client: httpx.Client, plant: Plant, text: str, passage: str) -> dict[str, Any]:
    """One answer."""
    body = {"question": text, "context": passage, "deadline_seconds": 60.0}
    response = client.post(f"{plant.url}/v1/answer", json=body)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def describe(plants: dict[str, Plant], asked: int) -> dict[str, Any]:
    """The document that is printed."""
    figures = {
        name: {
            "edge_answer_ms": 1e3 * statistics.median(plant.seconds["edge"] or [0.0]),
            "cloud_answer_ms": 1e3 * statistics.median(plant.seconds["cloud"] or [0.0]),
            "edge_cpu_ms": 1e3 * plant.edge_cpu_seconds / asked,
            "worker_cpu_ms": 1e3 * plant.worker_cpu_seconds / asked,
            "edge_memory_mb": resident_bytes(plant.edge.pid) / 1e6,
            "worker_memory_mb": resident_bytes(plant.worker.pid) / 1e6,
        }
        for name, plant in plants.items()
    }
    base = figures[BASE]
    cases = {
        name: {
            **{f"{key}": round(value, 2) for key, value in own.items()},
            **{
                f"{key}_share": round(value / base[key], 3) if base[key] else None
                for key, value in own.items()
            },
            "answered_by_cloud": len(plants[name].seconds["cloud"]),
            "degraded": plants[name].degraded,
        }
        for name, own in figures.items()
    }
    return {"questions_a_case": asked, "shares_are_of": BASE, "cases": cases}


def time_spans() -> dict[str, Any]:
    """Processor time of a device's spans of one offloaded question, on and off, in this thread."""
    with run_collector(answers=True) as collector:
        settings = TracingSettings(is_on=True, endpoint=collector.url)
        tracing = open_tracing(settings, service="elma-edge", name="timing")
        begin_cpu = time.thread_time()
        for _ in range(SPAN_ROUNDS):
            make_spans(None if tracing is None else tracing.begin("question", None, request_id="q"))
        on = time.thread_time() - begin_cpu
        begin_cpu = time.thread_time()
        for _ in range(SPAN_ROUNDS):
            make_spans(None)
        off = time.thread_time() - begin_cpu
        if tracing is not None:
            tracing.close(FLUSH_SECONDS)
    return {
        "device_spans_a_question": DEVICE_SPANS,
        "making_them_ms": round(1e3 * on / SPAN_ROUNDS, 4),
        "not_making_them_ms": round(1e3 * off / SPAN_ROUNDS, 4),
    }


def make_spans(question: Span | None) -> None:
    """What an agent does for one question: a span, and eight below it."""
    for _ in range(DEVICE_SPANS - 1):
        finish(begin(question, "part", windows=1, release="0" * 64), bytes=3)
    finish(question, worker="north", publications=1, bytes_sent=3)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND


def resident_bytes(pid: int) -> int:
    """Memory of a process now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def run_collector(*, answers: bool) -> Iterator[Collector]:
    """A receiver that counts what it gets and forgets it, and answers or never does."""
    ending, collector = threading.Event(), Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.bytes += len(self.rfile.read(int(self.headers["Content-Length"])))
            if not answers:
                ending.wait()
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A sender that went away."""

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            collector.url = f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
            yield collector
        finally:
            ending.set()
            server.shutdown()


if __name__ == "__main__":
    typer.run(main)
