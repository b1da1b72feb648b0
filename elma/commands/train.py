"""`elma train`: a base checkpoint and question files in, a trained model folder out.

Neighbours: `cloud_worker.training.trainer` does the work; this file turns options into
`TrainSettings` and progress into a bar on stderr.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elma.extras import require_extra

if TYPE_CHECKING:
    from cloud_worker.training.run import Progress


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("train")(train)


def train(
    base: Annotated[str, typer.Option(help="Model folder, hub id, or a BERT to convert.")],
    data: Annotated[
        list[str],
        typer.Option(help="SQuAD JSON (plain or .gz) or hub data set; FILE@WEIGHT to weigh it."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the weights, log, curves, checkpoint.")],
    source_weight: Annotated[
        list[str] | None,
        typer.Option(help="SOURCE=WEIGHT for questions that name their source; repeatable."),
    ] = None,
    negatives: Annotated[
        float, typer.Option(help="Weight of synthetic unanswerable questions; 0 makes none.")
    ] = 0.0,
    negatives_from: Annotated[
        list[str] | None, typer.Option(help="Make them from this source only; repeatable.")
    ] = None,
    layers: Annotated[int, typer.Option(help="Reshape the base; 0 keeps it.")] = 0,
    groups: Annotated[int, typer.Option(help="Parameter groups; 0 keeps them.")] = 0,
    teacher: Annotated[str, typer.Option(help="Model folder whose logits teach the exits.")] = "",
    distillation_rate: Annotated[
        float, typer.Option(help="Share of the distillation loss, 0 to 1.")
    ] = 0.3,
    distillation_temperature: Annotated[float, typer.Option()] = 2.0,
    exit_weight_power: Annotated[
        float, typer.Option(help="Exit k's loss weighs k to this power.")
    ] = 1.0,
    last_exit_share: Annotated[
        float, typer.Option(help="Share of the loss kept for the last exit.")
    ] = 0.3,
    epochs: Annotated[int, typer.Option()] = 2,
    steps: Annotated[int, typer.Option(help="Stop after these steps; 0 counts epochs.")] = 0,
    learning_rate: Annotated[float, typer.Option()] = 1e-4,
    warmup_share: Annotated[float, typer.Option()] = 0.05,
    weight_decay: Annotated[float, typer.Option()] = 0.01,
    gradient_clip: Annotated[float, typer.Option()] = 1.0,
    dropout: Annotated[float, typer.Option(help="On embeddings and sub-layer outputs.")] = 0.0,
    average_decay: Annotated[
        float, typer.Option(help="Decay of the running average of weights that is saved.")
    ] = 0.998,
    batch_windows: Annotated[int, typer.Option()] = 32,
    batch_tokens: Annotated[int, typer.Option(help="Padding included.")] = 8192,
    max_tokens: Annotated[int, typer.Option(help="Longest training window.")] = 384,
    freeze_embeddings: Annotated[
        bool, typer.Option(help="Keep word embeddings fixed at values that pack to int4.")
    ] = False,
    bf16: Annotated[bool, typer.Option(help="bf16 autocast.")] = True,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 lets torch choose.")] = 0,
    seed: Annotated[int, typer.Option()] = 1,
    checkpoint_seconds: Annotated[float, typer.Option()] = 180.0,
    max_minutes: Annotated[
        float | None,
        typer.Option(help="End after so many minutes and save the weights as they are then."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Train all exits at once, from a base checkpoint.

    Interrupt it at any time: --resume goes on with the same data in the same order. Under torchrun
    or accelerate launch it uses every process it is given.
    """
    require_extra("train", "elma train")

    import torch

    from cloud_worker.training.settings import ObjectiveSettings, TrainSettings
    from cloud_worker.training.trainer import train as run_training

    if threads:
        torch.set_num_threads(threads)
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
            max_seconds=math.inf if max_minutes is None else 60 * max_minutes,
            on_progress=bar.show,
        )
    if as_json:
        last = bar.last
        typer.echo(
            json.dumps(
                {
                    "model": str(folder),
                    "steps": last.step if last else None,
                    "loss": last.loss if last else None,
                }
            )
        )
    else:
        typer.echo(f"trained model in {folder}; next: elma calibrate {folder} --data DEV.json")


class TrainingBar:
    """A progress bar on stderr with loss, questions per second and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self.last: Progress | None = None
        self._bar = RichProgress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            console=Console(stderr=True),
            refresh_per_second=1,
        )
        self._task = self._bar.add_task("training", total=None, detail="")
        self._loss = 0.0

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Draw one step; the loss shown is a running mean."""
        self.last = progress
        self._loss = progress.loss if not self._loss else 0.98 * self._loss + 0.02 * progress.loss
        minutes, seconds = divmod(int(progress.seconds_left), 60)
        detail = (
            f"loss {self._loss:.3f}  {progress.questions_per_second:.1f} questions/s  "
            f"{minutes}:{seconds:02d} left"
        )
        self._bar.update(self._task, completed=progress.step, total=progress.steps, detail=detail)


def parse_weights(pairs: list[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for pair in pairs:
        source, _, weight = pair.partition("=")
        try:
            weights[source] = float(weight)
        except ValueError as error:
            raise typer.BadParameter(
                f"--source-weight {pair!r} is not SOURCE=WEIGHT, such as squad2=3"
            ) from error
    return weights
