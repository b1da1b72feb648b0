"""What a reader is worth: full depth, every exit, and its exit policy, from one recording.

Input: a `Recording` and `ExitSettings`. Output: `Outcomes` (one entry a question), the report of
`elma evaluate`, and the points of its picture.
Neighbours: `recording` made the arrays, `squad_metrics` scores, `calibration` searches with the
same functions, `reader.spans.choose_answers` is the live rule that `answer_questions` repeats.

A question's exit layer is the deepest exit among its windows: until that one stops, the question
is not answered. The mean exit layer is the mean of this over questions, and the edge share is the
share of questions whose every window stops at or before the device's last layer. Two things can
happen to the rest: `policy` lets it go on under the same thresholds (a device alone), `with_worker`
takes every window that the device hands over to the last layer, as a worker does.

Shapes: N questions, W windows, L layers, C candidate spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloud_worker.training.plots import Frontier, Point
from cloud_worker.training.policies import IntArray, exit_layers, shared_threshold_family
from cloud_worker.training.recording import Recording, TextArray
from cloud_worker.training.squad_metrics import (
    BoolArray,
    FloatArray,
    Metrics,
    aggregate_metrics,
    best_threshold,
)
from reader.exits import ExitSettings
from reader.span_search import MAX_SPANS


@dataclass(frozen=True)
class Outcomes:
    """What a policy answers, one entry a question."""

    layers: IntArray  # [N] the deepest exit of the question's windows, 1..L
    answered: BoolArray  # [N] false for "no answer"
    texts: TextArray  # [N] the answer, "" for none
    exact: FloatArray  # [N] 0 or 1
    f1: FloatArray  # [N] 0..1
    no_answer_margin: FloatArray  # [N] null score over best span, both calibrated; above 0: none

    def metrics(self, has_answer: BoolArray) -> Metrics:
        """The official metrics in percent; `has_answer` [N] is the truth."""
        return aggregate_metrics(self.exact, self.f1, has_answer)


def policy_layers(recording: Recording, settings: ExitSettings) -> IntArray:
    """[W] the layer at which each window stops under these settings."""
    uncertainty = recording.uncertainty_under(settings)
    return exit_layers(uncertainty, np.array(settings.exit_thresholds))


def answer_questions(
    recording: Recording, window_layers: IntArray, settings: ExitSettings, *, forced: bool = False
) -> Outcomes:
    """What is answered when each window stops at its layer in `window_layers` [W], 1..L.

    `forced` leaves out the no-answer choice: the best span is the answer, whatever the null score.
    """
    rows, columns = np.arange(len(window_layers)), window_layers - 1
    temperatures = np.array(settings.temperatures)[columns]  # [W]
    thresholds = np.array(settings.no_answer_thresholds)[columns]
    null_scores = (recording.null_scores[rows, columns] - thresholds) / temperatures
    best_scores = recording.span_scores[rows, columns, 0] / temperatures
    first = recording.first_window
    lowest_null = np.minimum.reduceat(null_scores, first)  # [N]
    best_rows = _best_rows(best_scores, first)  # [N]
    margin = lowest_null - best_scores[best_rows]
    answered = np.isfinite(best_scores[best_rows])
    if not forced:
        answered &= margin <= 0
    right_to_refuse = (~recording.has_answer).astype(np.float64)
    best_columns = columns[best_rows]
    return Outcomes(
        layers=np.maximum.reduceat(window_layers, first),
        answered=answered,
        texts=np.where(answered, recording.texts[best_rows, best_columns], ""),
        exact=np.where(answered, recording.exact[best_rows, best_columns], right_to_refuse),
        f1=np.where(answered, recording.f1[best_rows, best_columns], right_to_refuse),
        no_answer_margin=margin,
    )


def answer_at_exit(
    recording: Recording, layer: int, settings: ExitSettings, *, forced: bool = False
) -> Outcomes:
    """What is answered when every window stops at `layer`, 1..L."""
    window_layers = np.full(len(recording.null_scores), layer, dtype=np.int64)
    return answer_questions(recording, window_layers, settings, forced=forced)


def candidate_scores(
    recording: Recording, window_layers: IntArray, settings: ExitSettings
) -> FloatArray:
    """[N, 1 + C] calibrated scores: of "no answer", then of the candidates, best first.

    A softmax over a row gives the probabilities that `choose_answers` reports. The same characters
    found in several windows of a question are one candidate, at its best score.
    """
    rows, columns = np.arange(len(window_layers)), window_layers - 1
    temperatures = np.array(settings.temperatures)[columns]
    thresholds = np.array(settings.no_answer_thresholds)[columns]
    null_scores = (recording.null_scores[rows, columns] - thresholds) / temperatures
    spans = recording.span_scores[rows, columns] / temperatures[:, None]  # [W, C]
    first, counts = recording.first_window, recording.window_counts
    scores = np.concatenate(
        [np.minimum.reduceat(null_scores, first)[:, None], spans[first]], axis=1
    )
    for number in np.flatnonzero(counts > 1):
        merged: dict[tuple[int, int], float] = {}
        for row in range(first[number], first[number] + counts[number]):
            places = recording.span_places[row, columns[row]].tolist()
            for (start, end), score in zip(places, spans[row].tolist(), strict=True):
                if score > merged.get((start, end), -np.inf):
                    merged[start, end] = score
        ranked = sorted(merged.values(), reverse=True)[:MAX_SPANS]
        scores[number, 1:] = -np.inf
        scores[number, 1 : 1 + len(ranked)] = ranked
    return scores


def answer_confidences(
    recording: Recording, window_layers: IntArray, settings: ExitSettings
) -> FloatArray:
    """[N] the score that the device reports of its answer: the probability that it is right."""
    shares = answer_probabilities(candidate_scores(recording, window_layers, settings))
    if not settings.score_slopes:
        return shares
    deepest = np.maximum.reduceat(window_layers, recording.first_window) - 1  # [N]
    slopes = np.array(settings.score_slopes)[deepest]
    intercepts = np.array(settings.score_intercepts)[deepest]
    confidences: FloatArray = 1.0 / (1.0 + np.exp(-(slopes * logits(shares) + intercepts)))
    return confidences


def logits(probabilities: FloatArray) -> FloatArray:
    """Log odds, of probabilities (any shape) kept a little off 0 and 1, as in
    `ExitSettings.confidence`."""
    bounded = np.clip(probabilities, 1e-9, 1 - 1e-9)
    odds: FloatArray = np.log(bounded / (1 - bounded))
    return odds


def answer_probabilities(scores: FloatArray) -> FloatArray:
    """[N] share of the chosen answer among its candidates, from `candidate_scores` [N, 1 + C].

    The chosen answer is the best candidate, or none where its score is higher.
    """
    chosen = scores[:, :2].max(axis=1)
    exponentials = np.exp(scores - chosen[:, None])
    probabilities: FloatArray = 1.0 / exponentials.sum(axis=1)
    return probabilities


def evaluation_report(
    recording: Recording, settings: ExitSettings, *, max_edge_layers: int
) -> dict[str, Any]:
    """The parts of what `elma evaluate --json` prints that are measured.

    Metrics are in percent, shares in 0..1. Beside the official metrics an exit has
    `HasAns_f1_forced` (F1 over answerable questions without the no-answer choice), and `best_f1`
    with `best_f1_thresh` (the best no-answer threshold on these very questions: optimistic).
    """
    has_answer = recording.has_answer
    window_layers = policy_layers(recording, settings)
    outcomes = answer_questions(recording, window_layers, settings)
    histogram = np.bincount(outcomes.layers, minlength=recording.layers + 1)[1:]
    return {
        "full_depth": answer_at_exit(recording, recording.layers, settings).metrics(has_answer),
        "policy": {
            **outcomes.metrics(has_answer),
            "mean_exit_layer": float(outcomes.layers.mean()),
            "edge_share": float((outcomes.layers <= max_edge_layers).mean()),
            "exit_histogram": {
                str(layer): int(count) for layer, count in enumerate(histogram, start=1)
            },
            "max_edge_layers": max_edge_layers,
            "mean_layers_per_window": float(window_layers.mean()),
            "criterion": settings.criterion,
        },
        "with_worker": _with_worker(recording, window_layers, settings, max_edge_layers),
        "exits": [
            {"layer": layer, **_exit_metrics(recording, layer, settings)}
            for layer in range(1, recording.layers + 1)
        ],
    }


def predictions(recording: Recording, settings: ExitSettings) -> dict[str, str]:
    """The policy's answers as the official script reads them: question id -> text, "" for none."""
    outcomes = answer_questions(recording, policy_layers(recording, settings), settings)
    return {
        question.id: str(text)
        for question, text in zip(recording.questions, outcomes.texts, strict=True)
    }


