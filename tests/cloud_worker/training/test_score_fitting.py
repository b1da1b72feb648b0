"""Thresholds, temperatures and score maps that were put into made-up questions are found again."""

from __future__ import annotations

import numpy as np
import pytest

from cloud_worker.training.calibration import expected_calibration_error
from cloud_worker.training.evaluation import answer_at_exit, answer_confidences
from cloud_worker.training.score_fitting import (
    fit_no_answer_thresholds,
    fit_score_maps,
    fit_temperatures,
)
from reader.exits import ExitSettings
from tests.cloud_worker.training.measuring import made_up_recording


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
