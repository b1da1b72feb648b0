"""Model folders on disk: found, checked, digested and read lazily, without torch.

In: a folder. Out: its tensors, decoded when they are asked for, and the digest by which edge and
worker know that they hold the same weights. Neighbours: `storage` has the encodings,
`tensor_names` the names; `network_files` makes a torch network of a folder, engines read it here.

A folder holds

    config.json           AlbertConfig, and what was pruned     (Hugging Face)
    tokenizer.json        the fast tokenizer                    (Hugging Face)
    model.safetensors     AlbertForQuestionAnswering            (Hugging Face), or
    packed.safetensors    the same tensors, encoded by `storage`, only what pruning left
    exits.safetensors     the exit heads; without it every exit starts from `qa_outputs`
    exits.json            criterion and thresholds (`exits.ExitSettings`)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reader.arrays import FloatArray
from reader.config import ReaderConfig
from reader.errors import ModelFolderError
from reader.storage import PACKED_ENCODINGS, StoredTensor, find_stored
from reader.tensor_file import TensorFile
from reader.tensor_names import cut_to_size, hugging_face_sources, tensor_shapes

WEIGHTS_FILE = "model.safetensors"
PACKED_FILE = "packed.safetensors"
EXITS_FILE = "exits.safetensors"
DIGESTED_FILES = (
    "config.json",
    "tokenizer.json",
    WEIGHTS_FILE,
    PACKED_FILE,
    EXITS_FILE,
    "exits.json",
    "bottleneck.safetensors",
)
SHIPPED_MODELS = ("elma-small", "elma-fast")
"""In the package; the first one is the default."""


class ModelTensors:
    """The tensors of a model folder under our names, each read from disk when it is asked for.

    Names are those of `tensor_names.tensor_shapes`: "embeddings.word.weight",
    "groups.3.up.weight", "exits.4.span.bias" ...
    """

    def __init__(
        self,
        folder: Path,
        config: ReaderConfig,
        weights: Mapping[str, NDArray[Any]],
        exits: Mapping[str, NDArray[Any]],
    ) -> None:
        """Use `ModelTensors.open`."""
        self.folder, self.config = folder, config
        self.shapes = tensor_shapes(config)
        self._weights, self._exits = weights, exits

    @classmethod
    def open(cls, folder: Path) -> ModelTensors:
        """Open a folder; every name is looked up, no tensor is read.

        Raises `ModelFolderError` when a file or a tensor is missing.
        """
        config = load_config(folder)
        packed, plain = folder / PACKED_FILE, folder / WEIGHTS_FILE
        path = packed if packed.is_file() else plain
        if not path.is_file():
            raise ModelFolderError(
                f"{folder} holds neither {WEIGHTS_FILE} nor {PACKED_FILE}; "
                "save the checkpoint with safe_serialization=True"
            )
        exits = folder / EXITS_FILE
        opened = cls(folder, config, TensorFile(path), TensorFile(exits) if exits.is_file() else {})
        stored = set(opened._weights)
        for name in opened.shapes:
            for source in hugging_face_sources(name):
                if not {source, *(f"{source}.{kind}" for kind in PACKED_ENCODINGS)} & stored:
                    raise ModelFolderError(f"{folder}: tensor {name} is missing from {path.name}")
        return opened

    def read(self, name: str) -> FloatArray:
        """A tensor in float32, in memory of its own.

        Raises `ModelFolderError` when its shape is not what the configuration wants.
        """
        sources = hugging_face_sources(name)
        if sources:
            parts = [self._stored(name, source).decode() for source in sources]
            parts = [cut_to_size(name, part, self.config) for part in parts]
            value = parts[0] if len(parts) == 1 else np.concatenate(parts)
        else:
            value = self._read_exit(name)
        self._check_shape(name, value.shape)
        return np.ascontiguousarray(value)

    def stored(self, name: str) -> StoredTensor | None:
        """A packed tensor as it lies on disk, for an engine that keeps codes in memory.

        A matrix in int8 or int4, or the word embeddings in any packed encoding that decodes row by
        row; None for what is stored as floats, sparse, or in parts of different encodings.
        """
        parts = [self._stored(name, source) for source in hugging_face_sources(name)]
        if {part.encoding for part in parts} not in ({"int8"}, {"int4"}, {"mixed"}):
            return None
        whole = parts[0]
        if len(parts) > 1:
            whole = StoredTensor(
                whole.encoding,
                np.concatenate([part.codes for part in parts]),
                np.concatenate([part.scales for part in parts if part.scales is not None]),
            )
        self._check_shape(name, whole.shape)
        return whole

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if shape != self.shapes[name]:
            raise ModelFolderError(
                f"{self.folder}: tensor {name} has shape {shape}, "
                f"the configuration wants {self.shapes[name]}"
            )

    def _stored(self, name: str, source: str) -> StoredTensor:
        try:
            stored = find_stored(source, self._weights)
        except ModelFolderError as error:
            raise ModelFolderError(f"{self.folder}: {error}; copy it again") from error
        if stored is None:
            raise ModelFolderError(f"{self.folder}: tensor {name} is missing")
        return stored

    def _read_exit(self, name: str) -> FloatArray:
        """An exit head; what is not stored starts from `qa_outputs`, a certainty head from 0."""
        _, layer, head, part = name.split(".")
        candidates = [(self._exits, name)]
        if head == "span":  # a folder with span heads alone; one of `transformers`
            candidates += [
                (self._exits, f"exits.{layer}.{part}"),
                (self._weights, f"qa_outputs.{part}"),
            ]
        for arrays, candidate in candidates:
            stored = find_stored(candidate, arrays)
            if stored is not None:
                return stored.decode()
        return np.zeros(self.shapes[name], dtype=np.float32)


def shipped_model_folder(name: str = SHIPPED_MODELS[0]) -> Path:
    """The folder of a model that comes with the package."""
    return Path(__file__).parent / "models" / name


def resolve_model_folder(model: str | Path) -> Path:
    """A folder, the name of a shipped model, or a hub id that is cached or can be fetched.

    Raises `ModelFolderError` with what to do when none of the three leads to a folder.
    """
    folder = Path(model)
    try:
        if folder.is_dir():
            return folder
    except PermissionError as error:
        # Where the current folder is closed to us, no model of that name is in it.
        if str(model) not in SHIPPED_MODELS:
            raise ModelFolderError(
                f"model {model} cannot be looked for as a folder: {error.strerror}; name a folder "
                f"that user {os.geteuid()} may read, or {' or '.join(SHIPPED_MODELS)}"
            ) from error
    if str(model) in SHIPPED_MODELS:
        shipped = shipped_model_folder(str(model))
        if shipped.is_dir():
            return shipped
        raise ModelFolderError(f"the shipped model {model} is missing; reinstall elma-qa")
    return _fetch_from_hub(str(model))


def load_config(folder: Path) -> ReaderConfig:
    """The `config.json` of a folder as `ReaderConfig`. Raises `ModelFolderError`."""
    path = folder / "config.json"
    try:
        return ReaderConfig.from_hugging_face(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ModelFolderError(f"{folder} holds no config.json; is it a model folder?") from error
    except ValueError as error:
        raise ModelFolderError(f"{path} is not JSON: {error}") from error


def folder_digest(folder: Path) -> str:
    """sha256 (hex) over the files that decide what a reader answers, names and lengths included."""
    digest = hashlib.sha256()
    for name in DIGESTED_FILES:
        path = folder / name
        if path.is_file():
            digest.update(f"{name} {path.stat().st_size}\n".encode())
            with path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def _fetch_from_hub(model: str) -> Path:
    try:
        from huggingface_hub import snapshot_download  # heavy, and only for hub ids
    except ImportError as error:
        raise ModelFolderError(
            f"{model!r} is neither a folder nor one of {', '.join(SHIPPED_MODELS)}; "
            "check the path, or for a hub id: pip install huggingface_hub"
        ) from error

    wanted = ["config.json", "tokenizer*", "vocab.txt", "special_tokens_map.json", "*.safetensors"]
    try:
        return Path(snapshot_download(model, allow_patterns=[*wanted, "exits.json"]))
    except Exception as error:  # the hub client raises many unrelated types
        raise ModelFolderError(
            f"{model!r} is neither a folder nor a model that the hub gives "
            f"({type(error).__name__}); "
            "check the path or the network"
        ) from error
