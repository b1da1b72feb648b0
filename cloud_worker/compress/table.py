"""The compression table: a row a model folder, each measured in a process of its own.

In: model folders and a question file. Out: a JSON file of rows, which grows row by row so that an
interrupted run goes on where it stopped, and a Markdown table, written between two markers of a
document. Neighbours: `measuring` measures a row.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cloud_worker.compress.measuring import RowRequest, described
from cloud_worker.compress.steps import CompressionError
from reader.weights import folder_digest

BEGIN, END = "<!-- compression table: begin -->", "<!-- compression table: end -->"
ROW_SECONDS = 3600.0  # the longest that a row may take
HEADINGS = (
    "model",
    "steps",
    "MB",
    "F1",
    "HasAns",
    "NoAns",
    "F1, exits",
    "HasAns",
    "NoAns",
    "criterion",
    "mean exit layer",
    "ms, full depth",
    "ms, exits",
    "peak MB",
)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows measured so far; raises `CompressionError` for a file that holds something else."""
    if not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise CompressionError(f"{path} holds no compression table; give another file") from error


def find_row(rows: Sequence[dict[str, Any]], request: RowRequest) -> dict[str, Any] | None:
    """The row that this request would give, if it was measured on these very weights."""
    digest = folder_digest(Path(request.folder))
    for row in rows:
        if row["facts"]["digest"] == digest and row["request"] == described(request):
            return row
    return None


def measure_in_a_process(request: RowRequest) -> dict[str, Any]:
    """A row, measured by a fresh interpreter; raises `CompressionError` with its last words."""
    threads = str(request.threads)
    try:
        done = subprocess.run(  # noqa: S603  # our own interpreter and module
            [sys.executable, "-m", __package__ + ".measuring", json.dumps(asdict(request))],
            capture_output=True,
            text=True,
            timeout=ROW_SECONDS,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )
    except subprocess.TimeoutExpired as error:
        raise CompressionError(
            f"{request.folder}: not measured within {ROW_SECONDS:.0f} s; give a --limit"
        ) from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise CompressionError(f"{request.folder} could not be measured: {last[0]}")
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write all rows, with the machine that measured them."""
    document = {"machine": _machine(), "rows": list(rows)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, with what it was measured on."""
    lines = [
        "| " + " | ".join(HEADINGS) + " |",
        "|---|---|" + "---:|" * (len(HEADINGS) - 2),
        *(f"| {' | '.join(_cells(row))} |" for row in rows),
    ]
    if rows:
        first = rows[0]
        engine = first["engine"]
        lines += [
            "",
            f"{first['questions']} questions of the report half of "
            f"{first['request']['data']}; {engine['threads']} thread, engine "
            f"{engine['name']} in {engine['precision']}, {_machine()}. Each row in a process of "
            f"its own; times are medians of {first['request']['timed_questions']} questions asked "
            "one at a time.",
        ]
    return "\n".join(lines) + "\n"


def write_between_markers(document: Path, table: str) -> None:
    """Put the table into a document, in place of what stands between the two markers."""
    text = document.read_text(encoding="utf-8") if document.is_file() else ""
    if BEGIN not in text or END not in text:
        raise CompressionError(f"{document} does not have the lines {BEGIN!r} and {END!r}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    document.write_text(f"{before}{BEGIN}\n{table}{END}{after}", encoding="utf-8")


def _cells(row: dict[str, Any]) -> list[str]:
    full, policy = row["full_depth"], row["policy"]
    scores = [
        f"{metrics[name]:.1f}"
        for metrics in (full, policy)
        for name in ("f1", "has_answer_f1", "no_answer_f1")
    ]
    return [
        row["name"],
        ", ".join(row["steps"]) or "none",
        f"{row['facts']['model_bytes'] / 1e6:.1f}",
        *scores,
        policy["criterion"],
        f"{policy['mean_exit_layer']:.2f}",
        f"{row['full_depth_p50_ms']:.1f}",
        f"{row['policy_p50_ms']:.1f}",
        f"{row['peak_rss_mb']:.0f}",
    ]


def _machine() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
