"""The reader's shape, read from and written to the Hugging Face `config.json` of an ALBERT.

In: a `config.json` dictionary. Out: `ReaderConfig`. Neighbours: `network` builds from it,
`weights` reads and writes the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from reader.errors import ModelFolderError

HIDDEN_ACTIVATIONS = ("gelu", "gelu_new", "relu")


@dataclass(frozen=True)
class ReaderConfig:
    """Sizes of the network; the names follow ALBERT (Lan et al. 2019, section 3).

    The last three say what compression has left; empty means as built:

    - `kept_heads`, per group: the original numbers of the heads that are left (may be none);
    - `inner_sizes`, per group: the feed-forward width that is left (may be 0);
    - `spans`, per layer: one number a kept head of its group. Keys further than that many tokens
      from the query are not seen, except that question tokens are visible to all and see all.
      0 skips the head in this layer; `max_positions` or more sets no limit.

    Raises `ModelFolderError` for sizes that do not fit together.
    """

    vocab_size: int = 30_522
    embedding_size: int = 384
    hidden_size: int = 384
    layers: int = 12
    groups: int = 12
    heads: int = 12
    intermediate_size: int = 1536
    hidden_act: str = "gelu"
    max_positions: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    kept_heads: tuple[tuple[int, ...], ...] = ()
    inner_sizes: tuple[int, ...] = ()
    spans: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, int) and value < (0 if name == "pad_token_id" else 1):
                raise ModelFolderError(f"config: {name} is {value}; it must be positive")
        if self.hidden_size % self.heads:
            raise ModelFolderError(
                f"config: hidden_size {self.hidden_size} is not a multiple of heads {self.heads}"
            )
        if self.groups > self.layers:
            raise ModelFolderError(
                f"config: {self.groups} parameter groups for {self.layers} layers; "
                "a group without a layer would never be used"
            )
        if self.hidden_act not in HIDDEN_ACTIVATIONS:
            raise ModelFolderError(
                f"config: hidden_act {self.hidden_act!r} is not one of {HIDDEN_ACTIVATIONS}"
            )
        self._check_left_over()

    def _check_left_over(self) -> None:
        """Raise `ModelFolderError` where the lists of what compression left do not fit."""
        for name, found, wanted, each in (
            ("kept_heads", len(self.kept_heads), self.groups, "parameter group"),
            ("inner_sizes", len(self.inner_sizes), self.groups, "parameter group"),
            ("spans", len(self.spans), self.layers, "layer"),
        ):
            if found not in (0, wanted):
                raise ModelFolderError(
                    f"config: {name} has {found} entries; it needs one for each of the "
                    f"{wanted} {each}s, or none at all"
                )
        for group, kept in enumerate(self.kept_heads):
            rising = all(left < right for left, right in pairwise(kept))
            if not rising or any(not 0 <= head < self.heads for head in kept):
                raise ModelFolderError(
                    f"config: kept_heads of group {group} are {list(kept)}; "
                    f"they must rise within 0..{self.heads - 1}"
                )
        for group, size in enumerate(self.inner_sizes):
            if not 0 <= size <= self.intermediate_size:
                raise ModelFolderError(
                    f"config: inner_sizes of group {group} is {size}; "
                    f"it must be within 0..{self.intermediate_size}"
                )
        for layer, spans in enumerate(self.spans, 1):
            heads = len(self.heads_of(self.group_of(layer)))
            if len(spans) != heads or any(span < 0 for span in spans):
                raise ModelFolderError(
                    f"config: spans of layer {layer} are {list(spans)}; "
                    f"they must be {heads} numbers of at least 0, one a head"
                )

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.heads

    def group_of(self, layer: int) -> int:
        """The parameter group (0-based) of a layer (1-based).

        The same rounding as `transformers` (`int(i / (layers / groups))`), so that a folder means
        the same network in both. Raises ValueError for a layer that there is not.
        """
        if not 1 <= layer <= self.layers:
            raise ValueError(f"layer {layer} is outside 1..{self.layers}")
        return int((layer - 1) / (self.layers / self.groups))

    def heads_of(self, group: int) -> tuple[int, ...]:
        """The original numbers of the heads that a group (0-based) still has."""
        return self.kept_heads[group] if self.kept_heads else tuple(range(self.heads))

    def inner_of(self, group: int) -> int:
        """The feed-forward width that a group (0-based) still has."""
        return self.inner_sizes[group] if self.inner_sizes else self.intermediate_size

    def spans_of(self, layer: int) -> tuple[int, ...]:
        """The attention span in tokens of every kept head in a layer (1-based)."""
        if self.spans:
            return self.spans[layer - 1]
        return (self.max_positions,) * len(self.heads_of(self.group_of(layer)))

    @classmethod
    def from_hugging_face(cls, values: Mapping[str, Any]) -> ReaderConfig:
        """Read an `AlbertConfig` dictionary; raises `ModelFolderError` when it is another model."""
        if values.get("model_type") != "albert":
            raise ModelFolderError(
                f"config: model_type is {values.get('model_type')!r}, not 'albert'; "
                "a BERT checkpoint becomes an ALBERT by `elma convert`"
            )
        if values.get("inner_group_num", 1) != 1:
            raise ModelFolderError(
                f"config: inner_group_num is {values['inner_group_num']}; only 1 is supported"
            )
        try:
            return cls(
                vocab_size=values["vocab_size"],
                embedding_size=values["embedding_size"],
                hidden_size=values["hidden_size"],
                layers=values["num_hidden_layers"],
                groups=values.get("num_hidden_groups", 1),
                heads=values["num_attention_heads"],
                intermediate_size=values["intermediate_size"],
                hidden_act=values.get("hidden_act", "gelu_new"),
                max_positions=values.get("max_position_embeddings", 512),
                type_vocab_size=values.get("type_vocab_size", 2),
                layer_norm_eps=values.get("layer_norm_eps", 1e-12),
                pad_token_id=values.get("pad_token_id", 0),
                kept_heads=_rows(values, "elma_heads"),
                inner_sizes=_numbers(values.get("elma_inner_sizes", ()), "elma_inner_sizes"),
                spans=_rows(values, "elma_spans"),
            )
        except KeyError as error:
            raise ModelFolderError(f"config: {error} is missing") from error

    def to_hugging_face(self) -> dict[str, Any]:
        """The `AlbertConfig` dictionary that `transformers` loads."""
        left_over: dict[str, Any] = {
            "elma_heads": [list(heads) for heads in self.kept_heads],
            "elma_inner_sizes": list(self.inner_sizes),
            "elma_spans": [list(spans) for spans in self.spans],
        }
        return {
            "architectures": ["AlbertForQuestionAnswering"],
            "model_type": "albert",
            "vocab_size": self.vocab_size,
            "embedding_size": self.embedding_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_hidden_groups": self.groups,
            "inner_group_num": 1,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate_size,
            "hidden_act": self.hidden_act,
            "max_position_embeddings": self.max_positions,
            "type_vocab_size": self.type_vocab_size,
            "layer_norm_eps": self.layer_norm_eps,
            "pad_token_id": self.pad_token_id,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "classifier_dropout_prob": 0.0,
            **{name: value for name, value in left_over.items() if value},
        }


def _rows(values: Mapping[str, Any], name: str) -> tuple[tuple[int, ...], ...]:
    """A list of lists of whole numbers, as tuples; absent is empty."""
    found = values.get(name, ())
    if not isinstance(found, list | tuple):
        raise ModelFolderError(f"config: {name} is {found!r}, not a list of lists")
    return tuple(_numbers(row, name) for row in found)


def _numbers(found: object, name: str) -> tuple[int, ...]:
    if not isinstance(found, list | tuple) or any(type(value) is not int for value in found):
        raise ModelFolderError(f"config: {name} holds {found!r}, not a list of whole numbers")
    return tuple(found)
