"""One pass of a reader over questions, with what every exit said of every window kept.

Input: a reader and questions. Output: a `Recording` of arrays, from which full depth, every exit
and every policy are computed offline without running the reader again.
Neighbours: `evaluation` and `calibration` read the recording; `reader.walk` is what the device
does live, and a test holds the two to the same answers.

Shapes: N questions, W windows, L layers, C candidate spans. Layer k stands at column k - 1; the
windows of a question stand next to each other, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cloud_worker.training.measuring_errors import EvaluationError
from cloud_worker.training.policies import IntArray
from cloud_worker.training.squad_files import Question
from cloud_worker.training.squad_metrics import (
    BoolArray,
    FloatArray,
    GoldAnswers,
    gold_answers,
    has_answer_mask,
)
from reader.errors import InputError
from reader.exits import CALIBRATED_CRITERIA, CRITERIA, ExitSettings
from reader.model import Reader
from reader.span_search import MAX_SPANS
from reader.spans import WindowSpans, best_spans
from reader.windows import Window

TextArray: TypeAlias = NDArray[np.object_]
Progress: TypeAlias = Callable[[int, int], None]
# Bounds a batch's memory and keeps its matrices large enough for a CPU to be quick.
BATCH_TOKENS = 6_144


@dataclass(frozen=True)
class Recording:
    """What every exit of a reader said of every window of some questions."""

    questions: tuple[Question, ...]  # N
    first_window: IntArray  # [N] row of each question's first window
    null_scores: FloatArray  # [W, L] logit sum of "no answer"
    span_scores: FloatArray  # [W, L, C] logit sums, best first, -inf where there are fewer
    span_places: IntArray  # [W, L, C, 2] characters of the passage, start and end
    texts: TextArray  # [W, L] the best span's text
    exact: FloatArray  # [W, L] its exact match, 0 or 1, as if it were the answer
    f1: FloatArray  # [W, L] its F1, 0..1
    uncertainty: Mapping[str, FloatArray]  # criterion on raw logits -> [W, L], 0 for certain

    @property
    def layers(self) -> int:
        """Layers of the reader that was recorded."""
        return int(self.null_scores.shape[1])

    @property
    def has_answer(self) -> BoolArray:
        """[N] true where the question is answerable."""
        return has_answer_mask(self.questions)

    @property
    def window_counts(self) -> IntArray:
        """[N] windows of each question."""
        counts: IntArray = np.diff(self.first_window, append=len(self.null_scores))
        return counts

    def uncertainty_under(self, settings: ExitSettings) -> FloatArray:
        """[W, L] uncertainty under the criterion of `settings`, 0 for certain.

        That of a calibrated criterion follows from the scores (`exits.decision_uncertainty`).
        """
        if settings.criterion not in CALIBRATED_CRITERIA:
            return self.uncertainty[settings.criterion]
        nulls = self.null_scores - np.array(settings.no_answer_thresholds)
        margins = (nulls - self.span_scores[:, :, 0]) / np.array(settings.temperatures)
        decision: FloatArray = 2.0 / (1.0 + np.exp(np.minimum(np.abs(margins), 700.0)))
        return decision

    def select(self, wanted: Sequence[Question]) -> Recording:
        """The part that belongs to some of its questions, in its own order."""
        identifiers = {question.id for question in wanted}
        chosen = np.array([question.id in identifiers for question in self.questions])
        counts = self.window_counts
        rows = np.repeat(chosen, counts)
        return replace(
            self,
            questions=tuple(q for q in self.questions if q.id in identifiers),
            first_window=_first_rows(counts[chosen]),
            null_scores=self.null_scores[rows],
            span_scores=self.span_scores[rows],
            span_places=self.span_places[rows],
            texts=self.texts[rows],
            exact=self.exact[rows],
            f1=self.f1[rows],
            uncertainty={name: values[rows] for name, values in self.uncertainty.items()},
        )


def record(
    reader: Reader,
    questions: Sequence[Question],
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> Recording:
    """Run every window of every question through all layers once.

    Windows of like length share a batch of at most `batch_tokens` tokens (always one window at
    least). `progress(done, total)` hears of windows after each batch. Raises `EvaluationError`
    for no question, two questions of one id, or a question that the reader cannot read.
    """
    _check_identifiers(questions)
    windows: list[Window] = []
    owners: list[int] = []  # question of each window
    for number, question in enumerate(questions):
        split = _split(reader, question)
        windows.extend(split)
        owners.extend([number] * len(split))
    recording = _empty_recording(questions, np.bincount(owners, minlength=len(questions)), reader)
    golds = [gold_answers(question) for question in questions]
    done = 0
    for rows in in_batches([len(window) for window in windows], batch_tokens):
        _record_batch(reader, recording, rows, [windows[row] for row in rows], owners, golds)
        done += len(rows)
        if progress is not None:
            progress(done, len(windows))
    return recording


def _record_batch(
    reader: Reader,
    recording: Recording,
    rows: list[int],
    windows: list[Window],
    owners: Sequence[int],
    golds: Sequence[GoldAnswers],
) -> None:
    """Run one batch and write its rows of the recording's arrays."""
    batch = reader.embed(windows)
    history = np.zeros((len(rows), 0, 2), dtype=np.int64)  # [B, layers run, 2]
    for layer in range(1, reader.config.layers + 1):
        batch = reader.run(batch, layer - 1, layer)
        view = reader.view(batch, layer, history)
        for criterion, values in recording.uncertainty.items():
            values[rows, layer - 1] = CRITERIA[criterion](view)
        # The window's row stands in for its index: `best_spans` only hands it through.
        results = best_spans(view.start_logits, view.end_logits, window_indexes=rows, layer=layer)
        for window, result in zip(windows, results, strict=True):
            owner = owners[result.window_index]
            record_spans(recording, window, result, owner, golds[owner])
        history = np.concatenate((history, reader.best_span(view)[:, None]), axis=1)


