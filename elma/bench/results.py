"""What every benchmark leaves behind: a JSON document, a Markdown table, a picture.

In: a result and the lines that describe it. Out: `NAME.json`, `NAME.md` and `NAME.png` in the
folder of `--out`. Neighbours: the benchmarks call it; `benchmarks/report.py` of the repository
puts stored results into its pages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from elma.output import CommandError

SIZE_INCHES = (8.0, 4.5)
PIXELS_PER_INCH = 150
# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")


@dataclass(frozen=True)
class Table:
    """A Markdown table: headings, and cells that are shown as `show` shows them."""

    headings: Sequence[str]
    rows: Sequence[Sequence[object]]

    def markdown(self) -> str:
        """The lines of the table; numbers stand on the right."""
        lines = [self.headings, ["---:" if self._is_number(i) else "---" for i in self._columns]]
        lines += [[show(cell) for cell in row] for row in self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    @property
    def _columns(self) -> range:
        return range(len(self.headings))

    def _is_number(self, column: int) -> bool:
        return any(isinstance(row[column], int | float) for row in self.rows)


def show(cell: object) -> str:
    """A cell's text: three or four digits for a number, nothing for None."""
    if cell is None:
        return ""
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return str(cell)
    if isinstance(cell, int) or abs(cell) >= 1000:
        return f"{cell:,.0f}"
    return f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}" if abs(cell) >= 1 else f"{cell:.3g}"


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile of measured values, interpolated; raises ValueError for none."""
    if not values:
        raise ValueError("no value was measured")
    return float(np.percentile(np.asarray(values, dtype=np.float64), percent))


def write_results(out: Path, name: str, result: dict[str, Any], markdown: str) -> None:
    """Write `NAME.json` and `NAME.md` into `out`. Raises CommandError when that is impossible."""
    text = json.dumps(result, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(text, encoding="utf-8")
        (out / f"{name}.md").write_text(markdown + "\n", encoding="utf-8")
    except OSError as error:
        raise _not_written(out, error) from error


def new_figure(title: str, width: float = SIZE_INCHES[0], height: float = SIZE_INCHES[1]) -> Figure:
    """An empty picture with its title; no global state of matplotlib is touched."""
    figure = Figure(figsize=(width, height), dpi=PIXELS_PER_INCH, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    return figure


def save_figure(figure: Figure, png_path: Path) -> None:
    """Write a picture. Raises CommandError when that is impossible."""
    try:
        png_path.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure).print_png(str(png_path))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise _not_written(png_path, error) from error


def _not_written(path: Path, error: OSError) -> CommandError:
    return CommandError(f"cannot write {path}: {error.strerror}; give another --out")
