"""`elma train`: questions in, a model folder out.

In: `TrainSettings`. Out: a folder with the averaged weights, the settings, a CSV log and curves.
Neighbours: `run` goes from step to step, `checkpoint` lets it resume. `elma compress` prunes,
learns spans and distils here too: `PruneSettings`, `SpanSettings`, `DistillationSettings`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cloud_worker.training.checkpoint import CHECKPOINT_FILE
from cloud_worker.training.data import load_training_windows
from cloud_worker.training.plots import plot_training_curves
from cloud_worker.training.run import LOG_FILE, Progress, Run
from cloud_worker.training.settings import TrainingError, TrainSettings
from cloud_worker.training.team import Team
from reader.conversion import load_any_checkpoint, reshape_network
from reader.encodings import decode_int4_groups, encode_int4_groups
from reader.network import AlbertReader
from reader.network_files import save_network
from reader.weights import resolve_model_folder

CURVES_FILE = "training.png"


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
    run = Run(settings, network, load_training_windows(settings, base), team, out)
    if resume:
        run.resume()
    deadline = time.monotonic() + max_seconds
    run.loop(stop_after_step, deadline, on_progress)
    if team.leads and (run.step == run.steps or time.monotonic() >= deadline):
        run.finish_compression()
        run.network.load_state_dict(run.average)
        save_network(run.network.eval(), out, tokenizer_from=base)
        settings.save(out, steps_done=run.step, steps_planned=run.steps, seconds=run.seconds)
        plot_training_curves(out / LOG_FILE, out / CURVES_FILE)
    team.leave()
    return out


def _build_network(settings: TrainSettings, base: Path) -> AlbertReader:
    network = load_any_checkpoint(base, dropout=settings.dropout)
    layers = settings.layers or network.config.layers
    groups = settings.groups or min(network.config.groups, layers)
    if (layers, groups) != (network.config.layers, network.config.groups):
        network = reshape_network(network, layers=layers, groups=groups, dropout=settings.dropout)
    if settings.freeze_embeddings:
        word = network.embeddings.word.weight
        with torch.no_grad():  # at the values that the packed file can hold, so packing is free
            word.copy_(
                torch.from_numpy(decode_int4_groups(*encode_int4_groups(word.detach().numpy())))
            )
        word.requires_grad_(False)
    return network.train()
