"""The reader's tensors: our names and shapes, and where `transformers` keeps the same values.

In: a `ReaderConfig`, named arrays. Out: names, shapes, arrays under the other names. Neighbours:
`weights` and `network_files` read and write through these.

A pruned network has two forms under the Hugging Face names: *small*, with only the heads and inner
units that are left, and *full*, with zeros where something was removed, so that `transformers`
computes the same. Inner units that are left come first; heads stand at their original places.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from reader.arrays import FloatArray
from reader.config import ReaderConfig

QUERY_KEY_VALUE = ("query", "key", "value")
_PARTS = ("weight", "bias")
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


def tensor_shapes(config: ReaderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a network, under our names, in the network's own order."""
    hidden, embedding = config.hidden_size, config.embedding_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word.weight": (config.vocab_size, embedding),
        "embeddings.position.weight": (config.max_positions, embedding),
        "embeddings.token_type.weight": (config.type_vocab_size, embedding),
        "embeddings.norm.weight": (embedding,),
        "embeddings.norm.bias": (embedding,),
        "embeddings.project.weight": (hidden, embedding),
        "embeddings.project.bias": (hidden,),
    }
    for group in range(config.groups):
        width, inner = len(config.heads_of(group)) * config.head_size, config.inner_of(group)
        for name, rows, columns in (
            ("query_key_value", 3 * width, hidden),
            ("attention_output", hidden, width),
            ("attention_norm", hidden, 0),
            ("up", inner, hidden),
            ("down", hidden, inner),
            ("output_norm", hidden, 0),
        ):
            norm = name.endswith("_norm")
            shapes[f"groups.{group}.{name}.weight"] = (rows,) if norm else (rows, columns)
            shapes[f"groups.{group}.{name}.bias"] = (rows,)
    for layer in range(config.layers):
        for head, rows in (("span", 2), ("certainty", 1)):
            shapes[f"exits.{layer}.{head}.weight"] = (rows, hidden)
            shapes[f"exits.{layer}.{head}.bias"] = (rows,)
    return shapes


def hugging_face_sources(name: str) -> tuple[str, ...]:
    """The tensors of `transformers` whose rows, one after the other, are our tensor `name`.

    Empty for the exits, which `transformers` does not have.
    """
    stem, part = name.rsplit(".", 1)
    if stem in _EMBEDDING_NAMES:
        return (f"{_EMBEDDING_NAMES[stem]}.{part}",)
    if not stem.startswith("groups."):
        return ()
    _, group, module = stem.split(".")
    prefix = _group_prefix(int(group))
    if module == "query_key_value":
        return tuple(f"{prefix}.attention.{each}.{part}" for each in QUERY_KEY_VALUE)
    return (f"{prefix}.{_LAYER_NAMES[module]}.{part}",)


def cut_to_size(name: str, value: FloatArray, config: ReaderConfig) -> FloatArray:
    """What is left of a *full* Hugging Face tensor, one of `hugging_face_sources(name)`.

    A tensor that has its small size already, or another one, comes back as it is.
    """
    full, rows, columns = _full_form(name, config)
    if value.shape != full:
        return value
    small = value if rows is None else value[rows]
    return small if columns is None else small[:, columns]


def hugging_face_tensors(
    ours: Mapping[str, FloatArray], config: ReaderConfig, *, full: bool
) -> dict[str, FloatArray]:
    """The network's tensors under the names of `AlbertForQuestionAnswering`, *full* or *small*.

    `qa_outputs` is the last exit.
    """
    theirs: dict[str, FloatArray] = {}
    for name in tensor_shapes(config):
        sources = hugging_face_sources(name)
        for source, value in (
            zip(sources, np.split(ours[name], len(sources)), strict=True) if (sources) else ()
        ):
            theirs[source] = _grow_to_full(name, value, config) if full else value
    for part in _PARTS:
        theirs[f"qa_outputs.{part}"] = ours[f"exits.{config.layers - 1}.span.{part}"]
    return theirs


def _full_form(
    name: str, config: ReaderConfig
) -> tuple[tuple[int, ...], list[int] | None, list[int] | None]:
    """The full shape of a source of our tensor `name`; the rows and columns that are left."""
    if not name.startswith("groups."):
        return (), None, None
    _, number, module, part = name.split(".")
    group, hidden, inner = int(number), config.hidden_size, config.intermediate_size
    size = config.head_size
    heads = [head * size + d for head in config.heads_of(group) for d in range(size)]
    units = list(range(config.inner_of(group)))
    if module == "query_key_value":
        return ((hidden, hidden) if part == "weight" else (hidden,)), heads, None
    if module == "attention_output" and part == "weight":
        return (hidden, hidden), None, heads
    if module == "up":
        return ((inner, hidden) if part == "weight" else (inner,)), units, None
    if module == "down" and part == "weight":
        return (hidden, inner), None, units
    return (), None, None


def _grow_to_full(name: str, value: FloatArray, config: ReaderConfig) -> FloatArray:
    shape, rows, columns = _full_form(name, config)
    if not shape or value.shape == shape:
        return value
    grown = np.zeros(shape, dtype=value.dtype)
    if rows is not None:
        grown[rows] = value
    else:
        grown[:, columns] = value
    return grown


def _group_prefix(group: int) -> str:
    return f"albert.encoder.albert_layer_groups.{group}.albert_layers.0"
