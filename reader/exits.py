"""Exit criteria: how unsure an exit is, and the settings that say when that is sure enough.

In: an exit's logits. Out: one uncertainty a window; a window stops at a layer when its uncertainty
is at most that layer's threshold. Neighbours: `walk` asks, `calibration` chooses thresholds.

    entropy    mean of start and end entropy over valid positions, each divided by log(positions)
               (DeeBERT, Xin et al. 2020; normalised, in float32 log-softmax)
    margin     1 - the smaller of the start's and the end's gap between best and second probability
               (Schwartz et al. 2020 use the largest probability alone)
    patience   1 / length of the run of exits that end here and gave the same best span
               (PABEE, Zhou et al. 2020)
    learned    1 - the probability that the exit's own head gives to being right (BERxiT, Xin et
               al. 2021)
    decision   2 * sigmoid(-|null score - threshold - best span score| / temperature): how near the
               choice between a span and no answer is, after calibration. Ours: the four above look
               at raw logits, in which the no-answer threshold of SQuAD 2.0 is not seen.

Shapes: B windows, T tokens, K earlier exits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from reader.arrays import FloatArray, IntArray
from reader.errors import ModelFolderError
from reader.span_search import find_best_pairs

SETTINGS_FILE = "exits.json"


@dataclass(frozen=True)
class ExitView:
    """What a criterion may look at: one exit's outputs for B windows."""

    start_logits: FloatArray  # [B, T], -inf where no answer can be
    end_logits: FloatArray  # [B, T]
    certainty_logit: FloatArray  # [B], the learned head
    earlier_spans: IntArray  # [B, K, 2], argmax start and end at the exits before this one
    no_answer_threshold: float = 0.0  # of this exit, see ExitSettings
    temperature: float = 1.0  # of this exit


class ExitCriterion(Protocol):
    """A way to be unsure."""

    def __call__(self, view: ExitView) -> FloatArray:
        """Uncertainty `[B]` in 0..1, 0 for certain."""
        ...


def entropy_uncertainty(view: ExitView) -> FloatArray:
    """Entropy of start and of end over valid positions, each divided by the log of their number;
    the mean of both, `[B]` (DeeBERT, Xin et al. 2020, for two distributions)."""
    both = _normalised_entropy(view.start_logits) + _normalised_entropy(view.end_logits)
    return both / np.float32(2)


def margin_uncertainty(view: ExitView) -> FloatArray:
    """One minus the probability gap between best and second, `[B]`; the smaller gap of start and
    end."""
    gaps = []
    for logits in (view.start_logits, view.end_logits):
        probability = np.exp(_log_softmax(logits))  # [B, T]
        best = np.partition(probability, -2, axis=1)[:, -2:]  # [B, 2], second and best
        gaps.append(best[:, 1] - best[:, 0])
    uncertainty: FloatArray = 1 - np.minimum(gaps[0], gaps[1])
    return uncertainty


def patience_uncertainty(view: ExitView) -> FloatArray:
    """One over the number of consecutive exits, this one included, with the same best span; `[B]`
    (PABEE, Zhou et al. 2020)."""
    agree = (view.earlier_spans == best_span(view)[:, None]).all(2)  # [B, K]
    run = agree[:, ::-1].cumprod(1).sum(1)  # [B], counted back from the newest
    uncertainty: FloatArray = (1 / (1 + run)).astype(np.float32)
    return uncertainty


def learned_uncertainty(view: ExitView) -> FloatArray:
    """One minus the learned head's probability of being right, `[B]` (BERxiT, Xin et al. 2021)."""
    return 1 - _sigmoid(view.certainty_logit)


def decision_uncertainty(view: ExitView) -> FloatArray:
    """How near the calibrated choice between the best span and no answer is, `[B]`; 1 on the
    border."""
    null_scores = view.start_logits[:, 0] + view.end_logits[:, 0]  # [B]
    best = find_best_pairs(view.start_logits, view.end_logits).scores[:, 0]
    margin = (null_scores - view.no_answer_threshold - best) / view.temperature
    return 2 * _sigmoid(-np.abs(margin))


CRITERIA: dict[str, Callable[[ExitView], FloatArray]] = {
    "entropy": entropy_uncertainty,
    "margin": margin_uncertainty,
    "patience": patience_uncertainty,
    "learned": learned_uncertainty,
    "decision": decision_uncertainty,
}
# Those whose uncertainty depends on the thresholds and temperatures of `ExitSettings`.
CALIBRATED_CRITERIA = frozenset({"decision"})


def best_span(view: ExitView) -> IntArray:
    """Argmax start and end, `[B, 2]`: what patience compares."""
    return np.stack((view.start_logits.argmax(1), view.end_logits.argmax(1)), axis=1)


