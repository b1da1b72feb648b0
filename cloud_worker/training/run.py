"""One training run from step to step.

Path of a step: `batches.plan_epoch` names the windows, `batches.collate` pads them, `objective`
scores all exits, AdamW steps, the running average follows. A compressing run masks weights and
limits heads around that (`compressing`), and twice replaces the network by a smaller one: where
pruning ends and where spans become whole numbers. Every few minutes `checkpoint` writes.
Neighbours: `trainer` begins and ends it, `team` says which processes take part.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cloud_worker.training.batches import Batch, collate, plan_epoch
from cloud_worker.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    seed_step,
)
from cloud_worker.training.compressing import Compression
from cloud_worker.training.cutting import Cut, cut_network, cut_tensors
from cloud_worker.training.features import TrainingWindow
from cloud_worker.training.objective import Objective
from cloud_worker.training.optimizing import (
    load_moments,
    load_optimizer,
    make_optimizer,
    moments_by_name,
    optimizer_tensors,
    tensors_under,
)
from cloud_worker.training.settings import TrainingError, TrainSettings
from cloud_worker.training.step_log import StepLog, StepRow
from cloud_worker.training.team import Team
from reader.network import AlbertReader
from reader.network_files import load_network
from reader.weights import resolve_model_folder

LOG_FILE = "training.csv"


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows after a step."""

    step: int
    steps: int
    loss: float
    questions_per_second: float
    seconds_left: float


class Run:
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
        self.optimizer = make_optimizer(network, settings)
        self.average = {name: value.clone() for name, value in network.state_dict().items()}
        self._teacher = _load_teacher(settings, self.device)
        self.compression = Compression(network, settings, self.steps)
        self.objective = self._make_objective()

    def resume(self) -> None:
        """Go on from the checkpoint in `out`."""
        found = load_checkpoint(self.out, self.settings)
        self.step, self.seconds = found.step, found.seconds
        if found.config != self.network.config:
            self._adopt(AlbertReader(found.config, dropout=self.settings.dropout))
            self.compression = Compression(self.network, self.settings, self.steps)
        self.network.load_state_dict(tensors_under("network.", found.tensors))
        self.average.update(tensors_under("average.", found.tensors))
        load_optimizer(self.optimizer, tensors_under("optimizer.", found.tensors))
        self.compression.load(self.network, tensors_under("compression.", found.tensors))
        self.objective = self._make_objective()

    def finish_compression(self) -> None:
        """Make masks and spans final as they are, wherever their schedules stand."""
        if self.compression.pruner:
            self._end_pruning()
        if self.compression.spans:
            self._end_spans()

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
        with StepLog(self.out / LOG_FILE, self.step, self.network.config.layers) as log:
            for batch in self._batches_from(self.step):
                if self.step >= last_step or self.team.agrees_to_stop(
                    time.monotonic() >= deadline, self.device
                ):
                    break
                if self.compression.ends_pruning(self.step):
                    self._end_pruning()
                if self.compression.ends_spans(self.step):
                    self._end_spans()
                started = time.monotonic()
                loss, per_exit = self._take_step(batch)
                spent = time.monotonic() - started
                self.seconds += spent
                self.step += 1
                if self.team.leads:
                    rate = len(batch.starts) * self.team.size / spent
                    log.write(self._row(loss, rate), per_exit)
                    left = self.seconds / self.step * (self.steps - self.step)
                    on_progress(Progress(self.step, self.steps, loss, rate, left))
                    if time.monotonic() - saved > self.settings.checkpoint_seconds:
                        self._save()
                        saved = time.monotonic()
        if self.team.leads:
            self._save()

    def _take_step(self, batch: Batch) -> tuple[float, list[float]]:
        seed_step(self.settings.seed, self.step, self.team.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.compression.before_step(self.step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
            loss, per_exit = self.objective(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {self.step}; lower --learning-rate and resume"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.compression.after_backward(self.step)
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

    def _make_objective(self) -> nn.Module:
        objective = Objective(
            self.network,
            self.settings.objective,
            self._teacher,
            distillation=self.settings.distillation,
            spans=self.compression.spans,
        ).train()
        return DistributedDataParallel(objective) if self.team.size > 1 else objective

    def _end_pruning(self) -> None:
        """Zero the single weights that are pruned, or cut heads and units out."""
        moments = moments_by_name(self.network, self.optimizer).values()
        self._cut(
            self.compression.finish_pruning(self.network, self.step, [self.average, *moments])
        )

    def _end_spans(self) -> None:
        """Go on with whole-number spans, and without heads that see nothing."""
        self.network.config, cut = self.compression.finish_spans(self.network.config)
        self.objective = self._make_objective()
        self._cut(cut)

    def _cut(self, cut: Cut) -> None:
        """Replace the network by the smaller one; average and moments go along."""
        config = self.network.config
        if cut == Cut.nothing(config):
            return
        moments = {
            part: cut_tensors(values, config, cut)
            for part, values in moments_by_name(self.network, self.optimizer).items()
        }
        self.average = cut_tensors(self.average, config, cut)
        self._adopt(cut_network(self.network, cut, dropout=self.settings.dropout))
        self.compression.cut(self.network, config, cut)
        self.objective = self._make_objective()
        load_moments(self.network, self.optimizer, moments)

    def _adopt(self, network: AlbertReader) -> None:
        """Go on with another network, and with an optimiser that knows nothing yet."""
        self.network = network.to(self.device).train()
        if self.settings.freeze_embeddings:
            network.embeddings.word.weight.requires_grad_(False)
        self.optimizer = make_optimizer(network, self.settings)

    def _row(self, loss: float, questions_per_second: float) -> StepRow:
        return StepRow(
            step=self.step,
            seconds=self.seconds,
            loss=loss,
            learning_rate=self._learning_rate(),
            questions_per_second=questions_per_second,
            sparsity=self.compression.sparsity(self.network.config),
            mean_span_tokens=self.compression.mean_span_tokens(self.network.config),
        )

    def _save(self) -> None:
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors.update({f"average.{name}": value for name, value in self.average.items()})
        tensors.update(optimizer_tensors("optimizer", self.optimizer))
        tensors.update(
            {f"compression.{name}": value for name, value in self.compression.state().items()}
        )
        checkpoint = Checkpoint(self.network.config, self.step, self.seconds, tensors)
        save_checkpoint(self.out, self.settings, checkpoint)


def _load_teacher(settings: TrainSettings, device: torch.device) -> AlbertReader | None:
    if not settings.teacher:
        return None
    return load_network(resolve_model_folder(settings.teacher)).to(device)


def _to_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    moved: dict[str, Tensor] = {name: value.to(device) for name, value in vars(batch).items()}
    return Batch(**moved)
