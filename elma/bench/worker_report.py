"""The worker's benchmark as a person reads it: tables and a picture.

In: the result of `worker.run_worker_bench`. Out: Markdown, a PNG. Neighbour: `worker` measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elma.bench.results import COLOURS, Table, new_figure, save_figure

THROUGH_BROKER = "ours, through a broker on the same machine"
OURS, EQUAL_DEPTH, ONE_BY_ONE = "ours", "equal depth only", "one by one"
THREE_WAYS = (ONE_BY_ONE, EQUAL_DEPTH, OURS)
PASSAGE_LOAD = 0.6


def markdown_of(result: Mapping[str, Any]) -> str:
    """The tables as a person reads them, with what they were measured on."""
    machine = result["machine"]
    lines = [
        f"{result['questions']} questions of {result['data']}, left after 1 to 11 layers; "
        f"{machine['threads']} thread(s), {machine['cpu']}; the worker's queue, scheduler and "
        "computing thread without a broker.",
    ]
    for model in result["models"]:
        lines += ["", f"**{model['name']}** ({model['computes_in']})", ""]
        lines += [_saturation_table(model).markdown(), "", _load_table(model).markdown(), ""]
        lines.append(
            f"p95 of short questions at {PASSAGE_LOAD:.0%} load: {model['p95_ms']:.0f} ms alone, "
            f"{model['p95_long_passage_ms']:.0f} ms beside a passage of "
            f"{result['plan']['passage_windows']} windows."
        )
    return "\n".join([*lines, "", *result["notes"]])


def draw(result: Mapping[str, Any], png_path: Path) -> None:
    """Throughput and p95 against arrival rate, a column a model."""
    figure = new_figure(
        f"a worker's questions a second, {result['machine']['threads']} thread(s)", height=6.0
    )
    axes = figure.subplots(2, len(result["models"]), squeeze=False, sharex="col")
    for column, model in enumerate(result["models"]):
        above, below = axes[0][column], axes[1][column]
        for number, way in enumerate(THREE_WAYS):
            rows = sorted(
                (row for row in model["rows"] if row["way"] == way),
                key=lambda row: float(row["offered_qps"]),
            )
            offered = [row["offered_qps"] for row in rows]
            style = {"color": COLOURS[number], "marker": "o", "markersize": 3}
            above.plot(offered, [row["answered_qps"] for row in rows], label=way, **style)
            shown = [(x, row["p95_ms"]) for x, row in zip(offered, rows, strict=True)]
            shown = [(x, y) for x, y in shown if y is not None]
            below.plot([x for x, _ in shown], [y for _, y in shown], **style)
        above.axhline(model["ceiling_qps"], color="grey", linestyle=":", label="ceiling, offline")
        above.set_title(model["name"], fontsize="small")
        above.set(ylabel="questions a second", xlim=(0, None), ylim=(0, None))
        below.set(xlabel="arrivals a second", ylabel="p95 (ms)", yscale="log")
        for one in (above, below):
            one.grid(alpha=0.3)
    axes[0][0].legend(fontsize="x-small")
    save_figure(figure, png_path)


def _saturation_table(model: Mapping[str, Any]) -> Table:
    """Throughput at saturation, as a share of the ceiling too."""
    ceiling, few = model["ceiling_qps"], model["few_held_qps"]
    through = model["over_broker_qps"]
    keys = {ONE_BY_ONE: "one_by_one_qps", EQUAL_DEPTH: "equal_depth_qps", OURS: "ours_qps"}
    return Table(
        ("at saturation", "questions/s", "of the ceiling", "questions/s, few held"),
        [
            ("ceiling, offline", ceiling, "100%", None),
            *(
                (way, model[key], f"{model[key] / ceiling:.0%}", few[way])
                for way, key in keys.items()
            ),
            *([(THROUGH_BROKER, through, f"{through / ceiling:.0%}", None)] if through else []),
        ],
    )


def _load_table(model: Mapping[str, Any]) -> Table:
    """Every run at its arrival rate."""
    return Table(
        ("", "load", "arrivals/s", "answered/s", "p50 ms", "p95 ms", "windows", "tokens"),
        [
            (
                row["way"],
                f"{row['load']:.0%}",
                row["offered_qps"],
                row["answered_qps"],
                row["p50_ms"],
                row["p95_ms"],
                row["batch_windows"],
                row["batch_tokens"],
            )
            for row in sorted(model["rows"], key=lambda row: float(row["load"]))
        ],
    )
