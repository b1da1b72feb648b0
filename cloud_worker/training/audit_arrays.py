"""Audit records as arrays, and what any thresholds would have answered of them.

Input: records of one release and its settings. Output: the answers, and where they differ from
those of full depth. Neighbour: `from_audit`, which chooses thresholds with it. The rule is that of
`reader.spans.choose_answers`.

Shapes: N questions, W windows, E exits of the device; column E stands for full depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cloud_worker.training.policies import IntArray, exit_layers
from cloud_worker.training.squad_metrics import BoolArray, FloatArray
from reader.exit_traces import NO_ANSWER, AuditRecord, Finding, WindowRecord
from reader.exits import ExitSettings


@dataclass(frozen=True)
class AuditArrays:
    """The records of one release as arrays."""

    first_window: IntArray  # [N] row of each question's first window
    weights: FloatArray  # [N]
    uncertainty: FloatArray  # [W, E + 1], 0 at full depth
    null_scores: FloatArray  # [W, E + 1], calibrated: comparable over layers
    span_scores: FloatArray  # [W, E + 1], the same
    places: IntArray  # [W, E + 1, 2] characters of the best span
    answers: IntArray  # [N, 2] what full depth answers

    @classmethod
    def of(cls, records: Sequence[AuditRecord], settings: ExitSettings, exits: int) -> AuditArrays:
        """Arrays of records that have at least so many exits."""
        windows = [window for record in records for window in record.windows]
        counts = np.array([len(record.windows) for record in records])
        rows = [_calibrated(window, settings, exits) for window in windows]
        audit = cls(
            first_window=np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64),
            weights=np.array([record.weight for record in records]),
            uncertainty=np.array(
                [[*(note.uncertainty for note in w.exits[:exits]), 0.0] for w in windows]
            ),
            null_scores=np.array([[null for null, _ in row] for row in rows]),
            span_scores=np.array([[span for _, span in row] for row in rows]),
            places=np.array(
                [[(found.start, found.end) for found in _findings(w, exits)] for w in windows]
            ),
            answers=np.empty((0, 2), dtype=np.int64),
        )
        full = np.full(len(windows), exits, dtype=np.int64)
        return replace(audit, answers=audit.answers_at(full))

    @property
    def window_weights(self) -> FloatArray:
        """[W] the weight of each window's question."""
        counts = np.diff(self.first_window, append=len(self.uncertainty))
        return np.repeat(self.weights, counts)

    @property
    def has_answer(self) -> BoolArray:
        """[N] whether full depth has an answer."""
        answered: BoolArray = self.answers[:, 0] != NO_ANSWER[0]
        return answered

    def answers_at(self, columns: IntArray) -> IntArray:
        """[N, 2] the characters of the answer when each window stops at its column [W]."""
        rows = np.arange(len(columns))
        nulls = np.minimum.reduceat(self.null_scores[rows, columns], self.first_window)
        spans = self.span_scores[rows, columns]
        counts = np.diff(self.first_window, append=len(columns))
        question = np.repeat(np.arange(len(counts)), counts)
        best = np.lexsort((-spans, question))[self.first_window]  # [N] row of the best span
        places: IntArray = self.places[best, columns[best]]
        answers: IntArray = np.where((nulls > spans[best])[:, None], np.array(NO_ANSWER), places)
        return answers

    def losses(self, thresholds: FloatArray) -> FloatArray:
        """[N] 1 where thresholds [E + 1] lead to another answer than full depth's, else 0."""
        return self.losses_at(exit_layers(self.uncertainty, thresholds) - 1)

    def losses_at(self, columns: IntArray) -> FloatArray:
        """[N] the same, when each window stops at its column [W]."""
        differs: BoolArray = (self.answers_at(columns) != self.answers).any(axis=1)
        return differs.astype(np.float64)


def _findings(window: WindowRecord, exits: int) -> list[Finding]:
    """What the device's exits found, and the deepest result."""
    notes = [
        Finding(layer, note.null_score, note.span_score, note.start, note.end)
        for layer, note in enumerate(window.exits[:exits], start=1)
    ]
    return [*notes, window.final]


def _calibrated(
    window: WindowRecord, settings: ExitSettings, exits: int
) -> list[tuple[float, float]]:
    """Null and span score of each column as `reader.spans.choose_answers` compares them."""
    scores = []
    for found in _findings(window, exits):
        temperature = settings.temperatures[found.layer - 1]
        threshold = settings.no_answer_thresholds[found.layer - 1]
        scores.append(
            ((found.null_score - threshold) / temperature, found.span_score / temperature)
        )
    return scores
