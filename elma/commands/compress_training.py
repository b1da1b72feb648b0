"""The steps of `elma compress` that train: prune, span, distill.

Input: a model folder, questions, a teacher. Output: a new folder with its report. Neighbours:
`compress` has the steps that only compute, `cloud_worker.compress.steps` trains.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from elma.commands.compress_result import print_step
from elma.commands.training_options import (
    EpochsOption,
    LearningRateOption,
    MaxMinutesOption,
    ModelOutOption,
    ResumeOption,
    SeedOption,
    StepDataOption,
    StepsOption,
    TeacherOption,
    TorchThreadsOption,
    TrainingOptions,
    seconds_of,
    use_threads,
)
from elma.options import ModelArgument
from elma.output import CommandError, JsonOption
from elma.progress import TrainingBar

if TYPE_CHECKING:
    from cloud_worker.training.settings import TrainSettings


class PruneMethod(StrEnum):
    """Which weights go."""

    MOVEMENT = "movement"
    SOFT_MOVEMENT = "soft-movement"
    MAGNITUDE = "magnitude"


class PruneStructure(StrEnum):
    """In what pieces."""

    HEADS_AND_UNITS = "heads-and-units"
    WEIGHTS = "weights"


def register(app: typer.Typer) -> None:
    """Add the verbs to `elma compress`."""
    for step, words in (
        (prune, "Take weights, heads or units away, while training goes on."),
        (span, "Learn how far each attention head needs to see."),
        (distill, "Get back what was lost, from a teacher."),
    ):
        app.command(step.__name__, short_help=words)(step)


def prune(
    model: ModelArgument,
    out: ModelOutOption,
    data: StepDataOption = None,
    method: Annotated[PruneMethod, typer.Option(help="Which weights go.")] = PruneMethod.MOVEMENT,
    structure: Annotated[
        PruneStructure, typer.Option(help="Whole heads and units (faster), or single weights.")
    ] = PruneStructure.HEADS_AND_UNITS,
    keep: Annotated[float, typer.Option(help="Share of single weights to keep.")] = 0.5,
    keep_heads: Annotated[float, typer.Option(help="Share of attention heads to keep.")] = 0.67,
    keep_units: Annotated[float, typer.Option(help="Share of feed-forward units to keep.")] = 0.5,
    with_spans: Annotated[
        bool, typer.Option("--with-spans", help="Learn attention spans in the same run.")
    ] = False,
    teacher: TeacherOption = "",
    steps: StepsOption = 0,
    epochs: EpochsOption = 2,
    learning_rate: LearningRateOption = 1e-4,
    threads: TorchThreadsOption = 0,
    seed: SeedOption = 1,
    max_minutes: MaxMinutesOption = None,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take weights away while training goes on (movement or magnitude pruning).

    Without --data, `--method magnitude --structure weights` drops the smallest weights at once.
    """
    from cloud_worker.training.settings import PruneSettings, SpanSettings

    if not data:
        if (method, structure) != (PruneMethod.MAGNITUDE, PruneStructure.WEIGHTS):
            raise CommandError(
                "pruning trains the model: give --data TRAIN.json (or --method magnitude "
                "--structure weights, which needs none)",
                exit_status=2,
            )
        from cloud_worker.compress.steps import drop_smallest

        print_step(out, drop_smallest(model, out, keep=keep), as_json)
        return
    pruning = PruneSettings(
        method=method.value.replace("-", "_"),
        structure=structure.value.replace("-", "_"),
        keep=keep,
        keep_heads=keep_heads,
        keep_units=keep_units,
        start_from_fisher=method is not PruneMethod.MAGNITUDE and steps > 0,
    )
    options = TrainingOptions(
        model, out, data, teacher, steps, epochs, learning_rate, threads, seed, max_minutes, resume
    )
    spans = SpanSettings() if with_spans else None
    _train("prune", options, options.settings(pruning=pruning, spans=spans), as_json)


def span(
    model: ModelArgument,
    out: ModelOutOption,
    data: StepDataOption = None,
    penalty: Annotated[
        float, typer.Option(help="Price of a span of the longest window, in units of the loss.")
    ] = 0.05,
    teacher: TeacherOption = "",
    steps: StepsOption = 0,
    epochs: EpochsOption = 2,
    learning_rate: LearningRateOption = 1e-4,
    threads: TorchThreadsOption = 0,
    seed: SeedOption = 1,
    max_minutes: MaxMinutesOption = None,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Learn how far each attention head needs to see (adaptive attention span).

    Heads whose span becomes 0 are cut out. Question tokens stay visible to every head.
    """
    from cloud_worker.training.settings import SpanSettings

    options = TrainingOptions(
        model, out, data, teacher, steps, epochs, learning_rate, threads, seed, max_minutes, resume
    )
    _train("span", options, options.settings(spans=SpanSettings(penalty=penalty)), as_json)


def distill(
    model: ModelArgument,
    out: ModelOutOption,
    data: StepDataOption = None,
    teacher: TeacherOption = "",
    rate: Annotated[float, typer.Option(help="Share of the loss that the teacher gives.")] = 0.7,
    temperature: Annotated[float, typer.Option(help="Softens both sides' logits.")] = 2.0,
    same_exit_share: Annotated[
        float, typer.Option(help="Share that comes from the teacher's exit of the same layer.")
    ] = 0.5,
    hidden_weight: Annotated[
        float, typer.Option(help="Weight of the distance between hidden states; 0 leaves it out.")
    ] = 0.0,
    train_embeddings: Annotated[
        bool, typer.Option("--train-embeddings", help="Word embeddings too: after `factorise`.")
    ] = False,
    steps: StepsOption = 0,
    epochs: EpochsOption = 2,
    learning_rate: LearningRateOption = 1e-4,
    threads: TorchThreadsOption = 0,
    seed: SeedOption = 1,
    max_minutes: MaxMinutesOption = None,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a (compressed) model on with a teacher's logits and states: gets back what was lost."""
    from cloud_worker.training.settings import DistillationSettings, ObjectiveSettings

    options = TrainingOptions(
        model, out, data, teacher, steps, epochs, learning_rate, threads, seed, max_minutes, resume
    )
    settings = options.settings(
        objective=ObjectiveSettings(rate, temperature),
        distillation=DistillationSettings(same_exit_share, hidden_weight),
        freeze_embeddings=not train_embeddings,
    )
    _train("distill", options, settings, as_json)


def _train(name: str, options: TrainingOptions, settings: TrainSettings, as_json: bool) -> None:
    from cloud_worker.compress.steps import train_smaller

    use_threads(options.threads)
    with TrainingBar() as bar:
        record = train_smaller(
            name,
            settings,
            resume=options.resume,
            max_seconds=seconds_of(options.max_minutes),
            on_progress=bar.show,
        )
    print_step(options.out, record, as_json)