def frontier(recording: Recording, settings: ExitSettings) -> Frontier:
    """F1 against layers run: each exit, the policy, and what stands beside them."""
    at_exits = [
        answer_at_exit(recording, layer, settings) for layer in range(1, recording.layers + 1)
    ]
    exit_f1 = np.stack([outcomes.f1 for outcomes in at_exits], axis=1)  # [N, L]
    uncertainty = recording.uncertainty_under(settings)
    family = shared_threshold_family(uncertainty)
    curve = [
        answer_questions(recording, exit_layers(uncertainty, thresholds), settings)
        for thresholds in family
    ]
    chosen = answer_questions(recording, policy_layers(recording, settings), settings)
    return Frontier(
        exits=[_point(outcomes) for outcomes in at_exits],
        policy_curve=_in_order([_point(outcomes) for outcomes in curve]),
        policy=_point(chosen),
        random_curve=_in_order([_random_point(outcomes, exit_f1) for outcomes in curve]),
        oracle_curve=_oracle_curve(exit_f1),
    )


def _with_worker(
    recording: Recording, window_layers: IntArray, settings: ExitSettings, max_edge_layers: int
) -> dict[str, Any]:
    """What device and worker answer together: handed over after `max_edge_layers`, then run to the
    end. The mean is of the layers that both ran."""
    together = np.where(window_layers <= max_edge_layers, window_layers, recording.layers)
    outcomes = answer_questions(recording, together, settings)
    return {
        **outcomes.metrics(recording.has_answer),
        "mean_layers_run": float(outcomes.layers.mean()),
        "max_edge_layers": max_edge_layers,
    }


