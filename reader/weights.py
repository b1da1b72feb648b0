"""Model folders on disk: read and written, in the Hugging Face layout and in our compact one.

In: a folder. Out: a filled `AlbertReader`, and the digest by which edge and worker know that they
hold the same weights. Neighbours: `storage` packs tensors, `model` loads through this file.

A folder holds

    config.json           AlbertConfig                          (Hugging Face)
    tokenizer.json        the fast tokenizer                    (Hugging Face)
    model.safetensors     AlbertForQuestionAnswering            (Hugging Face), or
    packed.safetensors    the same tensors, int8 rows and int4 groups (`storage`)
    exits.safetensors     the exit heads; without it every exit starts from `qa_outputs`
    exits.json            criterion and thresholds (`exits.ExitSettings`)
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reader.config import ReaderConfig
from reader.errors import ModelFolderError
from reader.network import AlbertReader
from reader.storage import pack_tensors, unpack_tensors

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
)
SHIPPED_MODEL = "elma-small"

# Our name of a layer's tensor and where `transformers` keeps it, within one parameter group.
_LAYER_NAMES = {
    "attention_output": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "up": "ffn",
    "down": "ffn_output",
    "output_norm": "full_layer_layer_norm",
}
_EMBEDDING_NAMES = {
    "embeddings.word": "albert.embeddings.word_embeddings",
    "embeddings.position": "albert.embeddings.position_embeddings",
    "embeddings.token_type": "albert.embeddings.token_type_embeddings",
    "embeddings.norm": "albert.embeddings.LayerNorm",
    "embeddings.project": "albert.encoder.embedding_hidden_mapping_in",
}


def shipped_model_folder() -> Path:
    """The folder of the model that comes with the package."""
    return Path(__file__).parent / "models" / SHIPPED_MODEL


def resolve_model_folder(model: str | Path) -> Path:
    """A folder, the name of the shipped model, or a hub id that is cached or can be fetched.

    Raises `ModelFolderError` with what to do when none of the three leads to a folder.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if str(model) == SHIPPED_MODEL:
        if shipped_model_folder().is_dir():
            return shipped_model_folder()
        raise ModelFolderError(f"the shipped model {SHIPPED_MODEL} is missing; reinstall elma-qa")
    return _fetch_from_hub(str(model))


def load_network(folder: Path, *, dropout: float = 0.0) -> AlbertReader:
    """The network of a folder in float32, in evaluation mode.

    Raises `ModelFolderError` when a file is missing or a tensor has another shape.
    """
    config = load_config(folder)
    network = AlbertReader(config, dropout=dropout)
    tensors = _our_names(_read_weights(folder), config)
    tensors.update(_read_exits(folder, tensors, config))
    expected = network.state_dict()
    for name, value in expected.items():
        if name not in tensors:
            raise ModelFolderError(f"{folder}: tensor {name} is missing from {WEIGHTS_FILE}")
        if tensors[name].shape != value.shape:
            raise ModelFolderError(
                f"{folder}: tensor {name} has shape {tuple(tensors[name].shape)}, "
                f"the configuration wants {tuple(value.shape)}"
            )
    network.load_state_dict({name: tensors[name].float() for name in expected})
    return network.eval()


