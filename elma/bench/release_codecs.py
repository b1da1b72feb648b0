"""All ways to write what a device sends of a window, token ids included, behind one pair of calls.

In: a model folder. Out: encode and decode by name. Neighbours: `reader.codecs` has them; `wire`
times them and `echo_worker` decodes with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reader.arrays import FloatArray
from reader.codecs import TOKENS, CodecSet, decode_tokens, encode_tokens
from reader.weights import load_config, resolve_model_folder


class ReleaseCodecs:
    """Everything that a request about one release may be packed with, token ids included."""

    def __init__(self, folder: Path) -> None:
        self._config = load_config(folder)
        self._codecs = CodecSet.load(folder, self._config)

    @classmethod
    def of_model(cls, model: str) -> ReleaseCodecs:
        """Of a model folder or the shipped one; raises `ModelFolderError`."""
        return cls(resolve_model_folder(model))

    def names(self, layer: int) -> tuple[str, ...]:
        """By name, for what is sent after `layer`."""
        return (*self._codecs.names(layer), TOKENS)

    def encode(self, name: str, layer: int, state: FloatArray, token_ids: Sequence[int]) -> bytes:
        """A state `[T, H]`, or the tokens that it is of."""
        if name == TOKENS:
            return encode_tokens(token_ids, self._config.vocab_size)
        return self._codecs.encode(name, layer, state)

    def decode(self, name: str, layer: int, payload: bytes, length_tokens: int) -> object:
        """What a worker gets out of it."""
        if name == TOKENS:
            return decode_tokens(payload, length_tokens, self._config.vocab_size)
        return self._codecs.decode(name, layer, payload, length_tokens)
