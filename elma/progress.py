"""Bars on stderr for verbs that take minutes.

In: units done, or the steps of a training. Out: a bar that goes away when it is done, so that
stdout holds the result alone. Neighbours: the verbs in `elma.commands`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloud_worker.training.run import Progress


@contextmanager
def progress_bar(label: str, unit: str = "windows") -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; the value is called with (units done, units in all)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class TrainingBar:
    """A progress bar on stderr with loss, questions per second and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self.last: Progress | None = None
        self._bar = RichProgress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            console=Console(stderr=True),
            refresh_per_second=1,
        )
        self._task = self._bar.add_task("training", total=None, detail="")
        self._loss = 0.0

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Draw one step; the loss shown is a running mean."""
        self.last = progress
        self._loss = progress.loss if not self._loss else 0.98 * self._loss + 0.02 * progress.loss
        minutes, seconds = divmod(int(progress.seconds_left), 60)
        detail = (
            f"loss {self._loss:.3f}  {progress.questions_per_second:.1f} questions/s  "
            f"{minutes}:{seconds:02d} left"
        )
        self._bar.update(self._task, completed=progress.step, total=progress.steps, detail=detail)
