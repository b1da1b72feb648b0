"""`elma train`: questions in, a model folder out.

Path of a step: `batches.plan_epoch` names the windows, `batches.collate` pads them, `objective`
scores all exits, AdamW steps, the running average follows. Every few minutes `checkpoint` writes;
at the end the averaged weights are saved with settings, CSV log and curves. Under `torchrun` or
`accelerate launch` each process takes every n-th batch and gradients are averaged.
"""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from cloud_worker.training.batches import Batch, collate, plan_epoch
from cloud_worker.training.checkpoint import (
    CHECKPOINT_FILE,
    load_checkpoint,
    save_checkpoint,
    seed_step,
)
from cloud_worker.training.data import load_training_windows
from cloud_worker.training.features import TrainingWindow
from cloud_worker.training.objective import Objective
from cloud_worker.training.plots import plot_training_curves
from cloud_worker.training.settings import TrainingError, TrainSettings
from reader.conversion import load_any_checkpoint, reshape_network
from reader.network import AlbertReader
from reader.storage import decode_int4_groups, encode_int4_groups
from reader.weights import load_network, resolve_model_folder, save_network

LOG_FILE = "training.csv"
CURVES_FILE = "training.png"


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows after a step."""

    step: int
    steps: int
    loss: float
    questions_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Team:
    """The processes that train together: one, unless a launcher set the usual variables."""

    rank: int
    size: int

    @classmethod
    def join(cls) -> Team:
        """Join the group that `torchrun` or Accelerate announced, if any."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(0, 1)
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(distributed.get_rank(), size)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0


