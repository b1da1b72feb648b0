"""What a release is asked before it goes out: the questions, and the F1 beside the current one's.

In: a SQuAD file, or nothing (the packaged passages). Out: gold questions for the publisher, and F1.
Neighbours: `publisher.checking` asks them; `elma.publishing` refuses by the result. F1 is measured
by the training part, which the publisher itself does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elma.output import CommandError
from publisher.checking import (
    Checked,
    GoldQuestion,
    Quality,
    check_model,
    count_right_in,
    refuse_worse,
)
from publisher.errors import ReleaseRefused
from reader.exits import SETTINGS_FILE

if TYPE_CHECKING:
    from cloud_worker.training.squad_files import Question

MAX_QUESTIONS = 256
"""Of a file of canary questions: each is read in several ways, and then once more."""


@dataclass(frozen=True)
class CheckOptions:
    """`canaries`: a SQuAD file of questions, None for the packaged ones. `data`: a SQuAD file whose
    first `limit` questions of the report half measure F1, None: it is not measured. `force`: a
    worse release is published all the same."""

    canaries: Path | None = None
    data: Path | None = None
    limit: int | None = None
    max_f1_drop: float = 0.0
    force: bool = False
    threads: int | None = None

    def given(self) -> list[str]:
        """The options about questions that were given."""
        names = {"--canaries": self.canaries, "--data": self.data}
        return [name for name, value in names.items() if value is not None]


@dataclass(frozen=True)
class Verdict:
    """A release that may go out: what was found, and its F1 if that was measured. `warnings` say
    what could not be compared, or was forced."""

    checked: Checked
    f1: float | None
    warnings: tuple[str, ...]


def check_release(
    folder: Path,
    current: Path | None,
    current_f1: float | None,
    options: CheckOptions,
    say: Callable[[str], None],
) -> Verdict:
    """Run a model as devices will, and compare it with the channel's current release.

    `current` is the folder of that release (None: there is none, or it is not in this store) and
    `current_f1` what its manifest claims. Raises ReleaseRefused, CommandError.
    """
    questions = gold_questions(options.canaries)
    # One thread unless told otherwise: on a busy machine several wait for each other.
    threads = options.threads or 1
    checked = check_model(folder, questions, threads=threads, say=say)
    f1 = None if options.data is None else measure_f1(folder, options, f"F1 of {folder.name}", say)
    warnings = []
    if not (folder / SETTINGS_FILE).is_file():
        warnings.append("it has no exits.json, so it never exits early; `elma calibrate` makes one")
    old = Quality(None, None, current_f1)
    if current is not None:
        right = count_right_in(current, questions, threads=threads)
        old_f1 = (
            None
            if options.data is None
            else measure_f1(current, options, "F1 of the current release", say)
        )
        old = Quality(right, len(questions), current_f1 if old_f1 is None else old_f1)
    elif current_f1 is not None:
        warnings.append(
            "the current release is not in this store: only the F1 of its manifest was compared"
        )
    if f1 is None and old.f1 is not None:
        warnings.append("F1 was not compared; give --data to measure both on the same questions")
    new = Quality(checked.right_answers, checked.questions, f1)
    worse = refuse_worse(new, old, allowed_f1_drop=options.max_f1_drop)
    if worse and not options.force:
        raise ReleaseRefused(
            f"{folder.name} is not published: {'; '.join(worse)}. --force publishes it all the same"
        )
    return Verdict(checked, f1, (*warnings, *(f"published by force: {one}" for one in worse)))


def gold_questions(path: Path | None) -> list[GoldQuestion]:
    """The questions of a SQuAD file, or the packaged ones. Raises SquadFileError, CommandError."""
    if path is None:
        from elma.demonstration.passages import load_questions

        return [GoldQuestion(one.text, one.passage, one.expected) for one in load_questions()]
    questions = _read_questions(path)
    if len(questions) > MAX_QUESTIONS:
        raise CommandError(
            f"{path} holds {len(questions)} questions; canaries are chosen among at most "
            f"{MAX_QUESTIONS}: give a smaller file (--data takes a large one)",
            exit_status=2,
        )
    return [
        GoldQuestion(one.question, one.context, tuple(answer.text for answer in one.answers))
        for one in questions
    ]


def measure_f1(folder: Path, options: CheckOptions, what: str, say: Callable[[str], None]) -> float:
    """F1 (0 to 100) of a model under its own thresholds, on the report half of `options.data`."""
    from cloud_worker.training import evaluation
    from cloud_worker.training.recording import record
    from elma.progress import progress_bar
    from elma.question_halves import Half, choose_questions
    from reader.model import Reader

    if options.data is None:
        raise CommandError("F1 needs --data", exit_status=2)
    questions = choose_questions(_read_questions(options.data), Half.REPORT, options.limit)
    reader = Reader.load(folder, threads=options.threads)
    say(f"measuring {what} on {len(questions)} questions")
    with progress_bar(what) as progress:
        recording = record(reader, questions, progress=progress)
    edge_layers = reader.settings.default_edge_layers
    report = evaluation.evaluation_report(recording, reader.settings, max_edge_layers=edge_layers)
    return float(report["policy"]["f1"])


def _read_questions(path: Path) -> list[Question]:
    """The questions of a file that the call named. Raises CommandError."""
    from cloud_worker.training.measuring_errors import SquadFileError
    from cloud_worker.training.squad_files import read_squad

    try:
        return read_squad(path)
    except SquadFileError as error:
        raise CommandError(str(error), exit_status=2) from error
