"""`elma compress` on the command line: steps in a row, and calls that cannot work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from elma.cli import app
from elma.output import CommandError
from tests.cloud_worker.training.small_runs import write_questions
from tests.tiny import make_tiny_model


def compress(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["compress", *map(str, arguments)])


def test_steps_in_a_row_tell_the_whole_story(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", layers=2, groups=2)
    data = write_questions(tmp_path / "train.json")
    run = ("--data", data, "--steps", "6", "--learning-rate", "0.001", "--threads", "1")
    shrunk, small = tmp_path / "shrunk", tmp_path / "small"
    pruned = compress(
        "prune", model, "--out", shrunk, *run, "--keep-heads", "0.5", "--with-spans", "--json"
    )
    assert pruned.exit_code == 0, pruned.output
    record = json.loads(pruned.stdout)
    assert record["step"] == "prune"
    assert sum(record["after"]["heads"]) <= 4
    assert record["settings"]["spans"]["penalty"] > 0
    packed = compress(
        "precision", shrunk, "--out", small, "--to", "int4", "--text", data, "--windows", "20"
    )
    assert packed.exit_code == 0, packed.output
    assert "MB" in packed.stdout
    steps = json.loads((small / "compression.json").read_text())["steps"]
    assert [step["step"] for step in steps] == ["prune", "precision"]
    assert steps[1]["before"] == steps[0]["after"]


def test_the_smallest_weights_go_at_once_without_data(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", layers=2, groups=2)
    magnitude = ("--method", "magnitude", "--structure", "weights", "--keep", "0.25", "--json")
    done = compress("prune", model, "--out", tmp_path / "out", *magnitude)
    assert json.loads(done.stdout)["after"]["zero_share"] == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("step", ["prune", "span", "distill"])
def test_a_step_that_trains_asks_for_data(step: str, tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", layers=2, groups=2)
    done = compress(step, model, "--out", tmp_path / "out")
    assert isinstance(done.exception, CommandError)
    assert "--data" in str(done.exception)
    assert done.exception.exit_status == 2
    assert not (tmp_path / "out").exists()
