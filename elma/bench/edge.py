"""`elma bench edge`: how long a question takes, beside what a user would pick instead.

In: a model folder, perhaps its compressed forms, questions, threads. Out: p50, p95, F1 and memory
of every row, the two ratios that matter, a table and a picture. Neighbours: `exporting` makes the
peers' files, `contest` runs everybody in turn, `f1_store` keeps what takes minutes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud_worker.training.squad_metrics import squad_metrics
from elma.bench.contest import Timing, collect_answers, hold_contest
from elma.bench.contestants import Entry
from elma.bench.exporting import PeerFolders, make_peers, require_onnx
from elma.bench.f1_store import F1Store, key_of
from elma.bench.machine import describe_machine
from elma.bench.questions import PACKAGED, PACKAGED_NOTE, BenchQuestions
from elma.bench.results import COLOURS, Table, new_figure, percentile, save_figure, write_results
from elma.output import CommandError
from reader.exits import ExitSettings
from reader.weights import (
    SHIPPED_MODELS,
    folder_digest,
    load_config,
    resolve_model_folder,
    shipped_model_folder,
)

PADDED = "transformers fp32, padded to 384"
UNPADDED = "transformers fp32, unpadded"
ONNX_FP32 = "ONNX Runtime fp32, unpadded"
ONNX_INT8 = "ONNX Runtime int8, unpadded"
ONNX_INT8_PER_CHANNEL = "ONNX Runtime int8 per channel, unpadded"
OURS = "elma, all together"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class EdgePlan:
    """What is measured: the model, its compressed form ("all together" is that one), forms with a
    single step by name, and how much of it."""

    model: str
    compressed: str | None = None
    steps: Mapping[str, str] | None = None
    threads: int = 1
    isa: str = "native"
    questions: int = 150
    f1_questions: int = 300
    repeats: int = 1
    with_onnx: bool = True


def run_edge_bench(
    plan: EdgePlan,
    questions: BenchQuestions,
    *,
    out: Path | None,
    progress: Progress = lambda _text: None,
) -> dict[str, Any]:
    """Measure every row; writes the table and the picture into `out`.

    Raises CommandError and `ModelFolderError`.
    """
    if plan.with_onnx:
        require_onnx()
    base = resolve_model_folder(plan.model)
    settings = ExitSettings.load(base) or ExitSettings.uncalibrated(load_config(base).layers)
    threshold = settings.no_answer_thresholds[-1]
    store = F1Store(None if out is None else out / "f1-store.json")
    with tempfile.TemporaryDirectory(prefix="elma-bench-") as scratch:
        folder = Path(scratch)
        progress("writing the weights for the peers")
        entries = make_entries(plan, base, make_peers(base, folder, with_onnx=plan.with_onnx))
        timed = questions.spread(plan.questions)
        timings = hold_contest(
            entries,
            _write(timed, folder / "timed.json"),
            len(timed.questions),
            threads=plan.threads,
            no_answer_threshold=threshold,
            isa=plan.isa,
            repeats=plan.repeats,
            progress=progress,
        )
        scores = _scores(plan, entries, timings, threshold, questions, store, folder, progress)
    result = _result(plan, base, timed, questions.spread(plan.f1_questions), timings, scores)
    if out is not None:
        name = f"edge-{plan.threads}" + ("" if plan.isa == "native" else f"-{plan.isa}")
        write_results(out, name, result, markdown_of(result))
        draw(result, out / f"{name}.png")
    return result


def make_entries(plan: EdgePlan, base: Path, peers: PeerFolders) -> list[Entry]:
    """The rows, the peers first; ours one step after another, then all together."""
    hugging_face = str(peers.hugging_face)
    rows = [
        Entry(PADDED, "transformers", hugging_face, is_padded=True),
        Entry(UNPADDED, "transformers", hugging_face),
    ]
    for name, folder, precision in (
        (ONNX_FP32, peers.onnx_fp32, "fp32"),
        (ONNX_INT8, peers.onnx_int8, "int8"),
        (ONNX_INT8_PER_CHANNEL, peers.onnx_int8_per_channel, "int8"),
    ):
        if folder is not None:
            rows.append(Entry(name, "onnxruntime", str(folder), precision=precision))
    ours = str(base)
    rows += [
        Entry("elma fp32, full depth", "elma", ours, engine="torch", precision="fp32", exits=False),
        Entry("elma bf16, full depth", "elma", ours, engine="torch", precision="bf16", exits=False),
        Entry("elma int8, full depth", "elma", ours, engine="torch", precision="int8", exits=False),
        Entry("elma fp32 + exits", "elma", ours, engine="torch", precision="fp32"),
        Entry("elma, best precision + exits", "elma", ours, engine="torch"),
    ]
    for name, model in (plan.steps or {}).items():
        rows.append(Entry(f"the same + {name}", "elma", _folder(model), engine="torch"))
    everything = str(base) if plan.compressed is None else _folder(plan.compressed)
    rows.append(Entry(OURS, "elma", everything))
    if plan.with_onnx:
        rows.append(Entry(f"{OURS}, onnx engine", "elma", everything, engine="onnx"))
    return rows


def ratios_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """How many times our p50 goes into that of each peer; None where the peer was left out."""
    p50 = {row["name"]: row["p50_ms"] for row in rows}
    ratios: dict[str, float | None] = {}
    for key, name in (("padded_fp32", PADDED), ("onnx_int8", ONNX_INT8)):
        ratios[key] = round(p50[name] / p50[OURS], 2) if name in p50 else None
    return ratios


def markdown_of(result: Mapping[str, Any]) -> str:
    """The table as a person reads it, with what it was measured on."""
    machine, ratios = result["machine"], result["ratios"]
    table = Table(
        ("", "p50 ms", "p95 ms", "F1", "HasAns F1", "peak MB", "computes in"),
        [
            (
                row["name"],
                row["p50_ms"],
                row["p95_ms"],
                row["f1"],
                row["has_answer_f1"],
                row["rss_mb"],
                f"{row['engine']} {row['precision']}",
            )
            for row in result["rows"]
        ],
    )
    lines = [
        f"{result['model']} on {result['questions']} questions of {result['data']}, "
        f"{machine['threads']} thread(s), instruction set {machine['isa']}, {machine['cpu']}; "
        f"F1 on {result['f1_questions']} questions."
        + (f" All together: {result['compressed']}." if result["compressed"] else ""),
        "",
        table.markdown(),
        "",
        *(
            f"{ratio:.1f} times as fast as {name} (p50)."
            for name, ratio in ((PADDED, ratios["padded_fp32"]), (ONNX_INT8, ratios["onnx_int8"]))
            if ratio is not None
        ),
        *result["notes"],
    ]
    return "\n".join(lines)


def draw(result: Mapping[str, Any], png_path: Path) -> None:
    """Time against F1, a point a row."""
    figure = new_figure(
        f"{result['model']}: time and F1 of a question, {result['machine']['threads']} thread(s)"
    )
    axes = figure.add_subplot()
    for number, row in enumerate(result["rows"]):
        is_ours = row["name"].startswith(("elma", "the same"))
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(row["p50_ms"], row["f1"], "o" if is_ours else "s", color=colour)
        axes.plot([row["p50_ms"], row["p95_ms"]], [row["f1"]] * 2, color=colour, alpha=0.4)
        axes.plot([], [], "o" if is_ours else "s", color=colour, label=row["name"])
    axes.set(xlabel="milliseconds, p50 to p95", ylabel="F1 (%)", xscale="log")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right upper", fontsize="x-small")
    save_figure(figure, png_path)


def _scores(
    plan: EdgePlan,
    entries: Sequence[Entry],
    timings: Mapping[str, Timing],
    threshold: float,
    questions: BenchQuestions,
    store: F1Store,
    folder: Path,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """The metrics of every row, from the store or by asking every question."""
    asked = questions.spread(plan.f1_questions)
    keys = {
        entry.name: key_of(
            entry, timings[entry.name].choice, _weights_of(plan, entry), asked, threshold, plan.isa
        )
        for entry in entries
    }
    scores = {name: found for name, key in keys.items() if (found := store.get(key)) is not None}
    missing = [entry for entry in entries if entry.name not in scores]
    if not missing:
        return scores
    progress(f"F1 of {len(missing)} rows on {len(asked.questions)} questions")
    answers = collect_answers(
        missing,
        _write(asked, folder / "asked.json"),
        len(asked.questions),
        no_answer_threshold=threshold,
        isa=plan.isa,
        progress=progress,
    )
    identifiers = [question.id for question in asked.questions]
    for name, texts in answers.items():
        metrics = squad_metrics(asked.questions, dict(zip(identifiers, texts, strict=True)))
        scores[name] = {key: float(value) for key, value in metrics.items()}
        store.put(keys[name], scores[name])
    return scores


def _weights_of(plan: EdgePlan, entry: Entry) -> str:
    """The digest of the weights: the peers' are those of the model itself."""
    folder = Path(entry.folder) if entry.kind == "elma" else resolve_model_folder(plan.model)
    return folder_digest(folder)