def _exit_metrics(recording: Recording, layer: int, settings: ExitSettings) -> Metrics:
    has_answer = recording.has_answer
    metrics = answer_at_exit(recording, layer, settings).metrics(has_answer)
    forced = answer_at_exit(recording, layer, settings, forced=True)
    if has_answer.any():
        metrics["HasAns_f1_forced"] = 100.0 * float(forced.f1[has_answer].mean())
    best = best_threshold(forced.f1, forced.no_answer_margin, has_answer)
    # The margin is shifted and scaled by the settings; the threshold is given on the logits' scale.
    threshold = settings.no_answer_thresholds[layer - 1]
    metrics["best_f1"] = best.score
    metrics["best_f1_thresh"] = best.threshold * settings.temperatures[layer - 1] + threshold
    return metrics


def _best_rows(best_scores: FloatArray, first: IntArray) -> IntArray:
    """[N] the window row with each question's best span; of equals the first."""
    counts = np.diff(first, append=len(best_scores))
    question = np.repeat(np.arange(len(first)), counts)
    # Sorted by question, then from the best score down; sorting is stable, so first wins.
    order = np.lexsort((-best_scores, question))
    best: IntArray = order[first]
    return best


def _point(outcomes: Outcomes) -> Point:
    return Point(float(outcomes.layers.mean()), 100.0 * float(outcomes.f1.mean()))


def _random_point(outcomes: Outcomes, exit_f1: FloatArray) -> Point:
    """The expected F1 when as many questions stop at each layer, but chance says which."""
    layers = exit_f1.shape[1]
    shares = np.bincount(outcomes.layers, minlength=layers + 1)[1:] / len(outcomes.layers)
    mean_layer = float(shares @ np.arange(1, layers + 1))
    return Point(mean_layer, 100.0 * float(shares @ exit_f1.mean(axis=0)))


def _oracle_curve(exit_f1: FloatArray) -> list[Point]:
    """The best F1 for a budget of layers by who knows each question's F1 [N, L] at each exit.

    For a price per layer, each question stops where F1 minus price is highest; the prices from
    dear to free trace the upper concave bound of every policy on whole questions.
    """
    layer_numbers = np.arange(1, exit_f1.shape[1] + 1)
    points = []
    for price in (1.0, *np.geomspace(0.5, 1e-3, 25)):
        chosen = (exit_f1 - price * layer_numbers).argmax(axis=1)
        f1 = exit_f1[np.arange(len(chosen)), chosen].mean()
        points.append(Point(float(chosen.mean() + 1), 100.0 * float(f1)))
    return _in_order(points)


def _in_order(points: Sequence[Point]) -> list[Point]:
    return sorted(set(points), key=lambda point: (point.mean_layer, point.f1))
