"""`elma bench frontier`: what each way to answer costs and is worth, under several links.

In: a model, questions, the device's last layer. Out: for every link and every way F1, HasAns,
NoAns, p50, p95, bytes and offload rate; a table and a picture. Neighbours: `frontier_quality` reads
all questions, `frontier_plant` runs real processes, `frontier_rows` puts rows together, `links`
names the links.

Times. Every way is measured on loopback with real processes, the questions in turn. Under another
link a question takes that time and what the link adds to it: the round trip, and the bytes that
really crossed divided by the rate (`Link.seconds`). Real questions through the shaped link check
this; the result says how many, and by how much the two differ. Random and oracle are put together
from measured questions in the same way: nobody can run an oracle.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cloud_worker.training.squad_files import Question
from elma.bench import links as link_module
from elma.bench.frontier_plant import (
    FULL_DEPTH,
    TEXT,
    Asking,
    Plant,
    PlantPlan,
    running_plant,
)
from elma.bench.frontier_quality import Quality, measure_quality
from elma.bench.frontier_report import draw, find_better, markdown_of
from elma.bench.frontier_rows import Way, auto_codec, make_ways, row_of, seconds_over
from elma.bench.links import LINKS, Link
from elma.bench.machine import describe_machine, read_energy_joules
from elma.bench.questions import BenchQuestions
from elma.bench.results import write_results
from elma.bench.slow_device import SlowDown
from reader.codecs import TOKENS
from reader.model import Reader
from reader.weights import resolve_model_folder

CHECK_SECONDS = 8.0


@dataclass(frozen=True)
class FrontierPlan:
    """What is measured. `codecs` None takes every codec but fp32."""

    model: str
    edge_layers: int | None = None
    codecs: tuple[str, ...] | None = None
    threads: int = 1
    cloud_threads: int = 2
    questions: int = 60
    f1_questions: int = 500
    links: tuple[Link, ...] = LINKS
    check_seconds: float = CHECK_SECONDS
    device_share: float = 1.0

    @property
    def result_name(self) -> str:
        """Of its files: a slow device's results stand beside those of this machine."""
        return "frontier" if self.device_share == 1.0 else "frontier-slow"


@dataclass(frozen=True)
class Times:
    """What real processes came to; `checks`: how far the sums over a link are from the truth."""

    ways: Sequence[Way]
    joules: Mapping[str, float]
    checks: Sequence[dict[str, Any]]


