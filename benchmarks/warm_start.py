"""What a deeper network loses before any training: the loss of each exit on some questions, for the
source and for ways to make twelve layers of it.

    python benchmarks/warm_start.py MODEL --data QUESTIONS.json.gz [--questions 128] [--json]
"""

from __future__ import annotations

import argparse
import json
import random

import torch

from cloud_worker.training.batches import Batch, collate
from cloud_worker.training.features import make_training_windows
from cloud_worker.training.objective import Objective
from cloud_worker.training.settings import ObjectiveSettings
from cloud_worker.training.squad_files import read_squad
from reader.conversion import load_any_checkpoint, reshape_network
from reader.network import AlbertReader
from reader.weights import resolve_model_folder
from reader.windows import WindowSplitter


def main() -> None:
    """Print one row of losses for the source and for each warm start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--questions", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    folder = resolve_model_folder(given.model)
    source = load_any_checkpoint(folder)
    questions = random.Random(0).sample(read_squad(given.data), given.questions)  # noqa: S311  # no secret
    splitter = WindowSplitter(folder / "tokenizer.json")
    weighted = [(question, 1.0) for question in questions]
    windows = sorted(make_training_windows(weighted, splitter, max_tokens=256), key=len)
    batches = [
        collate(windows[first : first + 32], pad_token_id=source.config.pad_token_id)
        for first in range(0, len(windows), 32)
    ]
    layers, groups = given.layers, source.config.groups
    starts = {
        "source": source,
        f"{layers} layers, each group applied again": reshape_network(
            source, layers=layers, groups=groups
        ),
        f"{layers} groups, new ones near the identity": reshape_network(
            source, layers=layers, groups=layers
        ),
    }
    rows = {name: exit_losses(network, batches) for name, network in starts.items()}
    if given.json:
        print(json.dumps(rows))
        return
    for name, losses in rows.items():
        print(f"{name}: " + " ".join(f"{loss:.2f}" for loss in losses))


def exit_losses(network: AlbertReader, batches: list[Batch]) -> list[float]:
    """Mean cross entropy of each exit, in nats."""
    objective = Objective(network, ObjectiveSettings())
    with torch.no_grad():
        losses = torch.stack([objective(batch)[1] for batch in batches]).mean(0)
    return [float(loss) for loss in losses]


if __name__ == "__main__":
    main()
