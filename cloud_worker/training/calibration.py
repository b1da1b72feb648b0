"""Chooses the numbers of `exits.json` on calibration questions, with a bound on what exits cost.

Input: a `Recording` of calibration questions and of other articles to report on. Output:
`ExitSettings`, the bound that they passed, and figures on both halves.
Neighbours: `recording` and `evaluation` measure, `score_fitting` fits what an answer's score is,
`policies` orders the candidates, `bounds` tests them, `elma calibrate` writes the result.

In this order, each on the calibration questions:

1. to 3. the no-answer threshold, the temperature and the score map of each exit (`score_fitting`);
4. the exit thresholds: for each criterion a one-parameter family from careful to bold
   (`policies.equal_loss_family`), tested in that order until the upper bound on the mean F1 loss
   against full depth passes `max_f1_drop`, or that on answerable questions `max_has_answer_drop`
   (`bounds.last_certified`). With criterion "auto" all of
   them share the error probability, and the one with the lowest mean exit layer wins. An exit that
   cannot find answers may never stop a question, however certain it looks (`exits_that_read`).

Which guarantee holds. With `tuning` questions of their own, steps 1 to 3 and the family do not
depend on the tested questions, and for questions drawn independently from one population, the mean
F1 loss of the policy is at most `max_f1_drop` with probability `confidence`. Two things weaken it.
Questions come in articles and are not independent, so the bound speaks about more questions of
such articles rather than about new articles; the reported half, which shares no article, is the
check on that. And without `tuning`, thresholds, temperatures and family are fitted on the very
questions that are tested: a few numbers an exit on some 2,000 questions, so the bias is small, but
the stated confidence is then approximate. That is the default, because half as many questions make
the bound 1.4 times as wide, which costs more layers than the bias costs truth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cloud_worker.training.bounds import betting_upper_bound, last_certified
from cloud_worker.training.evaluation import (
    answer_at_exit,
    answer_confidences,
    answer_questions,
    evaluation_report,
    policy_layers,
)
from cloud_worker.training.measuring_errors import CalibrationError
from cloud_worker.training.policies import equal_loss_family
from cloud_worker.training.recording import Recording
from cloud_worker.training.score_fitting import (
    fit_no_answer_thresholds,
    fit_score_maps,
    fit_temperatures,
)
from cloud_worker.training.squad_metrics import FloatArray
from reader.exits import CRITERIA, ExitSettings

AUTO = "auto"
# Uncertainties lie in 0..1, so these never and always stop; JSON has no infinity.
NEVER_STOP, ALWAYS_STOP = -1.0, 1.0
RELIABILITY_BINS = 15
# The share of the last exit's HasAns F1 (forced to answer) below which an exit may not stop.
LEAST_SHARE_OF_LAST_EXIT = 0.5


@dataclass(frozen=True)
class Certificate:
    """What was promised of a policy, and on how many questions it was tested."""

    criterion: str
    max_f1_drop: float  # percent points of F1
    confidence: float  # of the whole choice
    f1_drop: float  # measured on the tested questions, percent points
    f1_drop_bound: float  # upper bound on the mean at the (shared) confidence, percent points
    max_has_answer_drop: float  # the same for answerable questions alone
    has_answer_drop_bound: float
    questions: int
    mean_exit_layer: float  # on the tested questions
    own_tuning_questions: bool


@dataclass(frozen=True)
class Calibration:
    """The chosen settings and what was promised of them."""

    settings: ExitSettings
    certificate: Certificate


@dataclass(frozen=True)
class Request:
    """What the user asks of the policy.

    `max_f1_drop` in percent points of F1 against full depth; `criterion` one of `CRITERIA`, or
    "auto"; `edge_layers` is stored as the device's default last layer. `max_has_answer_drop` bounds
    the same loss on answerable questions alone (None: three times `max_f1_drop`): where half of the
    questions have no answer, an early and confident "no answer" is cheap in F1 and useless to the
    one who asked.
    """

    max_f1_drop: float
    confidence: float
    criterion: str
    edge_layers: int
    max_has_answer_drop: float | None = None

    @property
    def has_answer_limit(self) -> float:
        """The allowed loss on answerable questions, percent points of F1."""
        return self.max_has_answer_drop or 3.0 * self.max_f1_drop

    def __post_init__(self) -> None:
        if self.max_has_answer_drop is not None and not 0.0 < self.max_has_answer_drop <= 100.0:
            raise CalibrationError(
                f"the HasAns F1 drop is {self.max_has_answer_drop}; give percent points above 0"
            )
        if not 0.0 < self.confidence < 1.0:
            raise CalibrationError(
                f"the confidence is {self.confidence}; give one between 0 and 1, such as 0.9"
            )
        if not 0.0 < self.max_f1_drop <= 100.0:
            raise CalibrationError(
                f"the F1 drop is {self.max_f1_drop}; give percent points above 0, such as 1.0"
            )
        if self.criterion != AUTO and self.criterion not in CRITERIA:
            raise CalibrationError(
                f"unknown criterion {self.criterion!r}; use {AUTO} or one of {', '.join(CRITERIA)}"
            )


def calibrate(testing: Recording, request: Request, tuning: Recording | None = None) -> Calibration:
    """Choose settings on `testing` (and, if given, tune on `tuning` alone); see above.

    Falls back to never exiting early, which loses nothing for certain, where no bolder policy
    passes the test. Raises `CalibrationError` for settings that the reader cannot have.
    """
    if not 1 <= request.edge_layers <= testing.layers:
        raise CalibrationError(
            f"the edge layers are {request.edge_layers}; this reader has layers 1..{testing.layers}"
        )
    tuned_on = testing if tuning is None else tuning
    settings = replace(
        ExitSettings.uncalibrated(testing.layers), default_edge_layers=request.edge_layers
    )
    settings = fit_no_answer_thresholds(tuned_on, settings)
    settings = fit_temperatures(tuned_on, settings)
    settings = fit_score_maps(tuned_on, settings)
    criteria = list(CRITERIA) if request.criterion == AUTO else [request.criterion]
    # Bonferroni: the winner is chosen among policies that each may pass by luck.
    confidence = 1 - (1 - request.confidence) / len(criteria)
    choices = [
        _choose_exits(
            testing, tuned_on, replace(settings, criterion=criterion), request, confidence
        )
        for criterion in criteria
    ]
    best = min(choices, key=lambda choice: choice.certificate.mean_exit_layer)
    certificate = replace(best.certificate, own_tuning_questions=tuning is not None)
    return replace(best, certificate=certificate)


def exits_that_read(recording: Recording, settings: ExitSettings) -> list[bool]:
    """For each exit, whether it may stop a question.

    Forced to answer, an early exit of a network that has not read yet finds next to nothing, and
    its certainty means that the question looks like others without an answer. Such exits look
    harmless on the articles that the thresholds were chosen on and fail on others, so an exit
    counts only if it reaches `LEAST_SHARE_OF_LAST_EXIT` of the last exit's F1 on answerable
    questions without the no-answer choice.
    """
    answerable = recording.has_answer
    if not answerable.any():
        return [True] * recording.layers
    found = [
        float(answer_at_exit(recording, layer, settings, forced=True).f1[answerable].mean())
        for layer in range(1, recording.layers + 1)
    ]
    return [f1 >= LEAST_SHARE_OF_LAST_EXIT * found[-1] for f1 in found]


def expected_calibration_error(probabilities: FloatArray, right: FloatArray) -> float:
    """Mean gap between probability [N] and share right (`right` [N], 0 or 1), over equal-width
    bins weighted by their questions (Naeini et al. 2015). 0..1, 0 is perfect."""
    bins = np.minimum((probabilities * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)
    gaps = np.bincount(bins, weights=probabilities - right, minlength=RELIABILITY_BINS)
    return float(np.abs(gaps).sum() / len(probabilities))


def half_report(
    recording: Recording, settings: ExitSettings, *, max_edge_layers: int, confidence: float
) -> dict[str, Any]:
    """Full depth and policy on one half, the drop between them with its own upper bound, and the
    calibration error of the last exit and of the policy, without and with score calibration."""
    report = evaluation_report(recording, settings, max_edge_layers=max_edge_layers)
    losses = f1_losses(recording, settings)
    return {
        "questions": len(recording.questions),
        "full_depth": report["full_depth"],
        "policy": report["policy"],
        "f1_drop": 100.0 * float(losses.mean()),
        "f1_drop_bound": 100.0 * betting_upper_bound(losses, confidence=confidence),
        "calibration_error": _calibration_errors(recording, settings),
    }


def f1_losses(recording: Recording, settings: ExitSettings) -> FloatArray:
    """[N] F1 at full depth minus the policy's, -1..1."""
    full = answer_at_exit(recording, recording.layers, settings)
    policy = answer_questions(recording, policy_layers(recording, settings), settings)
    return full.f1 - policy.f1


