"""Everything that decides a training run, in one frozen record that is stored beside the weights.

Neighbours: `elma train` fills it, `trainer` obeys it, `checkpoint` refuses to resume under another.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cloud_worker.training.objective import ObjectiveSettings


class TrainingError(Exception):
    """Training cannot start or go on; the message says what to change."""


@dataclass(frozen=True)
class TrainSettings:
    """A run of `elma train`.

    `data` are SQuAD files or hub data sets; `source_weights` repeats or thins the questions of a
    source; `negatives` is the weight of synthetic unanswerable questions (0 makes none) from the
    sources in `negatives_from` (empty: all). `layers` and `groups` reshape the base first (0: as
    it is). Exactly one of `epochs` and `steps` counts: `steps` when it is above 0.
    """

    base: str
    out: str
    data: tuple[str, ...]
    source_weights: dict[str, float] = field(default_factory=dict)
    negatives: float = 0.0
    negatives_from: tuple[str, ...] = ()
    layers: int = 0
    groups: int = 0
    teacher: str = ""
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    epochs: int = 2
    steps: int = 0
    learning_rate: float = 1e-4
    warmup_share: float = 0.05
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    dropout: float = 0.0
    average_decay: float = 0.998
    batch_windows: int = 32
    batch_tokens: int = 8_192
    max_tokens: int = 384
    freeze_embeddings: bool = False
    bf16: bool = True
    seed: int = 1
    checkpoint_seconds: float = 180.0

    def __post_init__(self) -> None:
        if not self.data:
            raise TrainingError("no training data; give --data FILE or a hub data set")
        if self.steps < 0 or self.epochs < 1:
            raise TrainingError("train for at least one epoch or one step")
        if not 0 <= self.average_decay < 1:
            raise TrainingError(f"--average-decay {self.average_decay} is outside 0 <= d < 1")
        if self.batch_windows < 1 or self.batch_tokens < self.max_tokens:
            raise TrainingError(
                f"a batch of {self.batch_tokens} tokens cannot hold one window of "
                f"{self.max_tokens}; raise --batch-tokens"
            )

    def as_json(self) -> dict[str, Any]:
        """What is stored beside the weights."""
        return asdict(self)

    def save(self, folder: Path, *, steps_done: int, steps_planned: int, seconds: float) -> None:
        """Write `training.json`: the settings, and how far the run came."""
        folder.mkdir(parents=True, exist_ok=True)
        run = {"steps_done": steps_done, "steps_planned": steps_planned, "seconds": round(seconds)}
        text = json.dumps({**self.as_json(), "run": run}, indent=2) + "\n"
        (folder / "training.json").write_text(text, encoding="utf-8")