def train(
    settings: TrainSettings,
    *,
    resume: bool = False,
    stop_after_step: int | None = None,
    max_seconds: float = math.inf,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """Train and save; returns the folder.

    `stop_after_step` ends with a checkpoint alone, as an interruption would. `max_seconds` from
    now, training ends where it is and saves the averaged weights all the same, with the number of
    steps in `training.json`; a later `resume` can still go on. Raises `TrainingError`,
    `SquadFileError`, `ModelFolderError`.
    """
    team = Team.join()
    out = Path(settings.out)
    if not resume and (out / CHECKPOINT_FILE).exists():
        raise TrainingError(
            f"{out} holds the checkpoint of another run; add --resume to go on with it, "
            "or give another --out"
        )
    base = resolve_model_folder(settings.base)
    network = _build_network(settings, base)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{out} cannot be a folder: {error.strerror}; give another") from error
    run = _Run(settings, network, load_training_windows(settings, base), team, out)
    if resume:
        run.resume()
    deadline = time.monotonic() + max_seconds
    run.loop(stop_after_step, deadline, on_progress)
    if team.leads and (run.step == run.steps or time.monotonic() >= deadline):
        network.load_state_dict(run.average)
        save_network(network.eval(), out, tokenizer_from=base)
        settings.save(out, steps_done=run.step, steps_planned=run.steps, seconds=run.seconds)
        plot_training_curves(out / LOG_FILE, out / CURVES_FILE)
    if team.size > 1:
        distributed.barrier()
        distributed.destroy_process_group()
    return out


class _Run:
    """The moving parts of one training run."""

    def __init__(
        self,
        settings: TrainSettings,
        network: AlbertReader,
        windows: list[TrainingWindow],
        team: Team,
        out: Path,
    ) -> None:
        self.settings, self.network, self.windows = settings, network, windows
        self.team, self.out = team, out
        self.step, self.seconds = 0, 0.0
        self.steps = settings.steps or sum(
            len(self._plan(epoch)) // team.size for epoch in range(settings.epochs)
        )
        if not self.steps:
            raise TrainingError("the data give no batch; are all sources weighed 0?")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network.to(self.device)
        self.optimizer = _make_optimizer(network, settings)
        self.average = {name: value.clone() for name, value in network.state_dict().items()}
        teacher = load_network(resolve_model_folder(settings.teacher)) if settings.teacher else None
        objective = Objective(
            network, settings.objective, teacher.to(self.device) if teacher else None
        )
        self.objective: nn.Module = (
            DistributedDataParallel(objective) if team.size > 1 else objective
        )

    def resume(self) -> None:
        """Go on from the checkpoint in `out`."""
        self.step, self.seconds = load_checkpoint(
            self.out, self.settings, self.network, self.average, self.optimizer
        )

    def loop(
        self,
        stop_after_step: int | None,
        deadline: float,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Step until the end, until `stop_after_step`, or until `deadline` (monotonic seconds)."""
        self.objective.train()
        last_step = self.steps if stop_after_step is None else min(stop_after_step, self.steps)
        saved = time.monotonic()
        with _StepLog(self.out / LOG_FILE, self.step, self.network.config.layers) as log:
            for batch in self._batches_from(self.step):
                if self.step >= last_step or self._agree(time.monotonic() >= deadline):
                    break
                started = time.monotonic()
                loss, per_exit = self._take_step(batch)
                spent = time.monotonic() - started
                self.seconds += spent
                self.step += 1
                if self.team.leads:
                    rate = len(batch.starts) * self.team.size / spent
                    log.write(self.step, self.seconds, loss, self._learning_rate(), rate, per_exit)
                    left = self.seconds / self.step * (self.steps - self.step)
                    on_progress(Progress(self.step, self.steps, loss, rate, left))
                    if time.monotonic() - saved > self.settings.checkpoint_seconds:
                        self._save()
                        saved = time.monotonic()
        if self.team.leads:
            self._save()

    def _agree(self, stop: bool) -> bool:
        """Whether any process wants to stop; all of them have to leave the loop together."""
        if self.team.size == 1:
            return stop
        votes = torch.tensor([float(stop)], device=self.device)
        distributed.all_reduce(votes)
        return bool(votes > 0)

    def _take_step(self, batch: Batch) -> tuple[float, list[float]]:
        seed_step(self.settings.seed, self.step, self.team.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
            loss, per_exit = self.objective(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {self.step}; lower --learning-rate and resume"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_clip)
        self.optimizer.step()
        self._follow()
        return value, per_exit.tolist()

    def _follow(self) -> None:
        """The running average of weights; its horizon grows at first, so that it forgets the
        start."""
        decay = min(self.settings.average_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)

    def _learning_rate(self) -> float:
        """Linear warm-up, then linear decay to 0."""
        warmup = max(1, round(self.steps * self.settings.warmup_share))
        if self.step < warmup:
            return self.settings.learning_rate * (self.step + 1) / warmup
        left = (self.steps - self.step) / max(1, self.steps - warmup)
        return self.settings.learning_rate * max(0.0, left)

    def _plan(self, epoch: int) -> tuple[tuple[int, ...], ...]:
        return plan_epoch(
            self.windows,
            epoch=epoch,
            seed=self.settings.seed,
            batch_windows=self.settings.batch_windows,
            batch_tokens=self.settings.batch_tokens,
        ).batches

    def _batches_from(self, step: int) -> Iterator[Batch]:
        """This process's batches, in the order of the run, from a step on; without end."""
        epoch, skipped = 0, 0
        while True:
            plan = self._plan(epoch)
            mine = len(plan) // self.team.size
            for number in range(max(0, step - skipped), mine):
                chosen = plan[number * self.team.size + self.team.rank]
                batch = collate(
                    [self.windows[index] for index in chosen],
                    pad_token_id=self.network.config.pad_token_id,
                )
                yield _to_device(batch, self.device)
            skipped += mine
            epoch += 1

    def _save(self) -> None:
        save_checkpoint(
            self.out,
            self.settings,
            self.network,
            self.average,
            self.optimizer,
            step=self.step,
            seconds=self.seconds,
        )


class _StepLog:
    """`training.csv`: one row a step, appended to; rows past a resumed step are dropped."""

    def __init__(self, path: Path, step: int, layers: int) -> None:
        self._header = [
            "step",
            "seconds",
            "loss",
            "learning_rate",
            "questions_per_second",
            *(f"loss_exit_{layer}" for layer in range(1, layers + 1)),
        ]
        kept: list[list[str]] = []
        if step and path.is_file():
            with path.open(newline="", encoding="utf-8") as stream:
                kept = [row for row in list(csv.reader(stream))[1:] if int(row[0]) <= step]
        self._stream: TextIO = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._stream)
        self._writer.writerow(self._header)
        self._writer.writerows(kept)

    def __enter__(self) -> _StepLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(
        self,
        step: int,
        seconds: float,
        loss: float,
        learning_rate: float,
        questions_per_second: float,
        per_exit: list[float],
    ) -> None:
        """One row, flushed."""
        numbers = [f"{value:.6g}" for value in (seconds, loss, learning_rate, questions_per_second)]
        self._writer.writerow([step, *numbers, *(f"{value:.5f}" for value in per_exit)])
        self._stream.flush()


def _build_network(settings: TrainSettings, base: Path) -> AlbertReader:
    network = load_any_checkpoint(base, dropout=settings.dropout)
    layers = settings.layers or network.config.layers
    groups = settings.groups or min(network.config.groups, layers)
    if (layers, groups) != (network.config.layers, network.config.groups):
        network = reshape_network(network, layers=layers, groups=groups, dropout=settings.dropout)
    if settings.freeze_embeddings:
        word = network.embeddings.word.weight
        with torch.no_grad():  # at the values that the packed file can hold, so packing is free
            word.copy_(decode_int4_groups(*encode_int4_groups(word)))
        word.requires_grad_(False)
    return network.train()


def _make_optimizer(network: AlbertReader, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW without weight decay on biases and norms."""
    trained = [value for value in network.parameters() if value.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def _to_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    moved: dict[str, Tensor] = {name: value.to(device) for name, value in vars(batch).items()}
    return Batch(**moved)
