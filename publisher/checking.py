"""Is a model fit to be released? Loaded and run as devices will, and compared with what they have.

In: a model folder, questions, the folder of the channel's current release. Out: the canaries of the
release, and how many questions it answers rightly; or `ReleaseRefused`. Neighbours: `making` puts
the canaries into the release; `elma publish` adds the F1, whose measuring needs the training part.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from publisher.errors import ReleaseRefused
from reader.canaries import (
    Canary,
    CanaryQuestion,
    encode_canaries,
    make_canaries,
    run_canaries,
)
from reader.engines.names import ENGINES
from reader.errors import EngineError, ReaderError
from reader.model import Reader
from reader.spans import choose_answers
from reader.walk import walk

PRECISIONS = ("auto", "fp32")
"""What devices run with, and the most exact."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)

Say = Callable[[str], None]


@dataclass(frozen=True)
class GoldQuestion:
    """A question whose right answers are known; none of them: the passage does not hold it."""

    question: str
    passage: str
    right: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """A model that works: its canaries, the engines that ran it ("torch fp32"), and how many of
    the gold questions it answered rightly."""

    canaries: tuple[Canary, ...]
    engines: tuple[str, ...]
    right_answers: int
    questions: int

    @property
    def canaries_file(self) -> bytes:
        """The content of `canaries.json`."""
        return encode_canaries(self.canaries)


@dataclass(frozen=True)
class Quality:
    """What a release is compared by; None where it was not measured. `f1` is 0 to 100."""

    right_answers: int | None
    questions: int | None
    f1: float | None


def check_model(
    folder: Path,
    questions: Sequence[GoldQuestion],
    *,
    threads: int | None = None,
    say: Say = lambda _: None,
) -> Checked:
    """Load and run a folder on every installed engine, as it would by itself and in fp32.

    Raises ReleaseRefused when one of them cannot, when they agree on no question, or when the
    canaries that were made do not pass on one of them.
    """
    try:
        readers = dict(_readers(folder, threads, say))
    except ReaderError as error:
        raise ReleaseRefused(f"{folder} cannot be run as a device would: {error}") from error
    if not readers:
        raise ReleaseRefused(
            "no engine is installed to try the model with; pip install 'elma-qa[torch]'"
        )
    first, *others = readers.values()
    asked = [CanaryQuestion(one.question, one.passage, one.right) for one in questions]
    say(f"asking {len(asked)} questions in {len(readers)} ways")
    try:
        canaries = make_canaries(first, asked, others)
    except ReaderError as error:
        raise ReleaseRefused(f"{folder.name} gives no canaries: {error}") from error
    for name, reader in readers.items():
        report = run_canaries(reader, canaries)
        if not report.has_passed:
            raise ReleaseRefused(f"{folder.name} on {name}: {report.describe()}")
    right_answers = count_right(first, questions)
    return Checked(canaries, tuple(readers), right_answers, len(questions))


def count_right_in(
    folder: Path, questions: Sequence[GoldQuestion], *, threads: int | None = None
) -> int:
    """How many of the questions the model of a folder answers rightly, as `check_model` counts."""
    for _, reader in _readers(folder, threads, lambda _: None):
        return count_right(reader, questions)
    return 0


def count_right(reader: Reader, questions: Sequence[GoldQuestion]) -> int:
    """How many questions a reader answers with one of the right answers, or rightly with none."""
    return sum(_is_right(reader, one) for one in questions)


def refuse_worse(new: Quality, current: Quality, *, allowed_f1_drop: float) -> list[str]:
    """What makes a release worse than the current one, a sentence each; empty where nothing does.

    Only what was measured for both, on the same questions, is compared.
    """
    found = []
    if (
        new.right_answers is not None
        and current.right_answers is not None
        and new.questions == current.questions
        and new.right_answers < current.right_answers
    ):
        found.append(
            f"{new.right_answers} of {new.questions} questions are answered rightly, "
            f"the current release answers {current.right_answers}"
        )
    if new.f1 is not None and current.f1 is not None and new.f1 < current.f1 - allowed_f1_drop:
        found.append(
            f"F1 {new.f1:.2f} is below the {current.f1:.2f} of the current release "
            f"(a drop of {allowed_f1_drop:g} is allowed)"
        )
    return found


def normalise(answer: str) -> str:
    """Text as SQuAD compares it: lower case, without punctuation, articles and double spaces."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def _readers(folder: Path, threads: int | None, say: Say) -> Iterator[tuple[str, Reader]]:
    """Every way to run the folder here, by name. What this machine lacks is left out."""
    seen = set()
    for engine in ENGINES:
        for precision in PRECISIONS:
            with suppress(EngineError):
                reader = Reader.load(folder, engine=engine, precision=precision, threads=threads)
                choice = reader.engine.choice
                name = f"{choice.name} {choice.precision}"
                if name not in seen:
                    seen.add(name)
                    say(f"loaded {folder.name} on {name}")
                    yield name, reader


def _is_right(reader: Reader, asked: GoldQuestion) -> bool:
    try:
        windows = reader.split(asked.question, asked.passage)
    except ReaderError:
        return False
    results = walk(reader, windows).results
    ordered = [results[window.index] for window in windows]
    answer = choose_answers(windows, ordered, asked.passage, reader.settings, top_k=1)[0]
    text = asked.passage[answer.start : answer.end] if answer.start >= 0 else ""
    if not asked.right:
        return not text
    return normalise(text) in {normalise(one) for one in asked.right}
