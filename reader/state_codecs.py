"""State codecs that need nothing but the state: to the bytes that cross the network, and back.

In: a state `[T, H]`. Out: bytes of an exactly known size. Neighbours: `codecs` adds what a release
brings along (`bottleneck`); the edge encodes what it offloads, the worker decodes, and each request
names its codec.

Codecs (little-endian, rows in token order):

    fp32   T*H float32                                     exact
    fp16   T*H float16                                     relative error at most 2^-11
    int8   T float32 scales, then T*H int8                 symmetric, one scale a token
    int4   T*G float16 scales, then T*G*16 bytes           one scale for 32 values (G = ceil(H / 32)
                                                           groups), two codes of 0..15 a byte, the
                                                           low half first; (code - 7.5) * scale

Whole tokens of 384 values are 1536, 768, 388 and 216 bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from reader.arrays import FloatArray
from reader.errors import StateShapeError, UnknownCodec

MAX_STATE_TOKENS = 512
FP16_LARGEST = 65_504.0
INT4_GROUP = 32


@dataclass(frozen=True)
class StateCodec:
    """One way to write a state; `tolerance` bounds the absolute difference of the final logits
    against the unencoded state that the tests allow for the shipped reader, in float32. In int8
    arithmetic the activations' own rounding comes on top: `benchmarks/resume_equality.py`."""

    name: str
    tolerance: float
    size: Callable[[int, int], int]
    encode: Callable[[FloatArray], bytes]
    decode: Callable[[bytes, int, int], FloatArray]


def encode_state(codec: str, state: FloatArray) -> bytes:
    """A state `[T, H]` as bytes.

    Raises `UnknownCodec`; `StateShapeError` when it is not a finite matrix within the codec's
    range.
    """
    chosen = find_codec(codec)
    return chosen.encode(checked_state(codec, state))


def checked_state(codec: str, state: FloatArray) -> FloatArray:
    """The state if it is a finite matrix `[T, H]`; raises `StateShapeError` else."""
    if state.ndim != 2 or not 0 < state.shape[0] <= MAX_STATE_TOKENS:
        raise StateShapeError(f"a state of shape {state.shape} is not [tokens, hidden]")
    values = np.ascontiguousarray(state, np.float32)
    if not np.isfinite(values).all():
        raise StateShapeError(f"the state has values that are not finite; codec {codec} refuses it")
    return values


def decode_state(codec: str, payload: bytes, length_tokens: int, hidden_size: int) -> FloatArray:
    """The float32 state `[length_tokens, hidden_size]`.

    The size is checked before anything is built. Raises `UnknownCodec`, and `StateShapeError` for
    a size that does not fit or values that are not finite.
    """
    chosen = find_codec(codec)
    check_size(codec, payload, length_tokens, lambda tokens: chosen.size(tokens, hidden_size))
    values = chosen.decode(payload, length_tokens, hidden_size)
    if not np.isfinite(values).all():
        raise StateShapeError(f"codec {codec}: the state holds values that are not finite")
    return values


def check_size(codec: str, payload: bytes, length_tokens: int, size: Callable[[int], int]) -> None:
    """Raise `StateShapeError` unless the payload has the size of so many tokens."""
    if not 0 < length_tokens <= MAX_STATE_TOKENS:
        raise StateShapeError(f"a state of {length_tokens} tokens is outside 1..{MAX_STATE_TOKENS}")
    expected = size(length_tokens)
    if len(payload) != expected:
        raise StateShapeError(
            f"codec {codec}: {len(payload)} bytes for {length_tokens} tokens, expected {expected}; "
            "edge and worker must hold the same release"
        )


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


def _decode_float(kind: str) -> Callable[[bytes, int, int], FloatArray]:
    def decode(payload: bytes, tokens: int, hidden: int) -> FloatArray:
        return np.frombuffer(payload, kind).reshape(tokens, hidden).astype(np.float32)

    return decode


def _encode_fp16(values: FloatArray) -> bytes:
    if np.abs(values).max() > FP16_LARGEST:
        raise StateShapeError("the state has values beyond float16's range; use codec fp32 or int8")
    return values.astype("<f2").tobytes()


def _encode_int8(values: FloatArray) -> bytes:
    scales = np.maximum(np.abs(values).max(axis=1) / 127, np.float32(1e-30)).astype("<f4")  # [T]
    codes = np.rint(values / scales[:, None]).clip(-127, 127).astype(np.int8)
    payload: bytes = scales.tobytes() + codes.tobytes()
    return payload


def _decode_int8(payload: bytes, tokens: int, hidden: int) -> FloatArray:
    scales = np.frombuffer(payload, "<f4", count=tokens)
    codes = np.frombuffer(payload, np.int8, offset=4 * tokens).reshape(tokens, hidden)
    with np.errstate(
        invalid="ignore", over="ignore"
    ):  # what is not finite is refused by the caller
        values: FloatArray = codes.astype(np.float32) * scales[:, None]
    return values


def _encode_int4(values: FloatArray) -> bytes:
    tokens, hidden = values.shape
    groups = -(-hidden // INT4_GROUP)
    padded = np.zeros((tokens, groups * INT4_GROUP), np.float32)
    padded[:, :hidden] = values
    grouped = padded.reshape(tokens, groups, INT4_GROUP)
    largest = np.abs(grouped).max(axis=2)  # [T, G]
    if largest.max() > 7.5 * FP16_LARGEST:
        raise StateShapeError("the state has values beyond int4's range; use codec fp32 or int8")
    scales = (largest / 7.5).astype("<f2")
    divisor = np.where(scales > 0, scales.astype(np.float32), np.float32(1))[:, :, None]
    codes = np.floor(grouped / divisor + 8).clip(0, 15).astype(np.uint8)
    packed = codes[:, :, 0::2] | codes[:, :, 1::2] << 4  # [T, G, 16]
    payload: bytes = scales.tobytes() + packed.tobytes()
    return payload


def _decode_int4(payload: bytes, tokens: int, hidden: int) -> FloatArray:
    groups = -(-hidden // INT4_GROUP)
    scales = np.frombuffer(payload, "<f2", count=tokens * groups).reshape(tokens, groups, 1)
    packed = np.frombuffer(payload, np.uint8, offset=2 * tokens * groups)
    codes = np.empty((tokens, groups, INT4_GROUP), np.float32)
    halves = packed.reshape(tokens, groups, -1)
    codes[:, :, 0::2] = halves & 15
    codes[:, :, 1::2] = halves >> 4
    with np.errstate(
        invalid="ignore", over="ignore"
    ):  # what is not finite is refused by the caller
        values: FloatArray = (codes - np.float32(7.5)) * scales.astype(np.float32)
    return values.reshape(tokens, -1)[:, :hidden].copy()


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
        StateCodec(
            "int4",
            3.0,
            lambda tokens, hidden: tokens * -(-hidden // INT4_GROUP) * (2 + INT4_GROUP // 2),
            _encode_int4,
            _decode_int4,
        ),
    )
}
