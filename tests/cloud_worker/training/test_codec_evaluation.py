"""Offloaded questions through a codec: measured as device and worker answer them, and kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cloud_worker.training.codec_evaluation import evaluate_codecs
from cloud_worker.training.evaluation import answer_questions, policy_layers
from cloud_worker.training.measuring_errors import EvaluationError
from cloud_worker.training.recording import Recording, record
from cloud_worker.training.squad_files import Question
from elma.cli import app
from reader.codecs import load_losses
from reader.exits import ExitSettings
from reader.model import Reader
from tests.cloud_worker.training.measuring import random_questions, write_squad_file
from tests.tiny import add_bottleneck, make_tiny_model

LAYERS = 4
EDGE_LAYERS = 2
CODECS = ("fp32", "fp16", "int8", "int4", "bottleneck", "tokens")


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return random_questions(12, passage_words=(15, 30, 500))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Some windows exit on the device, some do not."""
    settings = replace(
        ExitSettings.uncalibrated(LAYERS), criterion="margin", exit_thresholds=(0.5, 0.6, 0.0, 1.0)
    )
    folder = make_tiny_model(
        tmp_path_factory.mktemp("model"), layers=LAYERS, groups=4, settings=settings
    )
    add_bottleneck(folder, layer=EDGE_LAYERS)
    return Reader.load(folder, precision="fp32")


@pytest.fixture(scope="module")
def recording(reader: Reader, questions: list[Question]) -> Recording:
    return record(reader, questions)


def test_without_loss_it_is_what_device_and_worker_answer(
    reader: Reader, recording: Recording
) -> None:
    table = evaluate_codecs(reader, recording, ["fp32"], edge_layers=EDGE_LAYERS)
    layers = policy_layers(recording, reader.settings)
    together = np.where(layers <= EDGE_LAYERS, layers, LAYERS)
    outcomes = answer_questions(recording, together, reader.settings)
    asked = np.logical_or.reduceat(layers > EDGE_LAYERS, recording.first_window)
    assert 0 < asked.sum() < len(asked)
    (row,) = table.rows
    assert table.questions == asked.sum()
    assert row.f1 == pytest.approx(100 * outcomes.f1[asked].mean())
    assert (row.f1_loss, row.changed) == (0.0, 0)


def test_every_codec_has_its_bytes_and_its_loss(reader: Reader, recording: Recording) -> None:
    heard: list[tuple[int, int]] = []
    table = evaluate_codecs(
        reader,
        recording,
        CODECS,
        edge_layers=EDGE_LAYERS,
        progress=lambda done, total: heard.append((done, total)),
    )
    rows = {row.codec: row for row in table.rows}
    assert tuple(rows) == CODECS
    a_token = {"fp32": 128, "fp16": 64, "int8": 36, "int4": 18, "bottleneck": 32, "tokens": 2}
    for name, row in rows.items():
        assert row.bytes_a_token == pytest.approx(a_token[name])
        assert row.bytes_a_question == pytest.approx(a_token[name] * table.tokens / table.questions)
        assert row.f1 == pytest.approx(rows["fp32"].f1 - row.f1_loss)
    assert heard[-1] == (5 * table.windows, 5 * table.windows)
    assert rows["tokens"].f1_loss == 0
    assert set(table.losses) == set(CODECS) - {"tokens"}


def test_everything_can_be_offloaded(reader: Reader, recording: Recording) -> None:
    table = evaluate_codecs(reader, recording, ["fp16"], edge_layers=EDGE_LAYERS, everything=True)
    assert table.questions == len(recording.questions)
    assert table.windows == len(recording.null_scores)


def test_no_offloaded_question_is_said(reader: Reader, recording: Recording) -> None:
    eager = replace(reader.settings, exit_thresholds=(1.0,) * LAYERS)
    with pytest.raises(EvaluationError, match="no question is offloaded"):
        evaluate_codecs(reader, recording, ["fp16"], edge_layers=EDGE_LAYERS, settings=eager)


def test_the_verb_prints_and_keeps_what_codecs_lose(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", layers=3)
    data = write_squad_file(tmp_path / "dev.json", random_questions(10, passage_words=(15, 25)))
    arguments = ["evaluate", str(model), "--data", str(data), "--max-edge-layers", "2"]
    arguments += ["--codec", "all", "--engine", "torch", "--precision", "fp32"]

    result = CliRunner().invoke(
        app, [*arguments, "--json", "--half", "calibration", "--offload-all", "--save"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [row["codec"] for row in report["codecs"]] == ["fp32", "fp16", "int8", "int4", "tokens"]
    assert report["offloaded_questions"] == report["questions"]
    assert set(load_losses(model)[2]) == {"fp32", "fp16", "int8", "int4"}

    table = CliRunner().invoke(app, arguments)
    assert table.exit_code == 0
    assert "handed over after layer 2" in table.stdout


@pytest.mark.parametrize("more", [["--codec", "bottleneck"], ["--codec", "all", "--save"]])
def test_what_cannot_be_measured_or_kept_is_refused(tmp_path: Path, more: list[str]) -> None:
    model = make_tiny_model(tmp_path / "model", layers=3)
    data = write_squad_file(tmp_path / "dev.json", random_questions(4, passage_words=(15,)))
    arguments = ["evaluate", str(model), "--data", str(data), "--max-edge-layers", "2", *more]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    assert "--codec" in str(result.exception)
