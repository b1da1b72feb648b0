"""Training questions as windows, for steps that look at text.

In: names of question files. Out: a seeded sample of windows; how often words occur.
Neighbours: `steps`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloud_worker.training.data import load_questions
from cloud_worker.training.features import TrainingWindow, make_training_windows
from cloud_worker.training.settings import TrainingError
from reader.weights import load_config
from reader.windows import WINDOW_TOKENS, WindowSplitter

COUNTED_QUESTIONS = 12_000


@dataclass(frozen=True)
class TextSettings:
    """Text that a step looks at: training questions, never those that the result is judged by.

    `windows` are drawn from all of `data` by `seed`; longer ones are cut to `max_tokens`.
    """

    data: tuple[str, ...] = ()
    windows: int = 256
    max_tokens: int = 256
    seed: int = 1


def count_words(folder: Path, text: TextSettings) -> NDArray[np.float64]:
    """How often each word piece occurs in `COUNTED_QUESTIONS` of the data, `[vocabulary]`.

    Raises as `read_windows` does.
    """
    counted = replace(text, windows=COUNTED_QUESTIONS, max_tokens=WINDOW_TOKENS)
    counts = np.zeros(load_config(folder).vocab_size)
    for window in read_windows(folder, counted):
        np.add.at(counts, list(window.token_ids), 1.0)
    return counts


def read_windows(folder: Path, text: TextSettings) -> list[TrainingWindow]:
    """The windows of `text` under the tokenizer of a model folder.

    Raises `TrainingError` when there are none, `SquadFileError` for a broken file.
    """
    questions = [question for name in text.data for question in load_questions(name)]
    random.Random(text.seed).shuffle(questions)  # noqa: S311  # no secret hangs on it
    splitter = WindowSplitter(folder / "tokenizer.json")
    chosen = ((question, 1.0) for question in questions[: text.windows])
    windows = list(make_training_windows(chosen, splitter, max_tokens=text.max_tokens))
    if not windows:
        raise TrainingError(f"no question of {', '.join(text.data)} can be read")
    return windows
