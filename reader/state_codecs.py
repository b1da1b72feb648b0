"""State codecs: one window's state to the bytes that cross the network, and back.

In: a state `[T, H]`. Out: bytes of an exactly known size. Neighbours: the edge encodes what it
offloads, the worker decodes; each request names its codec.

Codecs (little-endian, rows in token order):

    fp32   T*H float32                                     exact
    fp16   T*H float16                                     relative error at most 2^-11
    int8   T float32 scales, then T*H int8                 symmetric, one scale a token
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reader.errors import StateShapeError, UnknownCodec

MAX_STATE_TOKENS = 512
FP16_LARGEST = 65_504.0


@dataclass(frozen=True)
class StateCodec:
    """One way to write a state; `tolerance` bounds the absolute difference of the final logits
    against the unencoded state that the tests allow for the shipped reader."""

    name: str
    tolerance: float
    size: Callable[[int, int], int]
    encode: Callable[[NDArray[np.float32]], bytes]
    decode: Callable[[bytes, int, int], NDArray[np.float32]]


def encode_state(codec: str, state: Tensor) -> bytes:
    """A state `[T, H]` as bytes.

    Raises `UnknownCodec`; `StateShapeError` when it is not a finite matrix within the codec's
    range.
    """
    chosen = find_codec(codec)
    if state.dim() != 2 or not 0 < state.shape[0] <= MAX_STATE_TOKENS:
        raise StateShapeError(f"a state of shape {tuple(state.shape)} is not [tokens, hidden]")
    values = state.detach().to("cpu", torch.float32).contiguous().numpy()
    if not np.isfinite(values).all():
        raise StateShapeError(f"the state has values that are not finite; codec {codec} refuses it")
    return chosen.encode(values)


def decode_state(codec: str, payload: bytes, length_tokens: int, hidden_size: int) -> Tensor:
    """The float32 state `[length_tokens, hidden_size]`.

    The size is checked before anything is built. Raises `UnknownCodec`, and `StateShapeError` for
    a size that does not fit or values that are not finite.
    """
    chosen = find_codec(codec)
    if not 0 < length_tokens <= MAX_STATE_TOKENS:
        raise StateShapeError(f"a state of {length_tokens} tokens is outside 1..{MAX_STATE_TOKENS}")
    expected = chosen.size(length_tokens, hidden_size)
    if len(payload) != expected:
        raise StateShapeError(
            f"codec {codec}: {len(payload)} bytes for {length_tokens} tokens of {hidden_size}, "
            f"expected {expected}; edge and worker must hold the same release"
        )
    values = chosen.decode(payload, length_tokens, hidden_size)
    if not np.isfinite(values).all():
        raise StateShapeError(f"codec {codec}: the state holds values that are not finite")
    return torch.from_numpy(values)


def state_bytes(codec: str, length_tokens: int, hidden_size: int) -> int:
    """How many bytes `encode_state` makes of `[length_tokens, hidden_size]`."""
    return find_codec(codec).size(length_tokens, hidden_size)


def codec_tolerance(codec: str) -> float:
    """The largest difference of final logits that tests accept for this codec."""
    return find_codec(codec).tolerance


def find_codec(name: str) -> StateCodec:
    """The codec of that name; raises `UnknownCodec` naming those there are."""
    codec = CODECS.get(name)
    if codec is None:
        raise UnknownCodec(f"unknown state codec {name[:32]!r}; use one of {', '.join(CODECS)}")
    return codec


def _decode_float(kind: str) -> Callable[[bytes, int, int], NDArray[np.float32]]:
    def decode(payload: bytes, tokens: int, hidden: int) -> NDArray[np.float32]:
        return np.frombuffer(payload, kind).reshape(tokens, hidden).astype(np.float32)

    return decode


def _encode_fp16(values: NDArray[np.float32]) -> bytes:
    if np.abs(values).max() > FP16_LARGEST:
        raise StateShapeError("the state has values beyond float16's range; use codec fp32 or int8")
    return values.astype("<f2").tobytes()


def _encode_int8(values: NDArray[np.float32]) -> bytes:
    scales = np.maximum(np.abs(values).max(axis=1) / 127, np.float32(1e-30)).astype("<f4")  # [T]
    codes = np.rint(values / scales[:, None]).clip(-127, 127).astype(np.int8)
    payload: bytes = scales.tobytes() + codes.tobytes()
    return payload


def _decode_int8(payload: bytes, tokens: int, hidden: int) -> NDArray[np.float32]:
    scales = np.frombuffer(payload, "<f4", count=tokens)
    codes = np.frombuffer(payload, np.int8, offset=4 * tokens).reshape(tokens, hidden)
    with np.errstate(invalid="ignore"):  # what is not finite is refused by the caller
        values: NDArray[np.float32] = codes.astype(np.float32) * scales[:, None]
    return values


CODECS: dict[str, StateCodec] = {
    codec.name: codec
    for codec in (
        StateCodec(
            "fp32",
            1e-4,
            lambda tokens, hidden: 4 * tokens * hidden,
            lambda values: values.astype("<f4").tobytes(),
            _decode_float("<f4"),
        ),
        StateCodec(
            "fp16",
            0.05,
            lambda tokens, hidden: 2 * tokens * hidden,
            _encode_fp16,
            _decode_float("<f2"),
        ),
        StateCodec(
            "int8",
            1.0,
            lambda tokens, hidden: tokens * (4 + hidden),
            _encode_int8,
            _decode_int8,
        ),
    )
}
