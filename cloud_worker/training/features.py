"""Questions become training windows: token ids with a start and an end label.

In: questions and the reader's window splitter. Out: `TrainingWindow`s. Neighbours: `batches`
groups them, `objective` scores them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from cloud_worker.training.squad_files import Question
from reader.errors import InputError
from reader.windows import Window, WindowSplitter


@dataclass(frozen=True)
class TrainingWindow:
    """One window with its labels: token positions, 0 and 0 where the window holds no answer.

    `weight` is how often an epoch shows it, on average.
    """

    token_ids: tuple[int, ...]
    question_tokens: int
    start: int
    end: int
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.token_ids)


def make_training_windows(
    questions: Iterable[tuple[Question, float]], splitter: WindowSplitter, *, max_tokens: int
) -> Iterator[TrainingWindow]:
    """The window to train on of each question and its weight, in order; a question that cannot be
    read, or whose weight is 0, is left out.

    Of a long passage the window with the answer is taken, or the first when there is none, and
    it is cut to `max_tokens` around the answer, so that a step's cost is bounded.
    """
    for question, weight in questions:
        if weight <= 0:
            continue
        with contextlib.suppress(InputError):
            windows = splitter.split(question.question, question.context)
            yield replace(_label(windows, question, max_tokens), weight=weight)


def _label(windows: list[Window], question: Question, max_tokens: int) -> TrainingWindow:
    if question.is_impossible or not question.answers:
        return _cut(windows[0], 0, 0, max_tokens)
    answer = question.answers[0]
    first, last = answer.start, answer.start + len(answer.text)
    for window in windows:
        span = token_span(window, first, last)
        if span is not None:
            return _cut(window, *span, max_tokens)
    return _cut(windows[0], 0, 0, max_tokens)


def token_span(window: Window, first: int, last: int) -> tuple[int, int] | None:
    """The tokens of the characters `first .. last - 1` of the passage; None if not all inside."""
    passage = range(window.question_tokens, len(window) - 1)
    covering = [
        token
        for token in passage
        if window.offsets[token][0] < last and window.offsets[token][1] > first
    ]
    if not covering:
        return None
    begins = window.offsets[covering[0]][0] <= first
    ends = window.offsets[covering[-1]][1] >= last
    return (covering[0], covering[-1]) if begins and ends else None


def _cut(window: Window, start: int, end: int, max_tokens: int) -> TrainingWindow:
    """Drop passage tokens beyond `max_tokens`, keeping the answer inside."""
    head, ids = window.question_tokens, window.token_ids
    excess = len(ids) - max_tokens
    if excess > 0:
        room = max_tokens - head - 1
        first = 0
        if end > 0:
            middle = (start + end) // 2 - head
            first = min(max(0, middle - room // 2), len(ids) - 1 - head - room)
        ids = (*ids[:head], *ids[head + first : head + first + room], ids[-1])
        start, end = (max(head, start - first), end - first) if end > 0 else (0, 0)
        end = min(end, len(ids) - 2)
    return TrainingWindow(ids, head, start, end)
