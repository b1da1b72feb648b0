"""The arithmetic of the encodings: float32 matrices to codes and scales, and back.

In: arrays. Out: arrays. Neighbours: `storage` says which tensor gets which encoding and what a
file holds of it; training freezes embeddings at exactly these values.

    int8    `code * scale`, one float16 scale a row
    int4    the same with a scale for each `GROUP_COLUMNS` columns of a row; two codes a byte, low
            nibble first, stored plus 8; a scale may be negative, which moves the odd code -8 to
            the side that needs it
    sign    one bit an entry, highest bit first, and the row's mean magnitude
    sparse  a bit for each entry that is not 0, and those entries alone
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reader.arrays import FloatArray

GROUP_COLUMNS = 32


def encode_int8_rows(matrix: FloatArray) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """`[rows, columns]` float to codes int8 of that shape and scales float16 `[rows, 1]`."""
    matrix = np.asarray(matrix, dtype=np.float32)
    scales = _never_zero(np.abs(matrix).max(axis=1, keepdims=True, initial=0) / 127)
    codes = np.clip(np.rint(matrix / scales.astype(np.float32)), -127, 127).astype(np.int8)
    return codes, scales


def decode_int8_rows(codes: NDArray[np.int8], scales: NDArray[np.float16]) -> FloatArray:
    """The float32 matrix `[rows, columns]` of `encode_int8_rows`."""
    return codes.astype(np.float32) * scales.astype(np.float32)


def encode_int4_groups(
    matrix: FloatArray, scales: NDArray[np.float16] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """`[rows, columns]` float to codes uint8 `[rows, columns / 2]` and scales float16
    `[rows, columns / GROUP_COLUMNS]`; columns must be a multiple of `GROUP_COLUMNS`.

    Without `scales` a group's largest entry is code 7 or -7: no entry is more than half a step off.
    """
    rows, columns = matrix.shape
    grouped = np.asarray(matrix, dtype=np.float32).reshape(rows, -1, GROUP_COLUMNS)
    if scales is None:
        scales = _never_zero(np.abs(grouped).max(axis=2) / 7)
    codes = np.clip(np.rint(grouped / scales.astype(np.float32)[..., None]), -8, 7)
    pairs = (codes.reshape(rows, columns) + 8).astype(np.uint8).reshape(rows, -1, 2)
    return pairs[..., 0] | (pairs[..., 1] << 4), scales


def decode_int4_groups(codes: NDArray[np.uint8], scales: NDArray[np.float16]) -> FloatArray:
    """The float32 matrix `[rows, columns]` of `encode_int4_groups`."""
    rows, groups = scales.shape
    values = np.empty((rows, codes.shape[1] * 2), dtype=np.float32)
    values[:, 0::2], values[:, 1::2] = codes & 15, codes >> 4
    values -= 8
    values.reshape(rows, groups, -1)[...] *= scales.astype(np.float32)[..., None]
    return values


def best_int4_scales(matrix: FloatArray) -> NDArray[np.float16]:
    """Scales `[rows, columns / GROUP_COLUMNS]` of the least squared error among 20 a group.

    They clip large entries when that pays, and take the sign of a group's largest entry, so that
    it can be code -8. A group that lies on a grid of codes up to 7 keeps that grid.
    """
    grouped = np.asarray(matrix, dtype=np.float32).reshape(len(matrix), -1, GROUP_COLUMNS)
    largest = np.abs(grouped).max(axis=2)
    place = np.abs(grouped).argmax(axis=2)[..., None]
    signed = np.take_along_axis(grouped, place, 2)[..., 0]
    best = _never_zero(largest / 7)
    least = _squared_error(grouped, best)
    for start in (largest / 7, -signed / 8):
        for factor in np.linspace(0.68, 1.04, 10, dtype=np.float32):
            scales = _never_zero(start * factor)
            error = _squared_error(grouped, scales)
            best = np.where(error < least, scales, best)
            least = np.minimum(error, least)
    return best


def _squared_error(grouped: FloatArray, scales: NDArray[np.float16]) -> FloatArray:
    steps = scales.astype(np.float32)[..., None]
    error: FloatArray = np.clip(np.rint(grouped / steps), -8, 7) * steps - grouped
    summed: FloatArray = np.square(error).sum(axis=2)
    return summed


def encode_signs(matrix: FloatArray) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """`[rows, columns]` float to bits uint8 `[rows, columns / 8]` and scales float16 `[rows, 1]`;
    columns must be a multiple of 8. The mean magnitude has the least squared error."""
    scales = _never_zero(np.abs(matrix).mean(axis=1, keepdims=True, dtype=np.float32))
    return np.packbits(matrix >= 0, axis=1), scales


def decode_signs(bits: NDArray[np.uint8], scales: NDArray[np.float16]) -> FloatArray:
    """The float32 matrix `[rows, columns]` of `encode_signs`."""
    signs = np.unpackbits(bits, axis=1).astype(np.float32) * 2 - 1
    decoded: FloatArray = signs * scales.astype(np.float32)
    return decoded


def decode_sparse(
    codes: NDArray[Any], scales: NDArray[np.float16] | None, bits: NDArray[np.uint8]
) -> FloatArray:
    """The matrix `[rows, columns]` with `codes`, row after row, where `bits` `[rows, columns / 8]`
    are set; times `scales` `[rows, 1]` where there are some."""
    present = np.unpackbits(bits, axis=1).astype(bool)
    value = np.zeros(present.shape, dtype=np.float32)
    value[present] = codes.astype(np.float32)
    return value if scales is None else value * scales.astype(np.float32)


def encode_bfloat16(value: FloatArray) -> NDArray[np.uint16]:
    """The upper half of each float32, rounded to nearest even, in the same shape; finite values
    only."""
    bits = np.ascontiguousarray(value, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _never_zero(scales: FloatArray) -> NDArray[np.float16]:
    """Float16 scales; never 0, so that a row of zeros decodes to zeros without dividing by 0."""
    tiny = np.float32(2.0**-24)
    kept = np.where(np.abs(scales) < tiny, tiny, scales)
    return np.asarray(kept, dtype=np.float16)
