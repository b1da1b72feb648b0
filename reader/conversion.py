"""A BERT becomes an ALBERT; an ALBERT becomes a deeper or a more shared one.

In: a BERT checkpoint folder, or a network. Out: a network. Neighbours: `weights` saves the
result, `elma convert` is the command.

The conversion is exact: ALBERT with as many parameter groups as layers, an embedding as wide as
the hidden state and the identity as its mapping computes what the BERT did. Fewer groups or more
layers are a warm start, to be trained further.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from reader.config import ReaderConfig
from reader.errors import ModelFolderError
from reader.network import AlbertReader, Layer
from reader.network_files import load_network

_BERT_EMBEDDINGS = {
    "embeddings.word.weight": "embeddings.word_embeddings.weight",
    "embeddings.position.weight": "embeddings.position_embeddings.weight",
    "embeddings.token_type.weight": "embeddings.token_type_embeddings.weight",
    "embeddings.norm.weight": "embeddings.LayerNorm.weight",
    "embeddings.norm.bias": "embeddings.LayerNorm.bias",
}
_BERT_LAYER = {
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}


def load_any_checkpoint(folder: Path, *, dropout: float = 0.0) -> AlbertReader:
    """The network of an ALBERT folder as it is, or of a BERT folder converted.

    `dropout` is for a training to come. Raises `ModelFolderError`.
    """
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{folder} holds no readable config.json: {error}") from error
    if values.get("model_type") == "bert":
        return bert_to_albert(folder, dropout=dropout)
    return load_network(folder, dropout=dropout)


def bert_to_albert(folder: Path, *, dropout: float = 0.0) -> AlbertReader:
    """The network that computes exactly what the BERT in `folder` does, one group a layer.

    Exit heads are random (seeded by torch) unless the checkpoint has `qa_outputs`. Raises
    `ModelFolderError` when the folder holds another kind of model.
    """
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "model.safetensors")
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{folder} is not a BERT checkpoint folder: {error}") from error
    config = _bert_config(values, folder)
    tensors = {name.removeprefix("bert."): value for name, value in tensors.items()}
    network = AlbertReader(config, dropout=dropout).eval()
    state = network.state_dict()
    try:
        for mine, theirs in _BERT_EMBEDDINGS.items():
            state[mine] = tensors[theirs].float()
        for layer in range(config.layers):
            _copy_bert_layer(state, tensors, layer)
    except KeyError as error:
        raise ModelFolderError(f"{folder}: tensor {error} is missing from the BERT") from error
    state["embeddings.project.weight"] = torch.eye(config.hidden_size)
    state["embeddings.project.bias"] = torch.zeros(config.hidden_size)
    if "qa_outputs.weight" in tensors:
        for layer in range(config.layers):
            for part in ("weight", "bias"):
                state[f"exits.{layer}.span.{part}"] = tensors[f"qa_outputs.{part}"].float()
    network.load_state_dict(state)
    return network


def reshape_network(
    network: AlbertReader,
    *,
    layers: int,
    groups: int,
    damping: float = 0.1,
    dropout: float = 0.0,
) -> AlbertReader:
    """A warm start with another number of layers or groups.

    Fewer groups than the source has: each takes the source group in the middle of the layers that
    it now serves. More groups: the source's come first, unchanged; every further one is a copy of
    a late source group whose outputs are scaled by `damping` and whose norms are set to the
    statistics of their input, so that the deeper network starts out close to the source's output
    (post-norm networks cannot grow by exact identities). Exits of new layers start from the last.
    Raises `ModelFolderError` for a network that was compressed already.
    """
    source = network.config
    if source.kept_heads or source.inner_sizes or source.spans:
        raise ModelFolderError(
            "a compressed network cannot get other layers or groups; reshape it before compressing"
        )
    config = ReaderConfig(
        **{**source.__dict__, "layers": layers, "groups": groups}  # the rest stays
    )
    grown = AlbertReader(config, dropout=dropout).eval()
    grown.embeddings.load_state_dict(network.embeddings.state_dict())
    for group in range(groups):
        if groups > source.groups and group >= source.groups:
            added = copy.deepcopy(_late_group(network, group - source.groups))
            _soften(added, following=network.layer(source.layers), damping=damping)
            parameters = added.state_dict()
        else:
            parameters = network.groups[_source_group(config, source, group)].state_dict()
        grown.groups[group].load_state_dict(parameters)
    for layer_index in range(layers):
        head = network.exits[_source_exit(layer_index, config, source)]
        grown.exits[layer_index].load_state_dict(head.state_dict())
    return grown


def _source_group(config: ReaderConfig, source: ReaderConfig, group: int) -> int:
    """The source group that a group of the new network starts from."""
    if config.groups >= source.groups:
        return group
    share = source.groups / config.groups
    return int(group * share + (share - 1) / 2)


def _source_exit(layer_index: int, config: ReaderConfig, source: ReaderConfig) -> int:
    """The source exit of a new layer: the same depth in a grown network, else the same share."""
    if config.groups > source.groups or config.layers == source.layers:
        return min(layer_index, source.layers - 1)
    return min(layer_index * source.layers // config.layers, source.layers - 1)


def _late_group(network: AlbertReader, number: int) -> Layer:
    """The last third of the source's groups, taken in turn."""
    count = network.config.groups
    late = range(count - max(1, count // 3), count)
    return cast(Layer, network.groups[late[number % len(late)]])


def _soften(layer: Layer, *, following: Layer, damping: float) -> None:
    """Make `layer` nearly the identity on outputs of `following`'s final norm.

    Those are `g * n + b` with n of mean 0 and variance 1 over the features, so their mean is about
    mean(b) and their variance mean(g^2) + var(b): a norm with that scale and shift returns them.
    """
    gain = following.output_norm.weight.detach()
    shift = following.output_norm.bias.detach()
    scale = math.sqrt(float(gain.square().mean() + shift.var(unbiased=False)))
    with torch.no_grad():
        for own in (layer.attention_norm, layer.output_norm):
            own.weight.fill_(scale)
            own.bias.fill_(float(shift.mean()))
        for output in (layer.attention_output, layer.down):
            output.weight.mul_(damping)
            output.bias.mul_(damping)


def _bert_config(values: dict[str, Any], folder: Path) -> ReaderConfig:
    if values.get("model_type") != "bert":
        raise ModelFolderError(
            f"{folder}: model_type is {values.get('model_type')!r}, only BERT can be converted"
        )
    if values.get("position_embedding_type", "absolute") != "absolute":
        raise ModelFolderError(f"{folder}: only absolute positions can be converted")
    return ReaderConfig(
        vocab_size=values["vocab_size"],
        embedding_size=values["hidden_size"],
        hidden_size=values["hidden_size"],
        layers=values["num_hidden_layers"],
        groups=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        intermediate_size=values["intermediate_size"],
        hidden_act=values.get("hidden_act", "gelu"),
        max_positions=values.get("max_position_embeddings", 512),
        type_vocab_size=values.get("type_vocab_size", 2),
        layer_norm_eps=values.get("layer_norm_eps", 1e-12),
        pad_token_id=values.get("pad_token_id", 0),
    )


def _copy_bert_layer(state: dict[str, Tensor], tensors: dict[str, Tensor], layer: int) -> None:
    theirs = f"encoder.layer.{layer}"
    for part in ("weight", "bias"):
        fused = [tensors[f"{theirs}.attention.self.{name}.{part}"] for name in _QKV]
        state[f"groups.{layer}.query_key_value.{part}"] = torch.cat(fused).float()
        for mine, other in _BERT_LAYER.items():
            state[f"groups.{layer}.{mine}.{part}"] = tensors[f"{theirs}.{other}.{part}"].float()


_QKV = ("query", "key", "value")
