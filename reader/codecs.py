"""The state codecs of one release: those that any reader has, and those that its folder brings.

In: a state after some layer, and a codec's name. Out: bytes, and back. Neighbours: `Reader.codecs`
is one of these; the edge encodes and asks what a codec costs, the worker decodes.

`codecs.json` in a model folder holds what calibration measured: by layer and codec, how many points
of F1 the offloaded questions lose against `fp32`. It is advice to the device's choice and changes
no answer, so it is not part of the release's digest; the matrices of `bottleneck` are.

`tokens` is not a codec of states: the token ids themselves, two bytes each (four where the
vocabulary is larger than 65,536). Whoever reads them reads the question and the passage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from reader.arrays import FloatArray
from reader.bottleneck import Bottleneck, load_bottlenecks
from reader.config import ReaderConfig
from reader.errors import ModelFolderError, StateShapeError, UnknownCodec
from reader.state_codecs import (
    CODECS,
    check_size,
    checked_state,
    codec_tolerance,
    decode_state,
    encode_state,
    state_bytes,
)

BOTTLENECK = "bottleneck"
TOKENS = "tokens"
LOSSES_FILE = "codecs.json"
USUAL_LOSSES = {"fp32": 0.0, "fp16": 0.0, "int8": 0.05, "int4": 0.3}
"""Points of F1, for a release that was never measured: rounded up from what ours lost."""

BOTTLENECK_TOLERANCE = 3.0
"""Of the final logits, as `codec_tolerance`: loose, since the matrices are the release's own."""

Losses = Mapping[int, Mapping[str, float]]


class CodecSet:
    """The codecs of one release; layers are those after which a state is sent."""

    def __init__(
        self,
        hidden_size: int,
        bottlenecks: Mapping[int, Bottleneck] | None = None,
        losses: Losses | None = None,
    ) -> None:
        self._hidden_size = hidden_size
        self._bottlenecks = dict(bottlenecks or {})
        self._losses = dict(losses or {})

    @classmethod
    def load(cls, folder: Path, config: ReaderConfig) -> CodecSet:
        """The codecs of a model folder; raises `ModelFolderError`."""
        bottlenecks = load_bottlenecks(folder, config.hidden_size)
        return cls(config.hidden_size, bottlenecks, load_losses(folder))

    def names(self, layer: int) -> tuple[str, ...]:
        """The codecs for states after `layer`."""
        return (*CODECS, BOTTLENECK) if layer in self._bottlenecks else tuple(CODECS)

    def size(self, name: str, layer: int, length_tokens: int) -> int:
        """How many bytes `encode` makes of so many tokens. Raises `UnknownCodec`."""
        if name == BOTTLENECK:
            return self._bottleneck(layer).size(length_tokens)
        return state_bytes(name, length_tokens, self._hidden_size)

    def encode(self, name: str, layer: int, state: FloatArray) -> bytes:
        """A state `[T, H]` after `layer` as bytes.

        Raises `UnknownCodec`; `StateShapeError` for what the codec cannot hold.
        """
        if name == BOTTLENECK:
            return self._bottleneck(layer).encode(checked_state(name, state))
        return encode_state(name, state)

    def decode(self, name: str, layer: int, payload: bytes, length_tokens: int) -> FloatArray:
        """The float32 state `[length_tokens, H]` after `layer`.

        The size is checked before anything is built. Raises `UnknownCodec`, `StateShapeError`.
        """
        if name == BOTTLENECK:
            bottleneck = self._bottleneck(layer)
            check_size(name, payload, length_tokens, bottleneck.size)
            return bottleneck.decode(payload, length_tokens)
        return decode_state(name, payload, length_tokens, self._hidden_size)

    def loss(self, name: str, layer: int) -> float | None:
        """Points of F1 that offloaded questions lose by this codec; None where nobody knows."""
        measured = self._losses.get(layer, {}).get(name)
        return USUAL_LOSSES.get(name) if measured is None else max(measured, 0.0)

    @staticmethod
    def tolerance(name: str) -> float:
        """The largest difference of final logits that tests accept for this codec."""
        return BOTTLENECK_TOLERANCE if name == BOTTLENECK else codec_tolerance(name)

    def _bottleneck(self, layer: int) -> Bottleneck:
        found = self._bottlenecks.get(layer)
        if found is None:
            raise UnknownCodec(
                f"this release has no bottleneck after layer {layer}; "
                f"use one of {', '.join(CODECS)}, or train one (elma compress bottleneck)"
            )
        return found


def tokens_bytes(length_tokens: int, vocab_size: int) -> int:
    """How many bytes `encode_tokens` makes of so many token ids."""
    return length_tokens * _token_kind(vocab_size).itemsize


def encode_tokens(token_ids: Sequence[int], vocab_size: int) -> bytes:
    """Token ids as bytes."""
    payload: bytes = np.array(token_ids, _token_kind(vocab_size)).tobytes()
    return payload


def decode_tokens(payload: bytes, length_tokens: int, vocab_size: int) -> list[int]:
    """The token ids of a payload; raises `StateShapeError` for another size or an unknown id."""
    check_size(TOKENS, payload, length_tokens, lambda tokens: tokens_bytes(tokens, vocab_size))
    ids = np.frombuffer(payload, _token_kind(vocab_size))
    if int(ids.max()) >= vocab_size:
        raise StateShapeError(f"a token id is outside the vocabulary of {vocab_size}")
    found: list[int] = ids.tolist()
    return found


def load_losses(folder: Path) -> dict[int, dict[str, float]]:
    """What `save_losses` wrote; empty where nothing was measured. Raises `ModelFolderError`."""
    path = folder / LOSSES_FILE
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["f1_loss"]
        return {
            int(layer): {str(name): float(loss) for name, loss in losses.items()}
            for layer, losses in stored.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFolderError(
            f"{path} cannot be read: {error!r}; measure again (elma evaluate --codec all --save)"
        ) from error


def save_losses(folder: Path, layer: int, losses: Mapping[str, float]) -> None:
    """Keep the measured losses of one layer, beside those of others."""
    kept = {**load_losses(folder), layer: dict(losses)}
    document = {"f1_loss": {str(number): kept[number] for number in sorted(kept)}}
    (folder / LOSSES_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _token_kind(vocab_size: int) -> np.dtype[np.generic]:
    return np.dtype("<u2" if vocab_size <= 65_536 else "<u4")