def save_network(
    network: AlbertReader,
    folder: Path,
    *,
    tokenizer_from: Path,
    packed: bool = False,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `network` so that `load_network` reads it back, and `transformers` too unless `packed`.

    `tokenizer_from` is the folder whose `tokenizer.json` goes along. `packed` writes the compact
    file instead (about a quarter of float32); `dtype` is that of the plain one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = hugging_face_tensors(network)
    if packed:
        save_file(pack_tensors(plain), folder / PACKED_FILE)
        (folder / WEIGHTS_FILE).unlink(missing_ok=True)
    else:
        plain = {name: value.to(dtype).contiguous() for name, value in plain.items()}
        save_file(plain, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        (folder / PACKED_FILE).unlink(missing_ok=True)
    exits = {
        f"exits.{layer}.{part}": value.detach().clone().contiguous()
        for layer, head in enumerate(network.exits)
        for part, value in head.state_dict().items()
    }
    save_file(exits, folder / EXITS_FILE)
    for name in (WEIGHTS_FILE, PACKED_FILE, EXITS_FILE):  # safetensors makes them 0600
        if (folder / name).is_file():
            (folder / name).chmod(0o644)
    text = json.dumps(network.config.to_hugging_face(), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        source, target = tokenizer_from / name, folder / name
        if source.is_file() and source.resolve() != target.resolve():
            if packed and name != "tokenizer.json":  # the reader needs the fast tokenizer alone
                continue
            shutil.copyfile(source, target)


def load_config(folder: Path) -> ReaderConfig:
    """The `config.json` of a folder as `ReaderConfig`."""
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


def hugging_face_tensors(network: AlbertReader) -> dict[str, Tensor]:
    """The network's tensors under the names of `AlbertForQuestionAnswering`.

    `qa_outputs` is the last exit.
    """
    ours = {name: value.detach() for name, value in network.state_dict().items()}
    theirs: dict[str, Tensor] = {}
    for mine, other in _EMBEDDING_NAMES.items():
        for part in ("weight", "bias"):
            if f"{mine}.{part}" in ours:
                theirs[f"{other}.{part}"] = ours[f"{mine}.{part}"]
    for group in range(network.config.groups):
        prefix = _group_prefix(group)
        for part in ("weight", "bias"):
            fused = ours[f"groups.{group}.query_key_value.{part}"].chunk(3)
            for name, value in zip(("query", "key", "value"), fused, strict=True):
                theirs[f"{prefix}.attention.{name}.{part}"] = value
            for mine, other in _LAYER_NAMES.items():
                theirs[f"{prefix}.{other}.{part}"] = ours[f"groups.{group}.{mine}.{part}"]
    for part in ("weight", "bias"):
        theirs[f"qa_outputs.{part}"] = ours[f"exits.{network.config.layers - 1}.span.{part}"]
    return theirs


def _our_names(theirs: Mapping[str, Tensor], config: ReaderConfig) -> dict[str, Tensor]:
    """`transformers` names to ours; tensors that the reader has no use for are left out."""
    ours: dict[str, Tensor] = {}
    for mine, other in _EMBEDDING_NAMES.items():
        for part in ("weight", "bias"):
            if f"{other}.{part}" in theirs:
                ours[f"{mine}.{part}"] = theirs[f"{other}.{part}"]
    for group in range(config.groups):
        prefix = _group_prefix(group)
        for part in ("weight", "bias"):
            fused = [
                theirs.get(f"{prefix}.attention.{name}.{part}")
                for name in ("query", "key", "value")
            ]
            present = [value for value in fused if value is not None]
            if len(present) == 3:
                ours[f"groups.{group}.query_key_value.{part}"] = torch.cat(present)
            for mine, other in _LAYER_NAMES.items():
                if f"{prefix}.{other}.{part}" in theirs:
                    ours[f"groups.{group}.{mine}.{part}"] = theirs[f"{prefix}.{other}.{part}"]
    for part in ("weight", "bias"):
        if f"qa_outputs.{part}" in theirs:
            ours[f"qa_outputs.{part}"] = theirs[f"qa_outputs.{part}"]
    return ours


def _read_weights(folder: Path) -> dict[str, Tensor]:
    packed, plain = folder / PACKED_FILE, folder / WEIGHTS_FILE
    path = packed if packed.is_file() else plain
    if not path.is_file():
        raise ModelFolderError(
            f"{folder} holds neither {WEIGHTS_FILE} nor {PACKED_FILE}; "
            "save the checkpoint with safe_serialization=True"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(f"{path} cannot be read: {error}; copy it again") from error
    return unpack_tensors(tensors) if path == packed else tensors


def _read_exits(
    folder: Path, tensors: Mapping[str, Tensor], config: ReaderConfig
) -> dict[str, Tensor]:
    """The exit heads; what is not stored starts from `qa_outputs`, the certainty heads from 0."""
    path = folder / EXITS_FILE
    try:
        stored = load_file(path) if path.is_file() else {}
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(f"{path} cannot be read: {error}; copy it again") from error
    empty = {
        "weight": torch.zeros(2, config.hidden_size),
        "bias": torch.zeros(2),
    }
    heads: dict[str, Tensor] = {}
    for layer in range(config.layers):
        for part in ("weight", "bias"):
            start = tensors.get(f"qa_outputs.{part}", empty[part])
            short = stored.get(f"exits.{layer}.{part}", start)  # a folder with span heads alone
            heads[f"exits.{layer}.span.{part}"] = stored.get(f"exits.{layer}.span.{part}", short)
            certainty = torch.zeros_like(empty[part][:1])
            heads[f"exits.{layer}.certainty.{part}"] = stored.get(
                f"exits.{layer}.certainty.{part}", certainty
            )
    return heads


def _fetch_from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download  # heavy, and only for hub ids

    wanted = ["config.json", "tokenizer*", "vocab.txt", "special_tokens_map.json", "*.safetensors"]
    try:
        return Path(snapshot_download(model, allow_patterns=[*wanted, "exits.json"]))
    except Exception as error:  # the hub client raises many unrelated types
        raise ModelFolderError(
            f"{model!r} is neither a folder nor a model that the hub gives "
            f"({type(error).__name__}); "
            "check the path or the network"
        ) from error


def _group_prefix(group: int) -> str:
    return f"albert.encoder.albert_layer_groups.{group}.albert_layers.0"
