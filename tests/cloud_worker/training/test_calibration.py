"""Calibration takes the boldest policy that passes its test, and keeps its promise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cloud_worker.training.calibration import (
    Request,
    calibrate,
    expected_calibration_error,
    f1_losses,
    half_report,
)
from cloud_worker.training.measuring_errors import CalibrationError
from cloud_worker.training.recording import Recording
from elma.cli import app
from reader.exits import ExitSettings
from reader.model import Reader
from tests.cloud_worker.training.measuring import (
    made_up_recording,
    random_questions,
    write_squad_file,
)
from tests.tiny import make_tiny_model

REQUEST = Request(max_f1_drop=2.0, confidence=0.9, criterion="entropy", edge_layers=2)


def graded_recording(count: int, *, seed: int) -> Recording:
    """Four exits; each is wrong with a probability that is its uncertainty, the last one never."""
    random = np.random.default_rng(seed)
    uncertainty = random.random((count, 4)) * np.array([1.0, 0.8, 0.5, 0.0])
    f1 = (random.random((count, 4)) >= uncertainty).astype(float)
    return made_up_recording(f1, uncertainty)


def test_calibration_error_worked_by_hand() -> None:
    # Bins of 1/15: 0.54 and 0.55 share one (mean 0.545, half right), 0.9 is alone and wrong.
    probabilities = np.array([0.54, 0.55, 0.9, 1.0])
    right = np.array([1.0, 0.0, 0.0, 1.0])

    error = expected_calibration_error(probabilities, right)

    assert error == pytest.approx((2 * abs(0.545 - 0.5) + 0.9 + 0.0) / 4)


def test_the_policy_exits_early_and_its_bound_passes_the_test() -> None:
    calibration = calibrate(graded_recording(2000, seed=5), REQUEST)

    promise = calibration.certificate
    assert promise.f1_drop < promise.f1_drop_bound <= 2.0
    assert promise.mean_exit_layer < 3.9
    assert promise.questions == 2000
    assert not promise.own_tuning_questions


def test_a_larger_allowance_never_runs_more_layers() -> None:
    recording = graded_recording(1500, seed=6)
    layers = [
        calibrate(recording, Request(drop, 0.9, "entropy", 2)).certificate.mean_exit_layer
        for drop in (1.0, 3.0, 10.0, 40.0)
    ]

    assert layers == sorted(layers, reverse=True)
    assert layers[-1] < layers[0] - 0.5


def refusing_recording(count: int, forced_f1: float) -> Recording:
    """Two exits; the first refuses everything, and forced to answer has `forced_f1`."""
    answerable = np.arange(count) % 4 == 0
    right = answerable.astype(np.float64)
    random = np.random.default_rng(12)
    refusals = np.where(answerable, 9.0, 8.0) + random.random(count)  # no better than a guess
    margins = np.stack([refusals, np.where(answerable, -9.0, 9.0)], axis=1)
    doubt = np.where(answerable, random.random(count) ** 0.5, random.random(count))
    uncertainty = np.stack([doubt, np.zeros(count)], axis=1)
    f1 = np.stack([forced_f1 * right, right], axis=1)
    return made_up_recording(f1, uncertainty, has_answer=answerable.tolist(), margins=margins)


def test_cheap_early_refusals_do_not_buy_the_loss_of_answerable_questions() -> None:
    recording = refusing_recording(3000, forced_f1=0.6)

    lenient = calibrate(recording, Request(10.0, 0.9, "entropy", 1, 100.0)).certificate
    strict = calibrate(recording, Request(10.0, 0.9, "entropy", 1, 12.0)).certificate

    assert lenient.mean_exit_layer < strict.mean_exit_layer < 2.0
    assert lenient.f1_drop_bound <= 10.0
    assert lenient.has_answer_drop_bound > 12.0 >= strict.has_answer_drop_bound


def test_an_exit_that_cannot_find_answers_never_stops_however_certain() -> None:
    blind = refusing_recording(3000, forced_f1=0.1)

    chosen = calibrate(blind, Request(10.0, 0.9, "entropy", 1, 100.0))

    assert chosen.settings.exit_thresholds[0] == -1.0
    assert chosen.certificate.mean_exit_layer == 2.0


def test_with_own_tuning_questions_the_promise_holds_as_often_as_stated() -> None:
    population = graded_recording(20_000, seed=7)
    broken = 0
    repetitions = 40
    for seed in range(repetitions):
        testing = graded_recording(400, seed=1000 + seed)
        tuning = graded_recording(400, seed=2000 + seed)
        chosen = calibrate(testing, Request(4.0, 0.8, "entropy", 2), tuning)
        broken += f1_losses(population, chosen.settings).mean() > 0.04

    # 20 % may break it; three standard errors above that is 39 %.
    assert broken / repetitions <= 0.2 + 3 * np.sqrt(0.2 * 0.8 / repetitions)


def test_too_few_questions_for_a_bound_mean_no_early_exit() -> None:
    recording = graded_recording(30, seed=8)

    calibration = calibrate(recording, REQUEST)

    assert calibration.certificate.mean_exit_layer == 4.0
    assert calibration.certificate.f1_drop_bound == 0.0
    assert calibration.settings.exit_thresholds[:-1] == (-1.0,) * 3


def test_auto_takes_the_criterion_that_runs_the_fewest_layers() -> None:
    recording = graded_recording(2000, seed=9)
    useless = np.random.default_rng(10).random((2000, 4))
    uncertainty = {**dict.fromkeys(recording.uncertainty, useless)}
    uncertainty["margin"] = recording.uncertainty["margin"]
    recording = Recording(**{**vars(recording), "uncertainty": uncertainty})

    chosen = calibrate(recording, Request(2.0, 0.9, "auto", 2))

    assert chosen.settings.criterion == "margin"
    # All criteria share the error probability, so alone it may be bolder.
    alone = calibrate(recording, Request(2.0, 0.9, "margin", 2))
    assert alone.certificate.mean_exit_layer <= chosen.certificate.mean_exit_layer


def test_the_settings_survive_their_file(tmp_path: Path) -> None:
    settings = calibrate(graded_recording(500, seed=11), REQUEST).settings

    settings.save(tmp_path)

    assert ExitSettings.load(tmp_path) == settings
    assert settings.default_edge_layers == 2


def test_a_half_is_reported_with_its_own_drop_and_bound() -> None:
    calibration = calibrate(graded_recording(2000, seed=12), REQUEST)
    other = graded_recording(1000, seed=13)

    report = half_report(other, calibration.settings, max_edge_layers=2, confidence=0.9)

    drop = report["full_depth"]["f1"] - report["policy"]["f1"]
    assert report["f1_drop"] == pytest.approx(drop)
    assert report["f1_drop_bound"] > report["f1_drop"]
    assert report["questions"] == 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 1.0, "entropy", 1), "confidence is 1.0"),
        ((0.0, 0.9, "entropy", 1), "F1 drop is 0.0"),
        ((1.0, 0.9, "hope", 1), "unknown criterion 'hope'"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    arguments: tuple[float, float, str, int], message: str
) -> None:
    with pytest.raises(CalibrationError, match=message):
        Request(*arguments)


def test_an_edge_deeper_than_the_reader_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"layers 1\.\.4"):
        calibrate(graded_recording(50, seed=1), Request(1.0, 0.9, "entropy", 5))


def test_the_verb_writes_settings_that_the_reader_loads(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", layers=3)
    before = (model / "exits.json").read_bytes()
    data = write_squad_file(tmp_path / "dev.json", random_questions(20, passage_words=(15, 25)))
    out = tmp_path / "calibrated"
    arguments = ["calibrate", str(model), "--data", str(data), "--json", "--out", str(out)]

    result = CliRunner().invoke(app, [*arguments, "--max-edge-layers", "2"])

    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    settings = ExitSettings.load(out)
    assert settings is not None
    assert settings.default_edge_layers == 2
    assert report["settings"]["temperatures"] == list(settings.temperatures)
    assert report["calibration"]["questions"] + report["report"]["questions"] == 20
    assert (model / "exits.json").read_bytes() == before
    assert Reader.load(model, settings=settings).settings == settings
