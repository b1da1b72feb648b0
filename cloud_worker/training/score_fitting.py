"""Fits what turns an exit's logits into an answer and its score: steps 1 to 3 of a calibration.

In: a `Recording` of questions with gold answers, and settings. Out: the settings with one more
number an exit. Neighbours: `evaluation` answers under given settings, `calibration` calls these in
order and goes on with the exit thresholds.

1. the no-answer threshold of each exit, where its F1 is highest;
2. the temperature of each exit. The reported score of the chosen answer ("no answer" included) is
   the probability that this answer is exactly right in the sense of SQuAD's exact match; the
   temperature minimises the negative log likelihood of that event (Guo et al. 2017, section 4.2,
   on this event instead of a class);
3. the score map of each exit (Platt 1999): a softmax over near-duplicate spans splits what is one
   answer to a reader, so the share of the chosen one is mapped to how often it is right.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cloud_worker.training.evaluation import (
    answer_at_exit,
    answer_confidences,
    answer_probabilities,
    candidate_scores,
    logits,
)
from cloud_worker.training.recording import Recording
from cloud_worker.training.squad_metrics import FloatArray, best_threshold
from reader.exits import ExitSettings

TEMPERATURE_RANGE = (0.05, 50.0)


def fit_no_answer_thresholds(recording: Recording, settings: ExitSettings) -> ExitSettings:
    """The settings with the no-answer threshold of each exit at which its F1 is highest."""
    plain = replace(
        settings,
        no_answer_thresholds=(0.0,) * recording.layers,
        temperatures=(1.0,) * recording.layers,
    )
    thresholds = []
    for layer in range(1, recording.layers + 1):
        outcomes = answer_at_exit(recording, layer, plain, forced=True)
        margins = outcomes.no_answer_margin
        best = best_threshold(outcomes.f1, margins, recording.has_answer)
        above = margins[margins > best.threshold]
        if best.score <= 100.0 * float((~recording.has_answer).mean()):
            thresholds.append(float(margins.min()) - 1.0)  # answering nothing is as good
        elif len(above) == 0:
            thresholds.append(best.threshold + 1.0)  # answering everything is best
        else:
            # Halfway to the next question, so that rounding on another machine moves none.
            thresholds.append((best.threshold + float(above.min())) / 2)
    return replace(settings, no_answer_thresholds=tuple(thresholds))


def fit_temperatures(recording: Recording, settings: ExitSettings) -> ExitSettings:
    """The settings with each exit's temperature at which its scores are most likely.

    Needs the no-answer thresholds: they decide which answer is chosen, hence when it is right.
    """
    plain = replace(settings, temperatures=(1.0,) * recording.layers)
    temperatures = []
    for layer in range(1, recording.layers + 1):
        window_layers = np.full(len(recording.null_scores), layer, dtype=np.int64)
        scores = candidate_scores(recording, window_layers, plain)
        right = answer_at_exit(recording, layer, plain).exact
        temperatures.append(_best_temperature(scores, right))
    return replace(settings, temperatures=tuple(temperatures))


def fit_score_maps(recording: Recording, settings: ExitSettings) -> ExitSettings:
    """The settings with each exit's slope and intercept, by logistic regression of "exactly right"
    on the log odds of the chosen answer's share. Needs thresholds and temperatures."""
    plain = replace(settings, score_slopes=(), score_intercepts=())
    slopes, intercepts = [], []
    for layer in range(1, recording.layers + 1):
        window_layers = np.full(len(recording.null_scores), layer, dtype=np.int64)
        odds = logits(answer_confidences(recording, window_layers, plain))
        right = answer_at_exit(recording, layer, plain).exact
        slope, intercept = _logistic_fit(odds, right)
        slopes.append(slope)
        intercepts.append(intercept)
    return replace(settings, score_slopes=tuple(slopes), score_intercepts=tuple(intercepts))


def _logistic_fit(odds: FloatArray, right: FloatArray) -> tuple[float, float]:
    """Slope and intercept by Newton's method, a little ridge on both around (1, 0).

    The ridge keeps a fit on few or one-sided questions near the unmapped score; the slope is kept
    positive, so that the order of candidates survives.
    """
    parameters, ridge = np.array([1.0, 0.0]), 1.0
    design = np.stack([odds, np.ones_like(odds)], axis=1)  # [N, 2]
    for _ in range(50):
        expected = 1 / (1 + np.exp(-np.clip(design @ parameters, -500, 500)))
        gradient = design.T @ (expected - right) + ridge * (parameters - np.array([1.0, 0.0]))
        weights = expected * (1 - expected)
        step = np.linalg.solve(design.T @ (design * weights[:, None]) + ridge * np.eye(2), gradient)
        parameters = parameters - np.clip(step, -2.0, 2.0)
        if float(np.abs(step).max()) < 1e-8:
            break
    return max(float(parameters[0]), 1e-3), float(parameters[1])


def _best_temperature(scores: FloatArray, right: FloatArray) -> float:
    """Golden-section search over the logarithm of the temperature for the lowest NLL."""

    def negative_log_likelihood(log_temperature: float) -> float:
        probabilities = answer_probabilities(scores / np.exp(log_temperature))
        probabilities = np.clip(probabilities, 1e-9, 1 - 1e-9)
        return -float(np.where(right > 0, np.log(probabilities), np.log1p(-probabilities)).mean())

    low, high = np.log(TEMPERATURE_RANGE)
    ratio = (np.sqrt(5) - 1) / 2
    left, right_edge = high - ratio * (high - low), low + ratio * (high - low)
    while high - low > 1e-3:
        if negative_log_likelihood(left) <= negative_log_likelihood(right_edge):
            high, right_edge = right_edge, left
            left = high - ratio * (high - low)
        else:
            low, left = left, right_edge
            right_edge = low + ratio * (high - low)
    return float(np.exp((low + high) / 2))