def record_spans(
    recording: Recording, window: Window, result: WindowSpans, owner: int, gold: GoldAnswers
) -> None:
    """Write what one exit says of one window, ranked as `reader.spans.choose_answers` ranks."""
    row, column = result.window_index, result.layer - 1
    places: dict[tuple[int, int], float] = {}
    for span in result.spans:
        place = window.offsets[span.start_token][0], window.offsets[span.end_token][1]
        # Several tokens can come from one character, so two spans can be the same characters.
        places[place] = max(places.get(place, -np.inf), span.score)
    recording.null_scores[row, column] = result.null_score
    ranked = sorted(places.items(), key=lambda item: (-item[1], item[0]))
    for position, (place, score) in enumerate(ranked):
        recording.span_scores[row, column, position] = score
        recording.span_places[row, column, position] = place
    start, end = ranked[0][0] if ranked else (0, 0)
    text = recording.questions[owner].context[start:end]
    recording.texts[row, column] = text
    recording.exact[row, column] = gold.exact(text)
    recording.f1[row, column] = gold.f1(text)


def _empty_recording(
    questions: Sequence[Question], counts: NDArray[np.intp], reader: Reader
) -> Recording:
    shape = (int(counts.sum()), reader.config.layers)  # [W, L]
    return Recording(
        questions=tuple(questions),
        first_window=_first_rows(counts.astype(np.int64)),
        null_scores=np.zeros(shape),
        span_scores=np.full((*shape, MAX_SPANS), -np.inf),
        span_places=np.zeros((*shape, MAX_SPANS, 2), dtype=np.int64),
        texts=np.full(shape, "", dtype=np.object_),
        exact=np.zeros(shape),
        f1=np.zeros(shape),
        uncertainty={name: np.zeros(shape) for name in CRITERIA if name not in CALIBRATED_CRITERIA},
    )


def _split(reader: Reader, question: Question) -> list[Window]:
    try:
        return reader.split(question.question, question.context)
    except InputError as error:
        raise EvaluationError(
            f"question {question.id} cannot be read ({error}); take it out of the file"
        ) from error


def _check_identifiers(questions: Sequence[Question]) -> None:
    if not questions:
        raise EvaluationError("there is no question to measure on; give a file that has some")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise EvaluationError(
                f"the question id {question.id} stands twice in the file, so its predictions "
                "cannot be told apart; give each question an id of its own"
            )
        seen.add(question.id)


def in_batches(lengths: Sequence[int], batch_tokens: int = BATCH_TOKENS) -> list[list[int]]:
    """Rows in batches of like length, longest first: memory runs out at once or not at all."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        # The first row of a batch is its longest and sets the padded length.
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _first_rows(counts: IntArray) -> IntArray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)[:-1]])
