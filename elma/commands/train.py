"""`elma train`: a base checkpoint and question files in, a trained model folder out.

Neighbours: `cloud_worker.training.trainer` does the work; this file turns options into
`TrainSettings` and progress into a bar on stderr.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elma.commands.training_options import (
    EpochsOption,
    LearningRateOption,
    MaxMinutesOption,
    ResumeOption,
    SeedOption,
    StepsOption,
    TorchThreadsOption,
    seconds_of,
    use_threads,
)
from elma.extras import require_extra
from elma.output import CommandError, JsonOption, print_json
from elma.progress import TrainingBar

BaseOption = Annotated[str, typer.Option(help="Model folder, hub id, or a BERT to convert.")]
DataOption = Annotated[
    list[str],
    typer.Option(
        help="SQuAD JSON (plain or .gz) or hub data set; FILE@WEIGHT to weigh it; repeatable."
    ),
]
OutOption = Annotated[Path, typer.Option(help="Folder for the weights, log, curves, checkpoint.")]
SourceWeightOption = Annotated[
    list[str] | None,
    typer.Option(help="SOURCE=WEIGHT for questions that name their source; repeatable."),
]
NegativesOption = Annotated[
    float, typer.Option(help="Weight of synthetic unanswerable questions; 0 makes none.")
]
NegativesFromOption = Annotated[
    list[str] | None, typer.Option(help="Make them from this source only; repeatable.")
]
LayersOption = Annotated[int, typer.Option(help="Reshape the base; 0 keeps it.")]
GroupsOption = Annotated[int, typer.Option(help="Parameter groups; 0 keeps them.")]
TeacherOption = Annotated[str, typer.Option(help="Model folder whose logits teach the exits.")]
DistillationRateOption = Annotated[
    float, typer.Option(help="Share of the distillation loss, 0 to 1.")
]
DistillationTemperatureOption = Annotated[float, typer.Option(help="Softens both sides' logits.")]
ExitWeightPowerOption = Annotated[float, typer.Option(help="Exit k's loss weighs k to this power.")]
LastExitShareOption = Annotated[
    float, typer.Option(help="Share of the loss kept for the last exit.")
]
WarmupShareOption = Annotated[
    float, typer.Option(help="Share of the steps in which the learning rate grows.")
]
WeightDecayOption = Annotated[float, typer.Option(help="AdamW's, on matrices.")]
GradientClipOption = Annotated[float, typer.Option(help="Largest norm of a gradient.")]
DropoutOption = Annotated[float, typer.Option(help="On embeddings and sub-layer outputs.")]
AverageDecayOption = Annotated[
    float, typer.Option(help="Decay of the running average of weights that is saved.")
]
BatchWindowsOption = Annotated[int, typer.Option(help="Most windows of a batch.")]
BatchTokensOption = Annotated[int, typer.Option(help="Most tokens of a batch, padding included.")]
MaxTokensOption = Annotated[int, typer.Option(help="Longest training window.")]
FreezeEmbeddingsOption = Annotated[
    bool, typer.Option(help="Keep word embeddings fixed at values that pack to int4.")
]
Bf16Option = Annotated[
    bool, typer.Option(help="Compute in bfloat16 where that is safe (autocast).")
]
CheckpointSecondsOption = Annotated[
    float, typer.Option(help="Time between two checkpoints in --out.")
]


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("train", short_help="Train all exits at once.")(train)


def train(
    base: BaseOption,
    data: DataOption,
    out: OutOption,
    source_weight: SourceWeightOption = None,
    negatives: NegativesOption = 0.0,
    negatives_from: NegativesFromOption = None,
    layers: LayersOption = 0,
    groups: GroupsOption = 0,
    teacher: TeacherOption = "",
    distillation_rate: DistillationRateOption = 0.3,
    distillation_temperature: DistillationTemperatureOption = 2.0,
    exit_weight_power: ExitWeightPowerOption = 1.0,
    last_exit_share: LastExitShareOption = 0.3,
    epochs: EpochsOption = 2,
    steps: StepsOption = 0,
    learning_rate: LearningRateOption = 1e-4,
    warmup_share: WarmupShareOption = 0.05,
    weight_decay: WeightDecayOption = 0.01,
    gradient_clip: GradientClipOption = 1.0,
    dropout: DropoutOption = 0.0,
    average_decay: AverageDecayOption = 0.998,
    batch_windows: BatchWindowsOption = 32,
    batch_tokens: BatchTokensOption = 8192,
    max_tokens: MaxTokensOption = 384,
    freeze_embeddings: FreezeEmbeddingsOption = False,
    bf16: Bf16Option = True,
    threads: TorchThreadsOption = 0,
    seed: SeedOption = 1,
    checkpoint_seconds: CheckpointSecondsOption = 180.0,
    max_minutes: MaxMinutesOption = None,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train all exits at once, from a base checkpoint.

    Interrupt it at any time: --resume goes on with the same data in the same order. Under torchrun
    or accelerate launch it uses every process it is given.
    """
    require_extra("train", "elma train")

    from cloud_worker.training.settings import ObjectiveSettings, TrainSettings
    from cloud_worker.training.trainer import train as run_training

    use_threads(threads)
    settings = TrainSettings(
        base=base,
        out=str(out),
        data=tuple(data),
        source_weights=parse_weights(source_weight or []),
        negatives=negatives,
        negatives_from=tuple(negatives_from or ()),
        layers=layers,
        groups=groups,
        teacher=teacher,
        objective=ObjectiveSettings(
            distillation_rate, distillation_temperature, exit_weight_power, last_exit_share
        ),
        epochs=epochs,
        steps=steps,
        learning_rate=learning_rate,
        warmup_share=warmup_share,
        weight_decay=weight_decay,
        gradient_clip=gradient_clip,
        dropout=dropout,
        average_decay=average_decay,
        batch_windows=batch_windows,
        batch_tokens=batch_tokens,
        max_tokens=max_tokens,
        freeze_embeddings=freeze_embeddings,
        bf16=bf16,
        seed=seed,
        checkpoint_seconds=checkpoint_seconds,
    )
    with TrainingBar() as bar:
        folder = run_training(
            settings,
            resume=resume,
            max_seconds=seconds_of(max_minutes),
            on_progress=bar.show,
        )
    if as_json:
        last = bar.last
        print_json(
            {
                "model": str(folder),
                "steps": last.step if last else None,
                "loss": last.loss if last else None,
            }
        )
    else:
        typer.echo(f"trained model in {folder}; next: elma calibrate {folder} --data DEV.json")


def parse_weights(pairs: list[str]) -> dict[str, float]:
    """SOURCE=WEIGHT options as a mapping. Raises CommandError for what is none."""
    weights: dict[str, float] = {}
    for pair in pairs:
        source, _, weight = pair.partition("=")
        try:
            weights[source] = float(weight)
        except ValueError as error:
            raise CommandError(
                f"--source-weight {pair!r} is not SOURCE=WEIGHT, such as squad2=3", exit_status=2
            ) from error
    return weights
