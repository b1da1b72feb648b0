"""`elma compress`: a model folder in, a smaller or faster one out.

Each step writes a new folder with `compression.json` (what was asked for, bytes, zeros and shapes
before and after; the list grows from step to step), so steps compose: the folder of one is the
model of the next. Neighbours: `cloud_worker.compress.steps` does the work.
"""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elma.commands import compress_table
from elma.commands.compress_options import (
    DataOption,
    EpochsOption,
    LearningRateOption,
    MaxMinutesOption,
    ResumeOption,
    SeedOption,
    StepsOption,
    TeacherOption,
    ThreadsOption,
    TrainingOptions,
)
from elma.commands.evaluate import ModelArgument, progress_bar
from elma.output import CommandError, JsonOption, print_json

if TYPE_CHECKING:
    from cloud_worker.training.settings import TrainSettings

app = typer.Typer(
    help="Make a model smaller or faster: each step writes a new folder with its report.",
    no_args_is_help=True,
)
OutOption = Annotated[Path, typer.Option("--out", help="The model folder to write; a new one.")]
TextOption = Annotated[
    list[str] | None,
    typer.Option(help="SQuAD JSON with training questions for the step to look at; repeatable."),
]
WindowsOption = Annotated[int, typer.Option(min=1, help="How many windows of that text.")]


class Precision(StrEnum):
    """How weights lie on disk; the first three load in transformers."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    INT4 = "int4"
    SPARSE_INT8 = "sparse-int8"
    SPARSE_FLOAT16 = "sparse-float16"


class PruneMethod(StrEnum):
    """Which weights go."""

    MOVEMENT = "movement"
    SOFT_MOVEMENT = "soft-movement"
    MAGNITUDE = "magnitude"


class PruneStructure(StrEnum):
    """In what pieces."""

    HEADS_AND_UNITS = "heads-and-units"
    WEIGHTS = "weights"


@app.command("precision", short_help="Store weights in fewer bits: float16, int8, int4, sparse.")
def precision(
    model: ModelArgument,
    out: OutOption,
    to: Annotated[Precision, typer.Option(help="How to store the weights.")],
    frequent_words: Annotated[
        int,
        typer.Option(min=0, help="Only so many words get int4 embeddings, others 1 bit; 0: all."),
    ] = 0,
    text: TextOption = None,
    windows: WindowsOption = 256,
    as_json: JsonOption = False,
) -> None:
    """Store weights in fewer bits; seconds, or a minute with --text.

    int8, int4 and sparse keep word embeddings in int4. --text lets int4 round so that errors make
    up for each other (GPTQ), which costs a third of plain rounding's loss. sparse stores zeros in
    one bit: for folders of `prune --structure weights`.
    """
    from cloud_worker.compress.steps import change_precision
    from cloud_worker.compress.text import TextSettings

    with progress_bar("reading text") as progress:
        record = change_precision(
            model,
            out,
            storage=to.value,
            frequent_words=frequent_words,
            text=TextSettings(tuple(text or ()), windows),
            progress=progress,
        )
    _print(out, record, as_json)


@app.command("prune", short_help="Take weights, heads or units away, while training goes on.")
def prune(
    model: ModelArgument,
    out: OutOption,
    data: DataOption = None,
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
    threads: ThreadsOption = 0,
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

        _print(out, drop_smallest(model, out, keep=keep), as_json)
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


@app.command("span", short_help="Learn how far each attention head needs to see.")
def span(
    model: ModelArgument,
    out: OutOption,
    data: DataOption = None,
    penalty: Annotated[
        float, typer.Option(help="Price of a span of the longest window, in units of the loss.")
    ] = 0.05,
    teacher: TeacherOption = "",
    steps: StepsOption = 0,
    epochs: EpochsOption = 2,
    learning_rate: LearningRateOption = 1e-4,
    threads: ThreadsOption = 0,
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


@app.command("distill", short_help="Get back what was lost, from a teacher.")
def distill(
    model: ModelArgument,
    out: OutOption,
    data: DataOption = None,
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
    threads: ThreadsOption = 0,
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


@app.command("factorise", short_help="Narrow the word embeddings (ALBERT's factorisation).")
def factorise(
    model: ModelArgument,
    out: OutOption,
    width: Annotated[int, typer.Option(min=2, help="Width of the word embeddings from now on.")],
    text: TextOption = None,
    windows: WindowsOption = 2000,
    as_json: JsonOption = False,
) -> None:
    """Narrow the word embeddings by their principal components (ALBERT's factorised embedding).

    --text says which words are frequent and fits the mapping to the hidden width; without it all
    words count the same, and the loss is far greater. `distill` afterwards gets most of it back.
    """
    from cloud_worker.compress.steps import narrow_embeddings
    from cloud_worker.compress.text import TextSettings

    settings = TextSettings(tuple(text or ()), windows)
    _print(out, narrow_embeddings(model, out, width=width, text=settings), as_json)


@app.command("bottleneck", short_help="Learn the state codec that sends a tenth of the bytes.")
def bottleneck(
    model: ModelArgument,
    out: OutOption,
    data: Annotated[list[str], typer.Option(help="SQuAD JSON to learn from; repeatable.")],
    layer: Annotated[
        list[int] | None,
        typer.Option(help="Where a device hands over; repeatable. Default: the exits' own layer."),
    ] = None,
    windows: WindowsOption = 1500,
    steps: Annotated[int, typer.Option(min=0, help="Of distillation; 0 keeps the start.")] = 200,
    threads: ThreadsOption = 0,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Learn narrow projections for the states that a device hands over (the `bottleneck` codec).

    The reader's own answers do not change.
    """
    import torch

    from cloud_worker.compress.steps import add_bottleneck
    from cloud_worker.training.bottleneck import BottleneckSettings

    if threads:
        torch.set_num_threads(threads)
    settings = BottleneckSettings(
        data=tuple(data), layers=tuple(layer or ()), windows=windows, steps=steps, seed=seed
    )
    with progress_bar("distilling", "steps") as progress:
        record = add_bottleneck(model, out, settings, progress=progress)
    _print(out, record, as_json)


def _train(name: str, options: TrainingOptions, settings: TrainSettings, as_json: bool) -> None:
    import torch

    from cloud_worker.compress.steps import train_smaller
    from elma.commands.train import TrainingBar

    if options.threads:
        torch.set_num_threads(options.threads)
    with TrainingBar() as bar:
        record = train_smaller(
            name,
            settings,
            resume=options.resume,
            max_seconds=math.inf if options.max_minutes is None else 60 * options.max_minutes,
            on_progress=bar.show,
        )
    _print(options.out, record, as_json)


def _print(out: Path, record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({"model": str(out), **record})
        return
    before, after = record["before"], record["after"]
    typer.echo(
        f"{out}: {after['model_bytes'] / 1e6:.2f} MB, was {before['model_bytes'] / 1e6:.2f} MB; "
        f"{sum(after['heads'])} heads, was {sum(before['heads'])}; "
        f"{sum(after['inner_units'])} inner units, was {sum(before['inner_units'])}; "
        f"{100 * after['zero_share']:.0f} % of what is left is 0"
    )
    typer.echo(f"exits: {record['exits']}")


compress_table.register(app)
