"""Calibration finds the thresholds and temperatures that were put in, and keeps its promise."""

from __future__ import annotations

import csv
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
    fit_no_answer_thresholds,
    fit_score_maps,
    fit_temperatures,
    half_report,
)
from cloud_worker.training.evaluation import answer_at_exit, answer_confidences
from cloud_worker.training.measuring_errors import CalibrationError, PlotError
from cloud_worker.training.plots import plot_training_curves
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


def test_the_no_answer_threshold_of_each_exit_has_the_highest_f1() -> None:
    random = np.random.default_rng(1)
    has_answer = random.random(400) < 0.5
    # At the second exit "no answer" is told apart well, and around another value.
    margins = random.normal(size=(400, 2)) - np.outer(has_answer, [0.5, 3.0]) + [0.0, 8.0]
    f1 = np.where(has_answer[:, None], random.random((400, 2)), 0.0)
    recording = made_up_recording(
        f1, np.zeros((400, 2)), has_answer=has_answer.tolist(), margins=margins
    )

    fitted = fit_no_answer_thresholds(recording, ExitSettings.uncalibrated(2))

    for layer in (1, 2):
        reached = answer_at_exit(recording, layer, fitted).f1.mean()
        for threshold in np.linspace(-5, 13, 200):
            other = ExitSettings("entropy", (-1.0, 1.0), (threshold,) * 2, (1.0, 1.0), 2)
            assert reached >= answer_at_exit(recording, layer, other).f1.mean() - 1e-9


@pytest.mark.parametrize("answerable", [True, False])
def test_questions_all_of_one_kind_are_all_treated_alike(answerable: bool) -> None:
    random = np.random.default_rng(2)
    recording = made_up_recording(
        np.full((50, 1), 0.9 * answerable),
        np.zeros((50, 1)),
        has_answer=[answerable] * 50,
        margins=random.normal(size=(50, 1)),
    )

    fitted = fit_no_answer_thresholds(recording, ExitSettings.uncalibrated(1))

    assert answer_at_exit(recording, 1, fitted).answered.tolist() == [answerable] * 50


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_made_the_scores_is_found(temperature: float) -> None:
    random = np.random.default_rng(3)
    count = 6000
    spread = random.normal(scale=2.0, size=count)
    chosen_is_right = random.random(count) < 1 / (1 + np.exp(-np.abs(spread)))
    # Two candidates, null and one span: the better one is right as often as the softmax says.
    answered = spread < 0
    recording = made_up_recording(
        np.where(answered, chosen_is_right, 0.0)[:, None],
        np.zeros((count, 1)),
        has_answer=np.where(answered, True, ~chosen_is_right).tolist(),
        margins=(spread * temperature)[:, None],
    )

    fitted = fit_temperatures(recording, ExitSettings.uncalibrated(1))

    assert fitted.temperatures[0] == pytest.approx(temperature, rel=0.1)


def test_the_score_map_makes_the_share_of_a_split_answer_a_probability() -> None:
    random = np.random.default_rng(4)
    count = 6000
    margins = -random.gamma(2.0, 1.0, size=count)  # all answered, the null loses by this much
    share = 1 / (1 + np.exp(margins))
    odds = np.log(share / (1 - share))
    right = random.random(count) < 1 / (1 + np.exp(-(0.6 * odds - 0.8)))
    recording = made_up_recording(
        right.astype(np.float64)[:, None], np.zeros((count, 1)), margins=margins[:, None]
    )

    fitted = fit_score_maps(recording, ExitSettings.uncalibrated(1))

    assert fitted.score_slopes[0] == pytest.approx(0.6, abs=0.1)
    assert fitted.score_intercepts[0] == pytest.approx(-0.8, abs=0.15)
    layers = np.ones(count, dtype=np.int64)
    mapped = answer_confidences(recording, layers, fitted)
    plain = answer_confidences(recording, layers, ExitSettings.uncalibrated(1))
    rightness = right.astype(np.float64)
    assert expected_calibration_error(mapped, rightness) < 0.03
    assert expected_calibration_error(plain, rightness) > 0.1


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_a_score_map_of_one_sided_questions_stays_finite(outcome: float) -> None:
    recording = made_up_recording(np.full((50, 1), outcome), np.zeros((50, 1)))
    fitted = fit_score_maps(recording, ExitSettings.uncalibrated(1))
    assert np.isfinite(fitted.score_slopes + fitted.score_intercepts).all()
    assert fitted.score_slopes[0] > 0


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