def run_frontier_bench(
    plan: FrontierPlan,
    questions: BenchQuestions,
    *,
    out: Path | None,
    progress: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """Measure quality, then times. Raises CommandError, `BrokerError`, `ModelFolderError`."""
    folder = resolve_model_folder(plan.model).resolve()
    reader = Reader.load(folder, threads=plan.threads + plan.cloud_threads)
    edge_layers = plan.edge_layers or reader.settings.default_edge_layers
    codecs = (*reader.codecs.names(edge_layers), TOKENS)
    wanted = plan.codecs or tuple(name for name in codecs if name != "fp32")
    asked = questions.spread(plan.f1_questions)
    progress(f"reading {len(asked.questions)} questions")
    quality = measure_quality(
        reader, asked.questions, codecs=wanted, edge_layers=edge_layers, progress=progress
    )
    states = [name for name in wanted if name != TOKENS] or ["int8"]
    plant_plan = PlantPlan(
        folder, edge_layers, wanted, states[-1], plan.threads, plan.cloud_threads
    )
    times = _measure_times(plan, plant_plan, asked, quality, progress)
    rows = [
        row_of(way, link, quality, times.joules.get(way.name))
        for link in plan.links
        for way in times.ways
    ]
    result = {
        "model": folder.name,
        "release": reader.digest,
        "data": questions.source,
        "questions": len(asked.spread(plan.questions).questions),
        "f1_questions": len(asked.questions),
        "edge_layers": edge_layers,
        "cloud_threads": plan.cloud_threads,
        "device_share": plan.device_share,
        "shaping": link_module.NAME,
        "energy": "RAPL" if times.joules else "this machine reports none",
        "machine": describe_machine(plan.threads),
        "rows": rows,
        "checks": times.checks,
        "auto": {link.name: auto_codec(reader, edge_layers, link) for link in plan.links},
        "text_wins": find_better(rows, TEXT),
        "edge_wins": find_better(rows, FULL_DEPTH),
    }
    if out is not None:
        write_results(out, plan.result_name, result, markdown_of(result))
        draw(result, out / f"{plan.result_name}.png")
    return result


def _measure_times(
    plan: FrontierPlan,
    plant_plan: PlantPlan,
    asked: BenchQuestions,
    quality: Quality,
    progress: Callable[[str], None],
) -> Times:
    """Some of the `asked` questions, of everybody on loopback and through every shaped link."""
    timed = asked.spread(plan.questions).questions
    rank = {question.id: number for number, question in enumerate(asked.questions)}
    with tempfile.TemporaryDirectory(prefix="elma-bench-") as scratch:
        progress("starting a broker, a worker, a text service and the devices")
        loopback = Link("loopback", None, 0.0)
        with (
            running_plant(plant_plan, Path(scratch), loopback) as plant,
            SlowDown(plant.device_ids, plan.device_share),
        ):
            askings, joules = ask_all(plant, timed, progress)
            numbers = [rank[question.id] for question in timed]
            ways = make_ways(quality, askings, plant_plan.codecs, numbers)
            checks = [
                check_link(plant, link, timed, askings, plan.check_seconds, progress)
                for link in plan.links
                if link.bits_per_second is not None
            ]
    return Times(ways, joules, checks)


def ask_all(
    plant: Plant, questions: Sequence[Question], progress: Callable[[str], None]
) -> tuple[dict[str, list[Asking]], dict[str, float]]:
    """Every question of everybody in turn, on loopback; with the joules a question by name, where
    the machine reports energy."""
    askings: dict[str, list[Asking]] = {name: [] for name in plant.names}
    joules: dict[str, float] = dict.fromkeys(plant.names, 0.0)
    for name in plant.names:  # the first question of a process pays for first-time work
        plant.ask(name, questions[0])
    has_energy = read_energy_joules() is not None
    for number, question in enumerate(questions):
        for name in plant.names:
            before = read_energy_joules() or 0.0
            askings[name].append(plant.ask(name, question))
            joules[name] += (read_energy_joules() or 0.0) - before
        if number % 20 == 19:
            progress(f"asked {number + 1} of {len(questions)} questions of everybody")
    if not has_energy:
        return askings, {}
    return askings, {name: total / len(questions) for name, total in joules.items()}


def check_link(
    plant: Plant,
    link: Link,
    questions: Sequence[Question],
    askings: Mapping[str, Sequence[Asking]],
    budget_seconds: float,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Ask some questions through the shaped link, and compare with what was put together.

    Every device with a cloud behind it and the text service have their turn until
    `budget_seconds` are over, with at least one question each.
    """
    progress(f"real questions over {link.name}")
    plant.set_link(link)
    names = [name for name in plant.names if askings[name][0].by_cloud or name.startswith("ours")]
    differences, count = [], 0
    end = time.monotonic() + budget_seconds
    for place, question in enumerate(questions):
        for name in names:
            if not askings[name][place].by_cloud:
                continue
            measured = plant.ask(name, question)
            if not measured.by_cloud:
                continue
            expected = seconds_over(link, askings[name][place])
            differences.append(measured.seconds / expected - 1)
            count += 1
        if time.monotonic() > end:
            break
    return {
        "link": link.name,
        "questions": count,
        "median_difference_percent": round(100 * median(differences), 1) if count else None,
        "largest_difference_percent": round(100 * max(differences, key=abs), 1) if count else None,
    }
