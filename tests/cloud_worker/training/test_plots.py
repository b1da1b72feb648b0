"""Training curves come of whatever log there is, or its name and what is wrong with it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from cloud_worker.training.measuring_errors import PlotError
from cloud_worker.training.plots import plot_training_curves


def test_training_curves_are_drawn_while_the_trainer_still_writes(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    columns = ["step", "seconds", "loss", "learning_rate", "questions_per_second"]
    with log.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "loss_exit_1", "loss_exit_2"])
        writer.writerows([step, step, 1 / step, 1e-4, 20.0, 2.0, 1.0] for step in range(1, 9))
        file.write("9,9.0,0.1")

    plot_training_curves(log, tmp_path / "curves.png")

    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,loss,learning_rate,questions_per_second\n", "no complete line"),
        ("a,b\n1,2\n3,4\n", "not a training log|no complete line"),
        ("step,loss,learning_rate,questions_per_second\n1,x,2,3\n", "not a training log"),
    ],
)
def test_a_log_that_cannot_be_drawn_is_named(tmp_path: Path, text: str, message: str) -> None:
    log = tmp_path / "log.csv"
    log.write_text(text)

    with pytest.raises(PlotError, match=message) as caught:
        plot_training_curves(log, tmp_path / "curves.png")

    assert "log.csv" in str(caught.value)
