"""Pictures for people: the frontier of a reader with exits, and the curves of a training run.

Input: a `Frontier` of measured points, or the trainer's CSV log. Output: a PNG.
Neighbours: `evaluation` measures the frontier, the trainer writes the log. Nothing here opens a
window or touches matplotlib's global state, so it is safe in a service or a thread.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cloud_worker.training.measuring_errors import PlotError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE_INCHES = (8.0, 5.0)
PIXELS_PER_INCH = 150
# Okabe and Ito's palette: told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#777777"


@dataclass(frozen=True)
class Point:
    """One way to answer a set of questions: layers run per question, and the F1 in percent."""

    mean_layer: float
    f1: float


@dataclass(frozen=True)
class Frontier:
    """What `plot_frontier` draws. Curves are in rising order of layers run.

    `exits`: every question at the same exit; `policy_curve`: the criterion at many thresholds;
    `policy`: at the thresholds of the model; `random_curve`: the same share of questions at each
    exit as the policy, but which ones by chance; `oracle_curve`: who knows the gold answers.
    """

    exits: Sequence[Point]
    policy_curve: Sequence[Point]
    policy: Point
    random_curve: Sequence[Point]
    oracle_curve: Sequence[Point]


@dataclass(frozen=True)
class TrainingLog:
    """The trainer's CSV by column; `exit_losses` maps "loss_exit_1".. to their values."""

    steps: list[float]
    loss: list[float]
    learning_rate: list[float]
    questions_per_second: list[float]
    exit_losses: dict[str, list[float]]


def plot_frontier(frontier: Frontier, png_path: Path, *, title: str) -> None:
    """Draw F1 against layers run and write it to `png_path`. Raises `PlotError`."""
    figure = _new_figure(*SIZE_INCHES)
    axes = figure.add_subplot()
    curves = (
        (frontier.oracle_curve, GREY, ":", "oracle: knows the gold answers (bound)"),
        (frontier.policy_curve, BLUE, "-", "policy, one threshold for all layers"),
        (frontier.random_curve, PURPLE, "--", "random exits, as many at each layer"),
    )
    for points, colour, style, label in curves:
        axes.plot(*_coordinates(points), style, color=colour, label=label)
    axes.plot(*_coordinates(frontier.exits), "o", color=GREEN, label="every question at one exit")
    axes.plot(
        *_coordinates([frontier.policy]),
        "*",
        color=ORANGE,
        markersize=14,
        label="this model's policy",
    )
    axes.set(xlabel="mean layers run per question", ylabel="F1 (%)", title=title)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize="small", ncols=2)
    _save(figure, png_path)


def plot_training_curves(csv_path: Path, png_path: Path) -> None:
    """Draw the trainer's log: the loss of every exit, the learning rate, and the speed.

    `csv_path` has the columns step, seconds, loss, learning_rate, questions_per_second and
    loss_exit_1..N. A last line that is still being written is left out. Raises `PlotError`.
    """
    log = read_training_log(csv_path)
    figure = _new_figure(SIZE_INCHES[0], SIZE_INCHES[1] * 1.6)
    loss_axes, rate_axes, speed_axes = figure.subplots(3, 1, sharex=True, height_ratios=(4, 1, 1))
    for position, (name, values) in enumerate(log.exit_losses.items(), start=1):
        shade = 0.25 + 0.75 * position / len(log.exit_losses)
        label = name.removeprefix("loss_").replace("_", " ")
        loss_axes.plot(log.steps, _smooth(values), color=BLUE, alpha=shade, label=label)
    loss_axes.plot(log.steps, _smooth(log.loss), color=ORANGE, linewidth=2, label="joint loss")
    loss_axes.set(ylabel="loss (moving mean)", title=csv_path.parent.name or "training")
    loss_axes.legend(fontsize="x-small", ncols=2)
    rate_axes.plot(log.steps, log.learning_rate, color=GREEN)
    rate_axes.set(ylabel="learning rate")
    speed_axes.plot(log.steps, _smooth(log.questions_per_second), color=PURPLE)
    speed_axes.set(ylabel="questions / s", xlabel="step")
    for axes in (loss_axes, rate_axes, speed_axes):
        axes.grid(alpha=0.3)
    _save(figure, png_path)


def read_training_log(csv_path: Path) -> TrainingLog:
    """Read the trainer's CSV. Raises `PlotError` when it is missing, empty or not such a log."""
    try:
        with csv_path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PlotError(f"cannot read the training log {csv_path}: {error}") from error
    needed = ["step", "loss", "learning_rate", "questions_per_second"]
    exits = [name for name in (rows[0] if rows else {}) if (name or "").startswith("loss_exit_")]
    # The trainer may be writing its last line right now.
    if rows and any(rows[-1].get(name) in (None, "") for name in [*needed, *exits]):
        rows.pop()
    if not rows:
        raise PlotError(f"the training log {csv_path} has no complete line yet; wait for a step")
    try:
        columns = {name: [float(row[name]) for row in rows] for name in [*needed, *exits]}
    except (KeyError, TypeError, ValueError) as error:
        raise PlotError(
            f"{csv_path} is not a training log ({error}); it needs the columns {', '.join(needed)}"
        ) from error
    return TrainingLog(
        steps=columns["step"],
        loss=columns["loss"],
        learning_rate=columns["learning_rate"],
        questions_per_second=columns["questions_per_second"],
        exit_losses={name: columns[name] for name in exits},
    )


def _smooth(values: Sequence[float]) -> list[float]:
    """Moving mean over the last fiftieth of the run: single steps are too noisy to read."""
    width = max(1, len(values) // 50)
    means = []
    total = 0.0
    for position, value in enumerate(values):
        total += value - (values[position - width] if position >= width else 0.0)
        means.append(total / min(position + 1, width))
    return means


def _coordinates(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point.mean_layer for point in points], [point.f1 for point in points]


def _new_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty figure. Raises `PlotError` where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # heavy, and optional: only those who draw pay for it
    except ImportError as error:
        raise PlotError(
            "drawing needs matplotlib, which is not installed; pip install 'elma-qa[plot]'"
        ) from error
    return Figure(figsize=(width_inches, height_inches), dpi=PIXELS_PER_INCH, layout="constrained")


def _save(figure: Figure, png_path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    try:
        png_path.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure).print_png(str(png_path))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise PlotError(
            f"cannot write the picture {png_path}: {error.strerror}; give a writable path"
        ) from error
