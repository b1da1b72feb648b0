"""The pictures of the dashboards in docs/figures: a plant under load, watched by a real Prometheus.

    python -m benchmarks.watch_pictures [--seconds 420] [--data dev.json]

One broker, two workers, three devices and the rollout service on this machine; a client a device
asks one question after the other. A third of the way the channel gets another model, at two thirds
a worker is killed. Then every panel of `deploy/watch/panels.py` is drawn from its own queries.

Prometheus runs with `deploy/prometheus`, only more often; it has to be installed (Debian:
`apt-get install prometheus`). Neighbours: `release_plant` has the processes, `deploy.watch` draws.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from benchmarks.release_plant import Edge, Plant, answers, say, wait_until
from deploy.watch.__main__ import ROOT
from deploy.watch.panels import DASHBOARDS
from deploy.watch.pictures import draw
from elma.demonstration.passages import load_questions
from elma.demonstration.processes import Child
from elma.demonstration.setup import LOOPBACK, free_ports

EDGES, WORKERS = ("kitchen", "hall", "cellar"), ("north", "south")
MODELS = ROOT / "reader" / "models"
FIRST_MODEL, NEXT_MODEL = str(MODELS / "elma-small"), str(MODELS / "elma-fast")
PAUSE_SECONDS = 0.15

Targets = Mapping[str, list[tuple[str, dict[str, str]]]]
"""File name below `targets/`, without its ending -> (URL of a service, labels)."""


def main() -> None:
    """Run the plant, then draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=420.0)
    parser.add_argument("--data", type=Path, help="SQuAD JSON; default: the packaged questions")
    options = parser.parse_args()
    questions = read_questions(options.data)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        plant = Plant(Path(folder), stack)
        for name in EDGES:
            plant.edge(name, model=FIRST_MODEL, max_edge_layers=5, audit={"rate": 0.1})
        for name in WORKERS:
            plant.worker(name, FIRST_MODEL)
        for edge in plant.edges.values():
            wait_until(partial(getattr, edge, "release"), f"{edge.name} answers")
        publisher_url = start_rollout(plant, stack)
        targets: Targets = {
            "workers": [(url, {}) for url in plant.worker_urls.values()],
            "edges": [(edge.url, {"edge": edge.name}) for edge in plant.edges.values()],
            "publishers": [(publisher_url, {"channel": "stable"})],
        }
        url = stack.enter_context(prometheus(Path(folder) / "prometheus", targets))
        started = time.monotonic()
        with load(list(plant.edges.values()), questions):
            live_through(plant, options.seconds)
            spent_seconds = time.monotonic() - started
            for dashboard in DASHBOARDS:
                path = ROOT / "docs" / "figures" / f"watch-{dashboard.name}.png"
                draw(dashboard, url, spent_seconds, path)
                say(f"drew {path.relative_to(ROOT)}")


def live_through(plant: Plant, seconds: float) -> None:
    """What happens while the load goes on."""
    started = time.monotonic()
    plant.publish(FIRST_MODEL)
    time.sleep(max(0.0, started + seconds / 3 - time.monotonic()))
    say("another model")
    plant.publish(NEXT_MODEL, "--force", "--stage", "25%")
    time.sleep(max(0.0, started + seconds * 2 / 3 - time.monotonic()))
    say("a worker less")
    plant.workers["south"].stop()
    time.sleep(max(0.0, started + seconds - time.monotonic()))


def start_rollout(plant: Plant, stack: ExitStack) -> str:
    """`elma rollout run`; the address of its metrics."""
    [port] = free_ports(1)
    stages = ["--stages", "25%,100%", "--hold-seconds", "30"]
    child = Child(
        "rollout",
        ["rollout", "run", *stages, "--port", str(port), *plant.publisher_options],
        plant.folder / "rollout.log",
    )
    stack.callback(child.stop)
    url = f"http://{LOOPBACK}:{port}"
    wait_until(lambda: answers(f"{url}/metrics"), "the rollout service's metrics")
    return url


@contextmanager
def prometheus(folder: Path, targets: Targets) -> Iterator[str]:
    """A Prometheus with the committed configuration and these targets; its address."""
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("prometheus is not installed; Debian: apt-get install prometheus")
    shutil.copytree(ROOT / "deploy" / "prometheus", folder)
    config = folder / "prometheus.yml"
    config.write_text(config.read_text("utf-8").replace("interval: 15s", "interval: 2s"), "utf-8")
    for name, entries in targets.items():
        content = [{"targets": [urlsplit(url).netloc], "labels": labels} for url, labels in entries]
        (folder / "targets" / f"{name}.yml").write_text(json.dumps(content), encoding="utf-8")
    [port] = free_ports(1)
    url = f"http://{LOOPBACK}:{port}"
    command = [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={LOOPBACK}:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - found above
    try:
        wait_until(lambda: answers(f"{url}/-/ready"), "Prometheus ready")
        yield url
    finally:
        process.terminate()
        process.wait(30.0)


@contextmanager
def load(edges: list[Edge], questions: list[tuple[str, str]]) -> Iterator[None]:
    """Clients that ask, one a device, until the end of the block."""
    stopping = threading.Event()

    def ask(edge: Edge, first: int) -> None:
        for text, passage in cycle(questions[first:] + questions[:first]):
            if stopping.wait(PAUSE_SECONDS):
                return
            try:
                edge.ask({"question": text, "context": passage})
            except httpx.HTTPError as error:
                say(f"{edge.name}: {error}")

    threads = [
        threading.Thread(target=ask, args=[edge, place * len(questions) // len(edges)])
        for place, edge in enumerate(edges)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def read_questions(data: Path | None) -> list[tuple[str, str]]:
    """Questions and passages of a file, or the packaged ones."""
    if data is None:
        return [(question.text, question.passage) for question in load_questions()]
    from cloud_worker.training.squad_files import read_squad

    return [(question.question, question.context) for question in read_squad(data)]


if __name__ == "__main__":
    main()
