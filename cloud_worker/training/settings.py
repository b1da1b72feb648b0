"""Everything that decides a training run, in one frozen record that is stored beside the weights.

Neighbours: `elma train` and `elma compress` fill it, `trainer` obeys it, `checkpoint` refuses to
resume under another. Light to import: no torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PRUNE_METHODS = ("magnitude", "movement", "soft_movement")
PRUNE_STRUCTURES = ("weights", "heads_and_units")


class TrainingError(Exception):
    """Training cannot start or go on; the message says what to change."""


@dataclass(frozen=True)
class ObjectiveSettings:
    """How the exits' losses are weighed.

    `exit_weight_power` p makes w_k proportional to k^p; `last_exit_share` of the whole goes to the
    last exit on top of its own part.
    """

    distillation_rate: float = 0.3
    distillation_temperature: float = 2.0
    exit_weight_power: float = 1.0
    last_exit_share: float = 0.3


@dataclass(frozen=True)
class DistillationSettings:
    """What a run with a teacher learns from it besides the teacher's last exit.

    The rate and the temperature are `ObjectiveSettings`'. `same_exit_share` (0..1) of the logits'
    loss comes from the teacher's own exit of the same layer, which needs as many layers; the rest
    from its last. `hidden_weight` times the states' mean squared error, in units of the teacher's
    variance, is added, over the layers in `hidden_layers` (empty: all); the teacher must be as
    wide.
    """

    same_exit_share: float = 0.0
    hidden_weight: float = 0.0
    hidden_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_share("same_exit_share", self.same_exit_share)
        if self.hidden_weight < 0:
            raise TrainingError(f"hidden_weight {self.hidden_weight} is negative; give 0 or more")


@dataclass(frozen=True)
class PruneSettings:
    """What a run takes away, by which rule, and when. For `elma compress`.

    `method`: "magnitude" keeps the largest weights; "movement" those that training moves away
    from zero (Sanh et al. 2020, the hard top-v variant with straight-through scores);
    "soft_movement" those whose score passes `soft_threshold` after a sigmoid, pushed down by
    `soft_penalty` times the mean sigmoid, so that what is left is only about what was wanted.

    `structure`: "weights" zeroes entries of every layer matrix, `keep` of each being left;
    "heads_and_units" takes away whole attention heads (`keep_heads`) and feed-forward units
    (`keep_units`, per group, rounded up to a multiple of `unit_multiple`), and at the end of the
    schedule cuts them out of the network, which is faster from then on. Heads compete with all
    others of the network when `heads_compete_globally`, else within their group.

    Shares of the run: nothing is taken before `begin_share`; until `end_share` the density falls
    by the cubic of Zhu and Gupta (2017); then it stays (cool-down). `start_from_fisher` lets
    movement scores start from the ranks of the squared gradients seen before `begin_share` (the
    Fisher information of Kwon et al. 2022) rather than from 0: for short runs.
    """

    method: str = "movement"
    structure: str = "heads_and_units"
    keep: float = 0.5
    keep_heads: float = 1.0
    keep_units: float = 0.5
    heads_compete_globally: bool = True
    unit_multiple: int = 32
    begin_share: float = 0.05
    end_share: float = 0.5
    score_learning_rate: float = 2e-3
    start_from_fisher: bool = False
    soft_threshold: float = 0.1
    soft_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in PRUNE_METHODS:
            raise TrainingError(f"pruning method {self.method!r} is not one of {PRUNE_METHODS}")
        if self.structure not in PRUNE_STRUCTURES:
            raise TrainingError(
                f"pruning structure {self.structure!r} is not one of {PRUNE_STRUCTURES}"
            )
        for name in ("keep", "keep_heads", "keep_units", "soft_threshold"):
            _check_share(name, getattr(self, name))
        if not 0 <= self.begin_share <= self.end_share <= 1:
            raise TrainingError(
                f"pruning from {self.begin_share} to {self.end_share} of the run is no schedule; "
                "use 0 <= begin_share <= end_share <= 1"
            )
        if self.unit_multiple < 1:
            raise TrainingError(f"unit_multiple {self.unit_multiple} must be at least 1")


@dataclass(frozen=True)
class SpanSettings:
    """How adaptive attention spans are learned (Sukhbaatar et al. 2019). For `elma compress`.

    `penalty` times the mean span, in units of the longest window, is added to the loss. A span
    fades over `ramp_tokens`. Learning begins at `begin_share` of the run; at `freeze_share` spans
    become whole numbers, heads without any are cut out, and training goes on under the hard mask
    that the reader uses. `learning_rate` is in units of the longest window a step.
    """

    penalty: float = 0.05
    ramp_tokens: int = 32
    learning_rate: float = 5e-3
    begin_share: float = 0.05
    freeze_share: float = 0.65

    def __post_init__(self) -> None:
        if self.ramp_tokens < 1 or self.penalty < 0:
            raise TrainingError(
                "a span needs a ramp of at least 1 token and a penalty of 0 or more"
            )
        if not 0 <= self.begin_share <= self.freeze_share <= 1:
            raise TrainingError(
                f"learning spans from {self.begin_share} to {self.freeze_share} of the run is no "
                "schedule; use 0 <= begin_share <= freeze_share <= 1"
            )


@dataclass(frozen=True)
class TrainSettings:
    """A run of `elma train`.

    `data` are SQuAD files or hub data sets; `source_weights` repeats or thins the questions of a
    source; `negatives` is the weight of synthetic unanswerable questions (0 makes none) from the
    sources in `negatives_from` (empty: all). `layers` and `groups` reshape the base first (0: as
    it is). Layer weights that are exactly 0 in the base stay 0, unless single weights are pruned
    anew. Exactly one of `epochs` and `steps` counts: `steps` when it is above 0. `pruning` and
    `spans` compress while training; `distillation` says what a `teacher` teaches.
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
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    pruning: PruneSettings | None = None
    spans: SpanSettings | None = None
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
        if self.pruning and self.spans and self.spans.freeze_share < self.pruning.end_share:
            raise TrainingError(
                f"spans freeze at {self.spans.freeze_share} of the run, before pruning ends at "
                f"{self.pruning.end_share}; raise freeze_share or lower end_share"
            )
        if not self.teacher and self.distillation != DistillationSettings():
            raise TrainingError("distillation from another model needs a teacher; name its folder")

    def as_json(self) -> dict[str, Any]:
        """What is stored beside the weights."""
        return asdict(self)

    def save(self, folder: Path, *, steps_done: int, steps_planned: int, seconds: float) -> None:
        """Write `training.json`: the settings, and how far the run came."""
        folder.mkdir(parents=True, exist_ok=True)
        run = {"steps_done": steps_done, "steps_planned": steps_planned, "seconds": round(seconds)}
        text = json.dumps({**self.as_json(), "run": run}, indent=2) + "\n"
        (folder / "training.json").write_text(text, encoding="utf-8")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise TrainingError(f"{name} is {value}; give a share between 0 and 1")