def _choose_exits(
    testing: Recording,
    tuning: Recording,
    settings: ExitSettings,
    request: Request,
    confidence: float,
) -> Calibration:
    """The boldest policy of one criterion's family that passes the test at `confidence`."""
    may_stop = exits_that_read(tuning, settings)
    family = [
        _with_exits(settings, np.where(may_stop, thresholds, -np.inf))
        for thresholds in equal_loss_family(
            tuning.uncertainty_under(settings), _window_losses(tuning, settings)
        )
    ]

    def share_of_allowance(candidate: ExitSettings) -> float:
        """The larger of both bounds, each in units of what is allowed. Each test alone holds at
        `confidence`, so passing both does (intersection-union test)."""
        bounds = _bounds(testing, candidate, confidence)
        return max(bounds[0] / request.max_f1_drop, bounds[1] / request.has_answer_limit)

    found = last_certified(family, share_of_allowance, 1.0)
    # Full depth loses nothing against itself: no test is needed for the fallback.
    chosen = family[0] if found is None else found[0]
    bound, has_answer_bound = (0.0, 0.0) if found is None else _bounds(testing, chosen, confidence)
    outcomes = answer_questions(testing, policy_layers(testing, chosen), chosen)
    return Calibration(
        settings=chosen,
        certificate=Certificate(
            criterion=chosen.criterion,
            max_f1_drop=request.max_f1_drop,
            confidence=request.confidence,
            f1_drop=100.0 * float(f1_losses(testing, chosen).mean()),
            f1_drop_bound=bound,
            max_has_answer_drop=request.has_answer_limit,
            has_answer_drop_bound=has_answer_bound,
            questions=len(testing.questions),
            mean_exit_layer=float(outcomes.layers.mean()),
            own_tuning_questions=False,
        ),
    )


