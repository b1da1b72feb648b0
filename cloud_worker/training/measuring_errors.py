"""Every failure of measuring a reader, as one tree (the trainer has its own).

MeasuringError
├── SquadFileError           a question file is not SQuAD 1.1 or 2.0 JSON
├── MissingPredictionError   predictions do not cover every question
├── EvaluationError          a reader could not be measured on these questions
├── CalibrationError         no settings can be chosen from these questions
└── PlotError                a picture could not be drawn or written
"""

from __future__ import annotations


class MeasuringError(Exception):
    """Root of the tree; the message says what failed, where, and what to do."""


class SquadFileError(MeasuringError):
    """A question file could not be read as SQuAD 1.1 or 2.0 JSON."""


class MissingPredictionError(MeasuringError):
    """Predictions do not cover every question, so no comparable score exists."""


class EvaluationError(MeasuringError):
    """A reader could not be measured on these questions."""


class CalibrationError(MeasuringError):
    """No settings can be chosen from these questions."""


class PlotError(MeasuringError):
    """A picture could not be drawn from what was given, or not written."""