@dataclass(frozen=True)
class ExitSettings:
    """What calibration decided; one entry a layer in each tuple. Stored as `exits.json`.

    `exit_thresholds`: stop when uncertainty <= threshold; the last layer always stops.
    `no_answer_thresholds`: no answer when null score - best span score > threshold.
    `temperatures`: scores are divided by it before they become probabilities.
    `default_edge_layers`: where a device hands over unless its own settings say otherwise.
    `score_slopes`, `score_intercepts`: each exit's score map (Platt 1999); empty means none.
    """

    criterion: str
    exit_thresholds: tuple[float, ...]
    no_answer_thresholds: tuple[float, ...]
    temperatures: tuple[float, ...]
    default_edge_layers: int
    score_slopes: tuple[float, ...] = ()
    score_intercepts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise ModelFolderError(
                f"exits: unknown criterion {self.criterion!r}; use one of {', '.join(CRITERIA)}"
            )
        layers = len(self.exit_thresholds)
        if not layers or {len(self.no_answer_thresholds), len(self.temperatures)} != {layers}:
            raise ModelFolderError("exits: thresholds and temperatures need one entry a layer each")
        if not 1 <= self.default_edge_layers <= layers:
            raise ModelFolderError(
                f"exits: default_edge_layers {self.default_edge_layers} is outside 1..{layers}"
            )
        if any(not math.isfinite(value) or value <= 0 for value in self.temperatures):
            raise ModelFolderError("exits: temperatures must be positive and finite")
        if (len(self.score_slopes), len(self.score_intercepts)) not in {(0, 0), (layers, layers)}:
            raise ModelFolderError("exits: score slopes and intercepts need one entry a layer each")
        if any(not math.isfinite(value) or value <= 0 for value in self.score_slopes):
            raise ModelFolderError("exits: score slopes must be positive and finite")
        if any(math.isnan(value) for value in self.exit_thresholds + self.no_answer_thresholds):
            raise ModelFolderError("exits: a threshold is not a number")

    def confidence(self, layer: int, probability: float) -> float:
        """The calibrated probability of being right, from a candidate's probability at an exit.

        `sigmoid(slope * logit(probability) + intercept)`; keeps the order of candidates.
        """
        if not self.score_slopes:
            return probability
        bounded = min(max(probability, 1e-9), 1 - 1e-9)
        logit = math.log(bounded / (1 - bounded))
        raised = self.score_slopes[layer - 1] * logit + self.score_intercepts[layer - 1]
        return 1 / (1 + math.exp(-raised))

    @classmethod
    def uncalibrated(cls, layers: int) -> ExitSettings:
        """Never stop early, answer when a span beats the null: what a new model starts with."""
        return cls("entropy", (-1.0,) * layers, (0.0,) * layers, (1.0,) * layers, layers)

    @classmethod
    def load(cls, folder: Path) -> ExitSettings | None:
        """The settings of a model folder; None when it was never calibrated. Raises
        `ModelFolderError` for a damaged file."""
        path = folder / SETTINGS_FILE
        if not path.is_file():
            return None
        try:
            return cls.decode(path.read_bytes())
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFolderError(
                f"{path} is damaged ({error!r}); run `elma calibrate` again"
            ) from error

    @classmethod
    def decode(cls, content: bytes) -> ExitSettings:
        """The settings of a file's content. Raises KeyError, TypeError, ValueError where it is
        damaged, ModelFolderError where it contradicts itself."""
        values = json.loads(content)
        return cls(
            criterion=str(values["criterion"]),
            exit_thresholds=_numbers(values["exit_thresholds"]),
            no_answer_thresholds=_numbers(values["no_answer_thresholds"]),
            temperatures=_numbers(values["temperatures"]),
            default_edge_layers=int(values["default_edge_layers"]),
            score_slopes=_numbers(values.get("score_slopes", [])),
            score_intercepts=_numbers(values.get("score_intercepts", [])),
        )

    def save(self, folder: Path) -> None:
        """Write `exits.json`."""
        values = asdict(self)
        text = json.dumps(values, indent=2, allow_nan=False) + "\n"
        (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")


def _numbers(values: object) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise TypeError(f"{values!r} is not a list")
    return tuple(float(value) for value in values)


def _normalised_entropy(logits: FloatArray) -> FloatArray:
    log_probability = _log_softmax(logits)  # [B, T]
    probability = np.exp(log_probability)
    terms = probability * np.where(probability > 0, log_probability, 0)
    positions = np.maximum(np.isfinite(logits).sum(1), 2)
    entropy: FloatArray = -terms.sum(1) / np.log(positions).astype(np.float32)
    return entropy


def _log_softmax(logits: FloatArray) -> FloatArray:
    """Over the last axis; the largest is taken off first, so that nothing overflows."""
    shifted = logits - logits.max(1, keepdims=True)
    normalised: FloatArray = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return normalised


def _sigmoid(values: FloatArray) -> FloatArray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)), dtype=np.float32)
