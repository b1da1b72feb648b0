"""What the steps of `elma compress` that train have in common: their options, as one record.

Neighbours: `compress` declares them on each verb and hands them over here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elma.output import CommandError

if TYPE_CHECKING:
    from cloud_worker.training.settings import TrainSettings

DataOption = Annotated[
    list[str] | None,
    typer.Option(help="SQuAD JSON (plain or .gz) or hub data set to train on; FILE@WEIGHT."),
]
TeacherOption = Annotated[
    str, typer.Option(help="Model folder that teaches. Default: the model as it comes in.")
]
StepsOption = Annotated[int, typer.Option(help="Train for these steps; 0 counts epochs.")]
EpochsOption = Annotated[int, typer.Option(min=1)]
LearningRateOption = Annotated[float, typer.Option()]
ThreadsOption = Annotated[int, typer.Option(help="CPU threads; 0 lets torch choose.")]
SeedOption = Annotated[int, typer.Option()]
MaxMinutesOption = Annotated[
    float | None, typer.Option(help="End after so many minutes and save what there is.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")]


@dataclass(frozen=True)
class TrainingOptions:
    """The options of a step that trains, as they stand on the command line."""

    model: str
    out: Path
    data: list[str] | None
    teacher: str
    steps: int
    epochs: int
    learning_rate: float
    threads: int
    seed: int
    max_minutes: float | None
    resume: bool

    def settings(self, **changes: Any) -> TrainSettings:
        """The run's settings; the incoming model teaches unless another teacher is named.

        Word embeddings stay as they are, at values that int4 holds, unless `changes` free them.
        """
        from cloud_worker.training.settings import TrainSettings

        if not self.data:
            raise CommandError("this step trains the model: give --data TRAIN.json", exit_status=2)
        return TrainSettings(
            base=self.model,
            out=str(self.out),
            data=tuple(self.data),
            teacher=self.teacher or self.model,
            steps=self.steps,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            seed=self.seed,
            **{"freeze_embeddings": True, **changes},
        )
