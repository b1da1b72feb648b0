"""One row of the compression table, measured in a process of its own.

    python -m cloud_worker.compress.measuring '{"folder": ..., "data": ...}'

In: a `RowRequest`. Out: one JSON object on stdout. Time and memory come first, asking questions
one at a time as a device does, so that peak memory is that of answering; then all questions are
read in batches for F1. Neighbours: `table` starts this and keeps the rows.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloud_worker.compress.report import FolderFacts, has_own_exits, read_steps
from cloud_worker.training.calibration import Request, calibrate
from cloud_worker.training.evaluation import evaluation_report
from cloud_worker.training.recording import record
from cloud_worker.training.squad_files import Question, read_squad, split_articles
from reader.exits import ExitSettings
from reader.model import Reader
from reader.walk import walk

WARM_UP_QUESTIONS = 5


@dataclass(frozen=True)
class RowRequest:
    """What to measure: `folder` on the report half of `data`.

    With `calibrate`, a folder without exits of its own gets them first, from the calibration half
    (at most 1.0 F1 lost, as `elma calibrate` does). `timed_questions` are asked one at a time.
    `limit` takes the first questions of each half; 0 takes all.
    """

    folder: str
    data: str
    calibrate: bool = False
    timed_questions: int = 100
    limit: int = 0
    threads: int = 1
    engine: str = "auto"
    precision: str = "auto"


def measure_row(request: RowRequest) -> dict[str, Any]:
    """Measure one folder; raises what loading, reading and calibrating raise."""
    folder = Path(request.folder)
    halves = split_articles(read_squad(request.data))
    tuned, reported = (half[: request.limit or None] for half in halves)
    times = _time_and_memory(request, reported)
    reader = _load(request)
    settings = reader.settings
    if request.calibrate and not has_own_exits(folder):
        edge_layers = (reader.config.layers + 1) // 2
        tuning = record(reader, tuned)
        settings = calibrate(tuning, Request(1.0, 0.9, "auto", edge_layers)).settings
        settings.save(folder)
        times = _time_and_memory(request, reported, memory=times["peak_rss_mb"])
    report = evaluation_report(
        record(reader, reported), settings, max_edge_layers=settings.default_edge_layers
    )
    return {
        "name": folder.name,
        "request": described(request),
        "facts": asdict(FolderFacts.of(folder)),
        "steps": [step["step"] for step in read_steps(folder)],
        "questions": len(reported),
        "engine": asdict(reader.engine.choice),
        "full_depth": _chosen(report["full_depth"]),
        "policy": {
            **_chosen(report["policy"]),
            "mean_exit_layer": report["policy"]["mean_exit_layer"],
            "criterion": report["policy"]["criterion"],
        },
        **times,
    }


def described(request: RowRequest) -> dict[str, Any]:
    """A request as its row keeps it: names instead of this machine's paths."""
    names = {"folder": Path(request.folder).name, "data": Path(request.data).name}
    return {**asdict(request), **names}


def _time_and_memory(
    request: RowRequest, questions: Sequence[Question], memory: float = 0.0
) -> dict[str, float]:
    """Median milliseconds a question at full depth and under the policy, one at a time and in
    turn; peak resident memory of this process up to now, unless it was measured before."""
    reader = _load(request)
    never = ExitSettings.uncalibrated(reader.config.layers)
    step = max(1, len(questions) // max(1, request.timed_questions))
    asked = list(questions[::step])[: request.timed_questions]
    spent: dict[str, list[float]] = {"full_depth_p50_ms": [], "policy_p50_ms": []}
    for number, question in enumerate([*asked[:WARM_UP_QUESTIONS], *asked]):
        for name, settings in (("full_depth_p50_ms", never), ("policy_p50_ms", reader.settings)):
            started = time.perf_counter()
            windows = reader.split(question.question, question.context)
            walk(reader, windows, settings=settings)
            if number >= WARM_UP_QUESTIONS:
                spent[name].append(1000 * (time.perf_counter() - started))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    medians = {name: round(statistics.median(values), 3) for name, values in spent.items()}
    return {**medians, "peak_rss_mb": memory or round(peak, 1)}


def _load(request: RowRequest) -> Reader:
    return Reader.load(
        request.folder,
        threads=request.threads,
        engine=request.engine,
        precision=request.precision,
    )


def _chosen(metrics: dict[str, Any]) -> dict[str, float]:
    return {
        "f1": metrics["f1"],
        "has_answer_f1": metrics.get("HasAns_f1", float("nan")),
        "no_answer_f1": metrics.get("NoAns_f1", float("nan")),
    }


if __name__ == "__main__":
    print(json.dumps(measure_row(RowRequest(**json.loads(sys.argv[1])))))
