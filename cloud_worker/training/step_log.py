"""`training.csv`: one row a step, appended to; rows past a resumed step are dropped.

In: the numbers of a step. Out: the file that `plots` draws. Neighbours: `trainer`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True)
class StepRow:
    """A step's numbers; the field names are the columns."""

    step: int
    seconds: float
    loss: float
    learning_rate: float
    questions_per_second: float
    sparsity: float
    mean_span_tokens: float


class StepLog:
    """The open file; a context manager."""

    def __init__(self, path: Path, step: int, layers: int) -> None:
        """Keep the rows up to `step` of what is there (0: none)."""
        header = [column.name for column in fields(StepRow)]
        header += [f"loss_exit_{layer}" for layer in range(1, layers + 1)]
        kept: list[list[str]] = []
        if step and path.is_file():
            with path.open(newline="", encoding="utf-8") as stream:
                kept = [row for row in list(csv.reader(stream))[1:] if int(row[0]) <= step]
        self._stream: TextIO = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._stream)
        self._writer.writerow(header)
        self._writer.writerows(kept)

    def __enter__(self) -> StepLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, row: StepRow, loss_by_exit: Sequence[float]) -> None:
        """One row, flushed."""
        step, *numbers = astuple(row)
        exits = (f"{value:.5f}" for value in loss_by_exit)
        self._writer.writerow([step, *(f"{value:.6g}" for value in numbers), *exits])
        self._stream.flush()
