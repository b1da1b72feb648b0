"""The reader's shape, read from and written to the Hugging Face `config.json` of an ALBERT.

In: a `config.json` dictionary. Out: `ReaderConfig`. Neighbours: `network` builds from it,
`weights` reads and writes the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reader.errors import ModelFolderError

HIDDEN_ACTIVATIONS = ("gelu", "gelu_new", "relu")


@dataclass(frozen=True)
class ReaderConfig:
    """Sizes of the network; the names follow ALBERT (Lan et al. 2019, section 3).

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

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.heads

    def group_of(self, layer: int) -> int:
        """The parameter group (0-based) of a layer (1-based).

        The same rounding as `transformers` (`int(i / (layers / groups))`), so that a folder means
        the same network in both.
        """
        if not 1 <= layer <= self.layers:
            raise ValueError(f"layer {layer} is outside 1..{self.layers}")
        return int((layer - 1) / (self.layers / self.groups))

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
            )
        except KeyError as error:
            raise ModelFolderError(f"config: {error} is missing") from error

    def to_hugging_face(self) -> dict[str, Any]:
        """The `AlbertConfig` dictionary that `transformers` loads."""
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
        }
