"""The options that `elma train` and the steps of `elma compress` that train have in common.

Neighbours: `train`, `compress` and `compress_training` declare them on each verb; the steps hand
theirs over as one `TrainingOptions`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elma.output import CommandError

if TYPE_CHECKING:
    from cloud_worker.training.settings import TrainSettings

ModelOutOption = Annotated[
    Path, typer.Option("--out", help="The model folder to write; a new one.")
]
StepDataOption = Annotated[
    list[str] | None,
    typer.Option(
        help="SQuAD JSON (plain or .gz) or hub data set to train on; FILE@WEIGHT; repeatable."
    ),
]
TeacherOption = Annotated[
    str, typer.Option(help="Model folder that teaches. Default: the model as it comes in.")
]
EpochsOption = Annotated[int, typer.Option(min=1, help="Times through all questions.")]
StepsOption = Annotated[int, typer.Option(help="Train for these steps; 0 counts epochs.")]
LearningRateOption = Annotated[float, typer.Option(help="AdamW's, after the warm-up.")]
TorchThreadsOption = Annotated[int, typer.Option(help="CPU threads; 0 lets torch choose.")]
SeedOption = Annotated[int, typer.Option(help="Of everything that chance decides.")]
MaxMinutesOption = Annotated[
    float | None,
    typer.Option(help="End after so many minutes and save the weights as they are then."),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")]


def use_threads(threads: int) -> None:
    """Let torch compute with so many threads; 0 leaves it its own choice."""
    import torch

    if threads:
        torch.set_num_threads(threads)


def seconds_of(max_minutes: float | None) -> float:
    """How long a training may take."""
    return math.inf if max_minutes is None else 60 * max_minutes


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
