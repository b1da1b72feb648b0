"""Turns what `elma evaluate --json` and `elma calibrate --json` printed into the Markdown of the
README and the model card, so that no figure there is typed by hand.

    elma evaluate elma-small --data DEV.json --half report --json > benchmarks/results/evaluate.json
    python benchmarks/model_table.py benchmarks/results/evaluate.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = ("exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_f1")
HEADINGS = ("EM", "F1", "HasAns EM", "HasAns F1", "NoAns F1")


def main() -> None:
    """Print the table of one evaluation."""
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print("\n".join(table(report)))


def table(report: dict[str, Any]) -> list[str]:
    """A Markdown table: every exit, the policy alone and with a worker."""
    lines = [
        f"| | layers run | {' | '.join(HEADINGS)} | HasAns F1, forced to answer |",
        "|---|---|" + "---|" * (len(HEADINGS) + 1),
    ]
    for metrics in report["exits"]:
        forced = f"{metrics['HasAns_f1_forced']:.1f}"
        lines.append(row(f"exit {metrics['layer']}", metrics["layer"], metrics, forced))
    policy, helped = report["policy"], report["with_worker"]
    lines.append(row("**exit policy**", policy["mean_exit_layer"], policy, ""))
    name = f"**{policy['max_edge_layers']} layers on the device, the rest on a worker**"
    lines.append(row(name, helped["mean_layers_run"], helped, ""))
    always_none = 100 * report["full_depth"]["NoAns_total"] / report["full_depth"]["total"]
    lines += [
        "",
        f"{report['questions']} questions ({report['full_depth']['HasAns_total']} with an answer); "
        f'always saying "no answer" scores {always_none:.1f}. Answered within '
        f"{policy['max_edge_layers']} layers, without any worker: "
        f"{100 * policy['edge_share']:.1f} % of the questions. Criterion: {policy['criterion']}. "
        f"Release {report['digest'][:12]}.",
    ]
    return lines


def row(name: str, layers: float, metrics: dict[str, Any], forced: str) -> str:
    """One line of the table."""
    cells = [f"{metrics[column]:.1f}" for column in COLUMNS]
    depth = f"{layers:.2f}" if isinstance(layers, float) else str(layers)
    return f"| {name} | {depth} | {' | '.join(cells)} | {forced} |"


if __name__ == "__main__":
    main()
