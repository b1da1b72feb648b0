"""A torch network from a model folder, and back.

In: a folder. Out: a filled `AlbertReader`; or the other way round. Neighbours: `weights` reads the
tensors, `model_writer` writes them, training and conversion work on the network.
"""

from __future__ import annotations

from pathlib import Path

import torch

from reader.arrays import FloatArray
from reader.model_writer import write_model
from reader.network import AlbertReader
from reader.storage import FLOAT32, StorageFormat
from reader.weights import ModelTensors


def load_network(folder: Path, *, dropout: float = 0.0) -> AlbertReader:
    """The network of a folder in float32, in evaluation mode.

    Raises `ModelFolderError` when a file is missing or a tensor has another shape.
    """
    tensors = ModelTensors.open(folder)
    network = AlbertReader(tensors.config, dropout=dropout)
    network.load_state_dict({name: torch.from_numpy(tensors.read(name)) for name in tensors.shapes})
    return network.eval()


def save_network(
    network: AlbertReader,
    folder: Path,
    *,
    tokenizer_from: Path,
    storage: StorageFormat = FLOAT32,
) -> None:
    """Write `network` so that `load_network` reads it back; see `write_model`."""
    write_model(
        folder,
        network.config,
        network_arrays(network),
        tokenizer_from=tokenizer_from,
        storage=storage,
    )


def network_arrays(network: AlbertReader) -> dict[str, FloatArray]:
    """The network's tensors under our names, float32, in the shapes of `state_dict`."""
    return {
        name: value.detach().to("cpu", torch.float32).numpy()
        for name, value in network.state_dict().items()
    }