def _result(
    plan: EdgePlan,
    base: Path,
    timed: BenchQuestions,
    asked: BenchQuestions,
    timings: Mapping[str, Timing],
    scores: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    rows = [
        {
            "name": name,
            "p50_ms": round(percentile(timing.milliseconds, 50), 3),
            "p95_ms": round(percentile(timing.milliseconds, 95), 3),
            "f1": round(scores[name]["f1"], 2),
            "exact": round(scores[name]["exact"], 2),
            "has_answer_f1": _rounded(scores[name].get("HasAns_f1")),
            "no_answer_f1": _rounded(scores[name].get("NoAns_f1")),
            "rss_mb": timing.memory["peak_mb"],
            "rss_answering_mb": timing.memory["rss_mb"],
            "engine": timing.choice["engine"],
            "precision": timing.choice["precision"],
        }
        for name, timing in timings.items()
    ]
    return {
        "model": base.name,
        "release": folder_digest(base),
        "compressed": (
            None if plan.compressed is None else _name_of(Path(_folder(plan.compressed)))
        ),
        "data": timed.source,
        "questions": len(timed.questions),
        "f1_questions": len(asked.questions),
        "repeats": plan.repeats,
        "machine": describe_machine(plan.threads, plan.isa),
        "notes": _notes(plan, timed),
        "rows": rows,
        "ratios": ratios_of(rows),
    }


def _notes(plan: EdgePlan, timed: BenchQuestions) -> list[str]:
    notes = []
    if timed.source == PACKAGED:
        notes.append(f"{PACKAGED_NOTE[0].upper()}{PACKAGED_NOTE[1:]}; give --data.")
    if plan.isa != "native" and plan.with_onnx:
        notes.append(
            f"ONNX Runtime has no switch for its instruction set: its rows and our onnx engine ran "
            f"at full speed beside rows held to {plan.isa}."
        )
    return notes


def _name_of(folder: Path) -> str:
    return f"{folder.name}@{folder_digest(folder)[:12]}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _folder(model: str) -> str:
    folder = Path(model)
    if folder.is_dir():
        return str(folder)
    if model in SHIPPED_MODELS:
        return str(shipped_model_folder(model))
    raise CommandError(f"{model} is no model folder; `elma compress` makes one", exit_status=2)


def _write(questions: BenchQuestions, path: Path) -> Path:
    """Only what is asked: a contestant never sees the right answer."""
    pairs = [[question.question, question.context] for question in questions.questions]
    path.write_text(json.dumps(pairs), encoding="utf-8")
    return path
