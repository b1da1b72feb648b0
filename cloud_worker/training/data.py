"""Training data by name: SQuAD files or hub data sets, into labelled windows.

In: `TrainSettings.data`. Out: one flat list of training windows, in a fixed order. Neighbours:
`squad_files` reads files, `negatives` makes unanswerable ones, `features` labels.
"""

from __future__ import annotations

from pathlib import Path

from cloud_worker.training.features import TrainingWindow, make_training_windows
from cloud_worker.training.negatives import make_negatives
from cloud_worker.training.settings import TrainingError, TrainSettings
from cloud_worker.training.squad_files import AnswerText, Question, read_squad
from reader.windows import WindowSplitter


def load_training_windows(settings: TrainSettings, base: Path) -> list[TrainingWindow]:
    """Every labelled window of the data, synthetic negatives last.

    Raises `TrainingError` when nothing can be read, `SquadFileError` for a broken file.
    """
    weighted: list[tuple[Question, float]] = []
    for name in settings.data:
        file, weight = split_weight(name)
        for question in load_questions(file):
            weighted.append((question, weight * settings.source_weights.get(question.source, 1.0)))
    if settings.negatives > 0:
        allowed = settings.negatives_from
        parents = [item for item, _ in weighted if not allowed or item.source in allowed]
        made = make_negatives(parents, seed=settings.seed)
        weighted.extend((question, settings.negatives) for question in made)
    splitter = WindowSplitter(base / "tokenizer.json")
    windows = list(make_training_windows(weighted, splitter, max_tokens=settings.max_tokens))
    if not windows:
        raise TrainingError(f"no question of {', '.join(settings.data)} can be read")
    return windows


def split_weight(name: str) -> tuple[str, float]:
    """`FILE@2.5` is a file whose questions count two and a half times; without `@`, once.

    Raises `TrainingError` for a negative weight.
    """
    file, at, weight = name.rpartition("@")
    if not at:
        return name, 1.0
    try:
        number = float(weight)
    except ValueError:
        return name, 1.0  # an @ that belongs to the name
    if number < 0:
        raise TrainingError(f"the weight of {name!r} is negative; give FILE@WEIGHT with 0 or more")
    return file, number


def load_questions(name: str) -> list[Question]:
    """The questions of a SQuAD file, or of a hub data set's training split."""
    if Path(name).is_file() or Path(name).suffix in (".json", ".gz"):
        return read_squad(name)
    return _hub_questions(name)


def _hub_questions(name: str) -> list[Question]:
    try:
        from datasets import load_dataset  # the optional extra `train`
    except ImportError as error:
        raise TrainingError(
            f"{name!r} is no file, and hub data sets need: pip install 'elma-qa[train]'"
        ) from error
    try:
        rows = load_dataset(name, split="train")
    except Exception as error:  # the hub client raises many unrelated types
        raise TrainingError(
            f"{name!r} is neither a file nor a data set that the hub gives ({error})"
        ) from error
    return [_hub_question(row, name) for row in rows]


def _hub_question(row: dict[str, object], name: str) -> Question:
    """One row of the `squad`/`squad_v2` layout of the hub."""
    try:
        found = row["answers"]
        assert isinstance(found, dict)  # noqa: S101  # narrows; KeyError/TypeError below otherwise
        answers = tuple(
            AnswerText(text, int(start))
            for text, start in zip(found["text"], found["answer_start"], strict=True)
        )
        return Question(
            id=str(row["id"]),
            question=str(row["question"]),
            context=str(row["context"]),
            title=str(row.get("title", "")),
            answers=answers,
            is_impossible=not answers,
            source=name,
        )
    except (KeyError, TypeError, AssertionError) as error:
        raise TrainingError(
            f"data set {name!r} does not have SQuAD's columns "
            f"(id, title, context, question, answers): {error!r}"
        ) from error
