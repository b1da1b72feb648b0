"""Model folders written: named arrays in, a folder that `weights` reads back, without torch.

In: tensors under our names and their `ReaderConfig`. Out: the files of a model folder.
Neighbours: `network_files` comes from a torch network, `elma compress` from another folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from reader.arrays import FloatArray
from reader.config import ReaderConfig
from reader.errors import ModelFolderError
from reader.storage import FLOAT32, StorageFormat, StoredTensor, encode_tensor
from reader.tensor_file import write_tensor_file
from reader.tensor_names import hugging_face_sources, hugging_face_tensors
from reader.weights import EXITS_FILE, PACKED_FILE, WEIGHTS_FILE

TOKENIZER_FILE = "tokenizer.json"
# What transformers wants beside the fast tokenizer; our reader does not.
TOKENIZER_EXTRAS = ("tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


def write_model(
    folder: Path,
    config: ReaderConfig,
    tensors: Mapping[str, FloatArray],
    *,
    tokenizer_from: Path,
    storage: StorageFormat = FLOAT32,
    encoded: Mapping[str, StoredTensor] | None = None,
) -> None:
    """Write a folder that `ModelTensors` reads, and `transformers` too when `storage` is plain
    (what was pruned is stored as zeros then; any other format leaves it out).

    `tokenizer_from` is the folder whose `tokenizer.json` goes along. `encoded`, under our names,
    are tensors that are encoded already and are written as they are (not in a plain format).
    Raises `ModelFolderError` when the folder cannot be written.
    """
    theirs = hugging_face_tensors(tensors, config, full=storage.plain)
    ready = {} if storage.plain else _by_source(encoded or {})
    weights: dict[str, NDArray[Any]] = {}
    for name, value in theirs.items():
        stored = ready.get(name) or encode_tensor(value, storage.encoding_of(name, value.shape))
        weights.update(stored.arrays(name))
    exits = {name: value for name, value in tensors.items() if name.startswith("exits.")}
    written, other = (WEIGHTS_FILE, PACKED_FILE) if storage.plain else (PACKED_FILE, WEIGHTS_FILE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensor_file(folder / written, weights)
        (folder / other).unlink(missing_ok=True)
        write_tensor_file(folder / EXITS_FILE, exits)
        text = json.dumps(config.to_hugging_face(), indent=2) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        for name in (TOKENIZER_FILE, *(TOKENIZER_EXTRAS if storage.plain else ())):
            source, target = tokenizer_from / name, folder / name
            if source.is_file() and source.resolve() != target.resolve():
                shutil.copyfile(source, target)
    except OSError as error:
        raise ModelFolderError(
            f"{folder} cannot be written: {error.strerror}; give another folder"
        ) from error


def _by_source(encoded: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Encoded tensors under Hugging Face names; rows of a fused one go to its sources in turn."""
    ready: dict[str, StoredTensor] = {}
    for name, whole in encoded.items():
        sources = hugging_face_sources(name)
        if len(sources) == 1:
            ready[sources[0]] = whole
            continue
        each = whole.shape[0] // len(sources)
        for number, source in enumerate(sources):
            rows = slice(number * each, (number + 1) * each)
            scales = None if whole.scales is None else whole.scales[rows]
            ready[source] = StoredTensor(whole.encoding, whole.codes[rows], scales)
    return ready
