"""Many questions at once to one edge, shared by several workers: who answers, and how fast.

    python benchmarks/two_workers.py --data dev.json.gz --questions 200 --workers 2 --json

Starts a broker, the workers and an edge with `max_edge_layers = 3` as processes on this machine,
sends every question at once, each from a client of its own, and counts. Without `--data` (a SQuAD
file) the questions of the shipped demonstration are asked over and over. Exit status 0 only if
every question got exactly one answer. Times are from the client: sending to the whole answer.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from elma.demonstration.passages import load_questions
from elma.demonstration.processes import Child, signals_raise
from elma.demonstration.scenario import has_broker, is_listening, is_ready
from elma.demonstration.setup import Setup, free_ports, prepare
from elma.output import CommandError, JsonOption, print_json, print_status, print_table

START_SECONDS = 120.0
CLIENT_GRACE_SECONDS = 60.0
ANSWERED = 'elma_worker_requests_total{outcome="answered"} '

Asked = tuple[str, str]


def main(
    data: Annotated[Path | None, typer.Option(help="SQuAD JSON file, plain or gzipped.")] = None,
    questions: Annotated[int, typer.Option(min=1, max=250, help="How many at once.")] = 200,
    workers: Annotated[int, typer.Option(min=1, max=16, help="How many workers.")] = 2,
    model: Annotated[str, typer.Option(help="Model folder, or elma-small.")] = "elma-small",
    max_edge_layers: Annotated[int, typer.Option(help="Deepest layer of the edge.")] = 3,
    deadline_seconds: Annotated[float, typer.Option(help="Deadline of each question.")] = 60.0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each worker.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Measure, and print one table or one JSON document."""
    asked = choose_questions(data, questions)
    with signals_raise(), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="elma-load-")))
        setup = prepare(folder, model, "auto")
        children: list[Child] = []
        try:
            urls = start(setup, stack, children, workers, threads, max_edge_layers)
            print_status(f"asking {len(asked)} questions at once")
            result = measure(setup, urls, asked, deadline_seconds)
        except CommandError:
            for child in children:
                print_status(child.log_tail())
            raise
    if as_json:
        print_json(result)
    else:
        print_table(("what", "value"), [(name, str(value)) for name, value in result.items()])
    raise typer.Exit(0 if result["lost"] == 0 else 1)


def choose_questions(data: Path | None, count: int) -> list[Asked]:
    """`count` questions with their passages, spread evenly over the file."""
    if data is None:
        shipped = [(question.text, question.passage) for question in load_questions()]
        return list(islice(cycle(shipped), count))
    from cloud_worker.training.squad_files import read_squad

    read = read_squad(data)
    step = max(1, len(read) // count)
    return [(question.question, question.context) for question in read[::step][:count]]


def start(
    setup: Setup,
    stack: ExitStack,
    children: list[Child],
    workers: int,
    threads: int,
    max_edge_layers: int,
) -> dict[str, str]:
    """Start broker, workers and edge; returns each worker's address by its name."""

    def child(name: str, arguments: Sequence[str]) -> Child:
        started = Child(name, arguments, setup.folder / f"{name}.log")
        stack.callback(started.stop)
        children.append(started)
        return started

    print_status(f"starting a broker, {workers} workers and an edge")
    broker = child("broker", setup.broker_arguments)
    broker.wait_until(lambda: is_listening(setup.broker_port), wait_seconds=START_SECONDS)
    urls, waiting = {}, []
    for number, port in enumerate(free_ports(workers), 1):
        name = f"worker-{number}"
        options = ["--name", name, "--port", str(port), "--threads", str(threads)]
        waiting.append((child(name, [*setup.worker_arguments, *options]), port))
        urls[name] = f"http://127.0.0.1:{port}"
    edge = child("edge", [*setup.edge_arguments, "--max-edge-layers", str(max_edge_layers)])
    for worker, port in waiting:
        ready = partial(is_ready, f"http://127.0.0.1:{port}/readyz")
        worker.wait_until(ready, wait_seconds=START_SECONDS)
    edge.wait_until(lambda: has_broker(f"{setup.edge_url}/healthz"), wait_seconds=START_SECONDS)
    return urls


def measure(
    setup: Setup, urls: dict[str, str], asked: Sequence[Asked], deadline_seconds: float
) -> dict[str, Any]:
    """Ask everything at once and count what comes back."""
    begin = time.monotonic()
    timeout = httpx.Timeout(deadline_seconds + CLIENT_GRACE_SECONDS)
    with (
        httpx.Client(
            base_url=setup.edge_url,
            timeout=timeout,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        ) as client,
        ThreadPoolExecutor(max_workers=len(asked)) as pool,
    ):

        def ask(question: Asked) -> tuple[dict[str, Any] | None, float]:
            body = {
                "question": question[0],
                "context": question[1],
                "deadline_seconds": deadline_seconds,
            }
            sent = time.monotonic()
            try:
                response = client.post("/v1/answer", json=body)
            except httpx.HTTPError:
                return None, time.monotonic() - sent
            answer = response.json() if response.status_code == httpx.codes.OK else None
            return answer, time.monotonic() - sent

        results = list(pool.map(ask, asked))
    elapsed = time.monotonic() - begin
    answers = [answer for answer, _ in results if answer is not None]
    seconds = sorted(taken for answer, taken in results if answer is not None)
    return {
        "model": answers[0]["model"] if answers else setup.model,
        "broker": setup.broker_kind,
        "questions": len(asked),
        "answered": len(answers),
        "lost": len(asked) - len({answer["request_id"] for answer in answers}),
        "resolved_by": dict(Counter(answer["resolved_by"] for answer in answers)),
        "degraded": sum(answer["degraded"] for answer in answers),
        "answered_by_worker": {name: answered_by(url) for name, url in urls.items()},
        "p50_seconds": percentile(seconds, 0.50),
        "p95_seconds": percentile(seconds, 0.95),
        "all_seconds": round(elapsed, 3),
        "bytes_sent_mean": round(
            sum(answer["bytes_sent"] for answer in answers) / max(1, len(answers))
        ),
    }


def answered_by(url: str) -> int:
    """How many requests a worker has answered, from its metrics."""
    text = httpx.get(f"{url}/metrics", timeout=10.0, trust_env=False).text
    lines = [line for line in text.splitlines() if line.startswith(ANSWERED)]
    return int(float(lines[0].removeprefix(ANSWERED))) if lines else 0


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of all do not exceed."""
    if not ordered:
        return None
    return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 3)


if __name__ == "__main__":
    typer.run(main)