def _bounds(testing: Recording, candidate: ExitSettings, confidence: float) -> tuple[float, float]:
    """Upper bounds on the mean F1 loss of all questions and of the answerable ones, in points."""
    losses = f1_losses(testing, candidate)
    answerable = losses[testing.has_answer]
    overall = betting_upper_bound(losses, confidence=confidence)
    if len(answerable) == 0:
        return 100.0 * overall, 0.0
    return 100.0 * overall, 100.0 * betting_upper_bound(answerable, confidence=confidence)


def _window_losses(recording: Recording, settings: ExitSettings) -> FloatArray:
    """[W, L] what its question loses when all its windows stop at a layer.

    Of a question with several windows each gets the whole loss; that is an estimate which orders
    the family, and the test does not rest on it.
    """
    exits = [answer_at_exit(recording, k, settings) for k in range(1, recording.layers + 1)]
    losses = np.stack([exits[-1].f1 - outcomes.f1 for outcomes in exits], axis=1)  # [N, L]
    return np.repeat(losses, recording.window_counts, axis=0)


def _with_exits(settings: ExitSettings, thresholds: FloatArray) -> ExitSettings:
    finite = np.clip(thresholds, NEVER_STOP, ALWAYS_STOP)
    return replace(settings, exit_thresholds=tuple(float(value) for value in finite))


def _calibration_errors(recording: Recording, settings: ExitSettings) -> dict[str, float]:
    last = np.full(len(recording.null_scores), recording.layers, dtype=np.int64)
    ones = (1.0,) * recording.layers
    plain = replace(settings, temperatures=ones, score_slopes=(), score_intercepts=())
    errors = {}
    for name, window_layers in (
        ("full_depth", last),
        ("policy", policy_layers(recording, settings)),
    ):
        for suffix, used in (("_before", plain), ("_after", settings)):
            probabilities = answer_confidences(recording, window_layers, used)
            right = answer_questions(recording, window_layers, used).exact
            errors[name + suffix] = expected_calibration_error(probabilities, right)
    return errors
