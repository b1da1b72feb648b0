"""`elma bench worker`: questions a second against arrival rate, for three ways to batch.

In: a model, questions, threads. Out: for the model, and for one of its size whose layers share one
parameter group: the ceiling, throughput at saturation, p50 and p95 at rising load, and p95 beside a
long passage; a table and a picture. Neighbours: `worker_load` makes what arrives, `worker_core`
lets the worker's own queue, scheduler and computing thread have it without a broker between,
`worker_broker` asks a worker process through one, `worker_report` draws.

With a group a layer, as elma-small has, windows of different depths never need the same parameters,
so mixing depths can gain nothing there; the second model shows what it gains where they do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from broker.errors import BrokerMissing
from cloud_worker.releases import Releases
from cloud_worker.scheduler import BatchLimits
from elma.bench.machine import describe_machine
from elma.bench.questions import PACKAGED, BenchQuestions
from elma.bench.results import write_results
from elma.bench.worker_broker import qps_over_broker
from elma.bench.worker_core import Served, ceiling_qps, serve
from elma.bench.worker_load import (
    Arrival,
    LeftRequest,
    arrivals_at,
    leave_passage,
    leave_questions,
    make_one_group_model,
    mean_work,
    saturating,
    with_passage,
)
from elma.bench.worker_report import (
    EQUAL_DEPTH,
    ONE_BY_ONE,
    OURS,
    PASSAGE_LOAD,
    draw,
    markdown_of,
)
from reader.model import Reader
from reader.weights import resolve_model_folder

WAYS: Mapping[str, BatchLimits] = {
    ONE_BY_ONE: BatchLimits(max_windows=1),
    EQUAL_DEPTH: BatchLimits(mixes_depths=False),
    OURS: BatchLimits(),
}
SATURATION = 1.6
"""Arrival rate at saturation over the ceiling."""
CEILING_REPEATS = 1
PASSAGE_AT = 0.15
DRAIN_SECONDS = 2.0
WARM_SECONDS = 1.5

Progress = Callable[[str], None]


@dataclass(frozen=True)
class WorkerPlan:
    """What is measured, and how much of it.

    `seconds` is what each run lasts, `loads` the arrival rates over the ceiling, `held` how many
    requests a worker holds at most (`few_held`: a second bound, a low one, at saturation), and
    `broker_seconds` how long a worker process is kept full through a broker; 0 leaves that out.
    """

    model: str
    threads: int
    engine: str = "auto"
    precision: str = "auto"
    questions: int = 48
    seconds: float = 4.0
    loads: tuple[float, ...] = (0.4, 0.7, 0.9)
    held: int = 128
    few_held: int = 16
    broker_seconds: float = 5.0
    passage_windows: int = 50
    passage_run_seconds: float = 10.0
    seed: int = 0


@dataclass(frozen=True)
class Subject:
    """A loaded model with the load that is made for it."""

    name: str
    reader: Reader
    releases: Releases
    requests: Sequence[LeftRequest]
    passage: LeftRequest
    work: float


def run_worker_bench(
    plan: WorkerPlan,
    questions: BenchQuestions,
    *,
    out: Path | None,
    progress: Progress = lambda _text: None,
) -> dict[str, Any]:
    """Measure both models, and write `worker.json`, `.md` and `.png` into `out`.

    The first level of the result has the one-group model's figures: the load of mixed depths is
    one load there. Raises CommandError, `ModelFolderError` or `EngineError`.
    """
    chosen = questions.spread(plan.questions)
    shipped = resolve_model_folder(plan.model)
    with tempfile.TemporaryDirectory(prefix="elma-bench-") as folder:
        one_group = make_one_group_model(shipped, Path(folder) / "one-group", plan.seed)
        names = {
            shipped.name: shipped,
            f"random weights, one group, like {shipped.name}": one_group,
        }
        models = []
        for name, model in names.items():
            progress(f"{name}: preparing")
            subject = _prepare(plan, name, model, chosen)
            models.append(_measure(plan, subject, progress))
            progress(f"{name}: through a broker")
            models[-1]["over_broker_qps"] = _over_broker(plan, subject, model)
    result: dict[str, Any] = {
        "data": chosen.source,
        "questions": len(chosen.questions),
        "machine": describe_machine(plan.threads),
        "plan": asdict(plan),
        "notes": _notes(chosen),
        "models": models,
        **{key: models[1][key] for key in _HEADLINE},
    }
    if out is not None:
        write_results(out, "worker", result, markdown_of(result))
        draw(result, out / "worker.png")
    return result


_HEADLINE = (
    "ceiling_qps",
    "ours_qps",
    "equal_depth_qps",
    "one_by_one_qps",
    "p95_ms",
    "p95_long_passage_ms",
)


def _prepare(plan: WorkerPlan, name: str, model: Path, questions: BenchQuestions) -> Subject:
    reader = Reader.load(model, threads=plan.threads, engine=plan.engine, precision=plan.precision)
    requests = leave_questions(reader, questions, plan.seed)
    return Subject(
        name,
        reader,
        Releases([reader]),
        requests,
        leave_passage(reader, questions, plan.passage_windows),
        mean_work(requests, reader.config.layers),
    )


def _measure(plan: WorkerPlan, subject: Subject, progress: Progress) -> dict[str, Any]:
    """Everything about one model."""
    progress(f"{subject.name}: ceiling")
    ceiling = ceiling_qps(subject.reader, subject.requests, CEILING_REPEATS)
    warm = replace(plan, seconds=min(plan.seconds, WARM_SECONDS))
    _saturate(warm, subject, OURS, ceiling, plan.held)  # engines compile for sizes they first see
    few: dict[str, float] = {}
    full: dict[str, Served] = {}
    rows: list[dict[str, Any]] = []
    for way in WAYS:
        progress(f"{subject.name}: {way}, saturated")
        full[way] = _saturate(plan, subject, way, ceiling, plan.held)
        few[way] = _saturate(plan, subject, way, ceiling, plan.few_held).answered_qps
        rows.append(_row(way, SATURATION, SATURATION * ceiling, full[way]))
    # Once more, after the machine has been busy for a while: the better one is the ceiling.
    ceiling = max(ceiling, ceiling_qps(subject.reader, subject.requests, CEILING_REPEATS))
    for load in plan.loads:
        for way in WAYS:
            progress(f"{subject.name}: {way} at {load:.0%} of the ceiling")
            arrivals = arrivals_at(subject.requests, load * ceiling, plan.seconds, plan.seed)
            served = _serve(plan, subject, way, arrivals, plan.seconds)
            rows.append(_row(way, load, served.offered_qps, served))
    progress(f"{subject.name}: a long passage")
    alone, beside = _beside_passage(plan, subject, ceiling)
    choice = subject.reader.engine.choice
    return {
        "name": subject.name,
        "computes_in": f"{choice.name} {choice.precision}, {choice.threads} thread(s)",
        "groups": subject.reader.config.groups,
        "ceiling_qps": round(ceiling, 2),
        "ours_qps": round(full[OURS].answered_qps, 2),
        "equal_depth_qps": round(full[EQUAL_DEPTH].answered_qps, 2),
        "one_by_one_qps": round(full[ONE_BY_ONE].answered_qps, 2),
        "few_held_qps": {way: round(qps, 2) for way, qps in few.items()},
        "p95_ms": _milliseconds(alone),
        "p95_long_passage_ms": _milliseconds(beside),
        "long_passage_seconds": beside.passage_seconds,
        "overhead_tokens": round(subject.releases.pace(subject.reader.digest).overhead_tokens, 1),
        "rows": rows,
    }


def _saturate(plan: WorkerPlan, subject: Subject, way: str, ceiling: float, held: int) -> Served:
    arrivals = saturating(subject.requests, SATURATION * ceiling, plan.seconds, held, plan.seed)
    return serve(
        subject.releases,
        subject.reader,
        arrivals,
        WAYS[way],
        seconds=plan.seconds,
        held=held,
        mean_work=subject.work,
    )


def _serve(
    plan: WorkerPlan, subject: Subject, way: str, arrivals: Sequence[Arrival], seconds: float
) -> Served:
    return serve(
        subject.releases,
        subject.reader,
        arrivals,
        WAYS[way],
        seconds=seconds,
        held=plan.held,
        mean_work=subject.work,
        drain_seconds=DRAIN_SECONDS,
    )


def _beside_passage(plan: WorkerPlan, subject: Subject, ceiling: float) -> tuple[Served, Served]:
    """The same questions without and with a long passage among them."""
    seconds = plan.passage_run_seconds
    alone = arrivals_at(subject.requests, PASSAGE_LOAD * ceiling, seconds, plan.seed + 2)
    beside = with_passage(alone, subject.passage, PASSAGE_AT * seconds)
    return (
        _serve(plan, subject, OURS, alone, seconds),
        _serve(plan, subject, OURS, beside, seconds),
    )


def _over_broker(plan: WorkerPlan, subject: Subject, model: Path) -> float | None:
    """Throughput of a worker process; None without a broker to start, or when left out."""
    if not plan.broker_seconds:
        return None
    try:
        qps = qps_over_broker(
            model,
            subject.reader.digest,
            subject.requests,
            threads=plan.threads,
            engine=plan.engine,
            precision=plan.precision,
            seconds=plan.broker_seconds,
            held=plan.held,
            mean_work=subject.work,
        )
    except BrokerMissing:
        return None
    return round(qps, 2)


def _row(way: str, load: float, offered_qps: float, served: Served) -> dict[str, Any]:
    """One run as it is stored; at saturation latencies say only how long the run was."""
    is_saturated = load >= SATURATION
    return {
        "way": way,
        "load": load,
        "offered_qps": round(offered_qps, 2),
        "answered_qps": round(served.answered_qps, 2),
        "p50_ms": None if is_saturated else _milliseconds(served, 50),
        "p95_ms": None if is_saturated else _milliseconds(served, 95),
        "answers": len(served.seconds),
        "refused": served.refused,
        "unanswered": served.unanswered,
        "batch_tokens": round(served.batch_tokens, 1),
        "batch_windows": round(served.batch_windows, 2),
    }


def _milliseconds(served: Served, percent: float = 95) -> float | None:
    value = served.milliseconds(percent)
    return None if value is None else round(value, 1)


def _notes(questions: BenchQuestions) -> list[str]:
    notes = [
        f"At saturation arrivals come at {SATURATION} times the ceiling and the worker is full. "
        "Questions a second: the work done over the mean work of a question.",
    ]
    if questions.source == PACKAGED:
        notes.append("The packaged passages are few, so lengths hardly vary; give --data.")
    return notes
