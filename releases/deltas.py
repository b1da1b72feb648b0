"""Parts in fewer bytes: whole, or as a difference against a part that the receiver has.

In: bytes. Out: bytes that `apply` turns back into exactly the same ones. Neighbours: `building`
chooses, `assembly` applies; which method won where, by how much, is in
docs/decisions/0018-delta-methods.md.

    zstd       no base. One zstd frame
    patch      a zstd frame that may copy from the base. For text, headers, tables of another length
    ordered    bytes of equal number. The differences modulo 256, put in the order of the base's
               values: entries that were alike lie together and change alike. For codes that were
               trained further; for pruned ones, whose zeros stand where the smallest values were
    gathered   `ordered`, against chosen rows (or columns) of the base. For what lost units
    words16    differences of 2-byte words, small ones near 0, the words' bytes apart
    words32    the same for 4-byte words

What comes from outside is bounded before anything is allocated: a frame must declare the length
that is expected of it, and every length follows from `length_bytes`. Wrong bytes, a wrong base, a
lying length raise `ContentError`, nothing else; `apply` needs at most 16 times `length_bytes`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray

from releases.errors import ContentError
from releases.frames import Streams, compress, decompress
from releases.parts import PLAIN_BYTES, Layout

Bytes = NDArray[np.uint8]

WHOLE = "zstd"
MAX_APPLIED_BYTES = 64 * 1024 * 1024
"""No single part or compressed file is larger, so a lying length cannot take the memory."""
_GATHER = struct.Struct(">BII")


@dataclass(frozen=True)
class Encoded:
    """A part, or its difference against `base` (a sha256, None for a whole part)."""

    method: str
    base: str | None
    data: bytes


@dataclass(frozen=True)
class Content:
    """The bytes of a part with what they are."""

    sha256: str
    content: bytes
    layout: Layout = PLAIN_BYTES


def encode_whole(new: bytes) -> Encoded:
    """The part itself, compressed."""
    return Encoded(WHOLE, None, compress(new))


def encode_difference(new: Content, base: Content) -> Encoded:
    """The smallest of all differences, proved to give the part back."""
    tried = try_methods(new, base)
    method = min(tried, key=lambda name: len(tried[name]))
    if apply(method, base.content, tried[method], len(new.content)) != new.content:
        raise ContentError(f"method {method} does not give part {new.sha256} back; report it")
    return Encoded(method, base.sha256, tried[method])


def try_methods(new: Content, base: Content) -> dict[str, bytes]:
    """The difference by every method that the two parts' lengths and layouts allow."""
    encoded = {
        method: encode(new.content, base.content, new.layout, base.layout)
        for method, encode in _ENCODERS.items()
    }
    return {method: data for method, data in encoded.items() if data is not None}


def apply(method: str, base: bytes | None, data: bytes, length_bytes: int) -> bytes:
    """The part of `length_bytes` that `data` stands for. Raises `ContentError`."""
    if not 0 <= length_bytes <= MAX_APPLIED_BYTES:
        raise ContentError(f"a part of {length_bytes} bytes; at most {MAX_APPLIED_BYTES} are taken")
    try:
        if method == WHOLE:
            return decompress(data, length_bytes)
        applied = _APPLIERS.get(method)
        if applied is None:
            raise ContentError(f"method {method!r} is unknown here; update this program")
        if base is None or len(base) > MAX_APPLIED_BYTES:
            raise ContentError(f"method {method} needs its base, of {MAX_APPLIED_BYTES} at most")
        return applied(base, data, length_bytes)
    except (zstandard.ZstdError, ValueError, IndexError, struct.error, MemoryError) as error:
        raise ContentError(f"a part cannot be made by {method}: {error}; fetch it again") from error


# -- patch ---------------------------------------------------------------------------------


def _encode_patch(new: bytes, base: bytes, _: Layout, __: Layout) -> bytes:
    return compress(new, base)


def _apply_patch(base: bytes, data: bytes, length_bytes: int) -> bytes:
    return decompress(data, length_bytes, base)


# -- ordered, gathered -----------------------------------------------------------------------


def _encode_ordered(new: bytes, base: bytes, _: Layout, __: Layout) -> bytes | None:
    return _order_differences(new, base) if len(new) == len(base) else None


def _apply_ordered(base: bytes, data: bytes, length_bytes: int) -> bytes:
    streams = Streams(data)
    content = _undo_order(base, streams, length_bytes)
    streams.check_end()
    return content


def _order_differences(new: bytes, base: bytes) -> bytes:
    """Differences in the base's order as planes: which are not 0; of those which are negative and
    which are larger than 1; of those the size. (Huffman codes of zstd spend a bit at least on a
    byte; most differences are worth less.)"""
    before = np.frombuffer(base, np.uint8)
    order = np.argsort(before, kind="stable")
    difference = (np.frombuffer(new, np.uint8) - before)[order].view(np.int8)
    changed = difference[difference != 0]
    size = np.abs(changed.astype(np.int16)).astype(np.uint8)
    return Streams.write(
        [
            np.packbits(difference != 0).tobytes(),
            np.packbits(changed < 0).tobytes(),
            np.packbits(size > 1).tobytes(),
            size[size > 1].tobytes(),
        ]
    )


def _undo_order(base: bytes, streams: Streams, length_bytes: int) -> bytes:
    if len(base) != length_bytes:
        raise ContentError(f"a base of {len(base)} bytes where {length_bytes} belong")
    before = np.frombuffer(base, np.uint8)
    changed = _read_bits(streams, length_bytes)
    count = int(np.count_nonzero(changed))
    negative, large = _read_bits(streams, count), _read_bits(streams, count)
    size = np.ones(count, np.uint8)
    size[large] = streams.read(int(np.count_nonzero(large)))
    size[negative] = 0 - size[negative]
    difference = np.zeros(length_bytes, np.uint8)
    difference[changed] = size
    content = before.copy()
    content[np.argsort(before, kind="stable")] += difference
    return content.tobytes()


def _read_bits(streams: Streams, count: int) -> NDArray[np.bool_]:
    return np.unpackbits(streams.read((count + 7) // 8), count=count).astype(np.bool_)


def _encode_gathered(new: bytes, base: bytes, layout: Layout, base_layout: Layout) -> bytes | None:
    """For each row (or column) of the new matrix the base's that is most like it."""
    if layout.item_bytes != 1 or not layout.row_bytes or not base_layout.row_bytes:
        return None
    matrix = np.frombuffer(new, np.uint8).reshape(-1, layout.row_bytes)
    before = np.frombuffer(base, np.uint8).reshape(-1, base_layout.row_bytes)
    by_column = matrix.shape[0] == before.shape[0]
    if matrix.shape == before.shape or not (by_column or matrix.shape[1] == before.shape[1]):
        return None
    axis = 1 if by_column else 0
    places = _most_alike(*((matrix.T, before.T) if by_column else (matrix, before)))
    gathered = np.take(before, places, axis).tobytes()
    head = _GATHER.pack(axis, base_layout.row_bytes, len(places))
    steps = np.diff(places, prepend=0).astype("<i4").view(np.uint8).reshape(-1, 4).T.tobytes()
    listed = Streams.write([steps])
    return head + listed + _order_differences(new, gathered)


def _apply_gathered(base: bytes, data: bytes, length_bytes: int) -> bytes:
    axis, row_bytes, count = _GATHER.unpack_from(data)
    if not row_bytes or len(base) % row_bytes or axis > 1 or not 0 < count <= length_bytes:
        raise ContentError("a difference against rows that its base has not")
    streams = Streams(data[_GATHER.size :])
    before = np.frombuffer(base, np.uint8).reshape(-1, row_bytes)
    if count * before.shape[1 - axis] != length_bytes:
        raise ContentError(f"{count} rows or columns of the base are not {length_bytes} bytes")
    planes = streams.read(4 * count).reshape(4, count).T
    places = np.cumsum(np.ascontiguousarray(planes).view("<i4")[:, 0], dtype=np.int64)
    if places.min() < 0 or places.max() >= before.shape[axis]:
        raise ContentError("a difference names a row that its base has not")
    content = _undo_order(np.take(before, places, axis).tobytes(), streams, length_bytes)
    streams.check_end()
    return content


def _most_alike(rows: Bytes, before: Bytes) -> NDArray[np.int64]:
    """For each of `rows` `[N, columns]` the place of the nearest of `before` `[M, columns]`."""
    ours, theirs = (each.view(np.int8).astype(np.float32) for each in map(_whole, (rows, before)))
    distance = np.square(theirs).sum(1) - 2 * (ours @ theirs.T)  # [N, M], less |ours|^2
    places: NDArray[np.int64] = distance.argmin(1)
    return places


def _whole(matrix: Bytes) -> Bytes:
    return np.ascontiguousarray(matrix)


# -- words ---------------------------------------------------------------------------------


def _encode_words(kind: str) -> Callable[[bytes, bytes, Layout, Layout], bytes | None]:
    width = np.dtype(kind).itemsize

    def encode(new: bytes, base: bytes, layout: Layout, _: Layout) -> bytes | None:
        if layout.item_bytes != width or len(new) != len(base) or len(new) % width:
            return None
        difference = np.frombuffer(new, kind) - np.frombuffer(base, kind)
        zigzag = (difference << 1) ^ (0 - (difference >> (8 * width - 1)))
        planes = np.ascontiguousarray(zigzag).view(np.uint8).reshape(-1, width).T
        return Streams.write([plane.tobytes() for plane in planes])

    return encode


def _apply_words(kind: str) -> Callable[[bytes, bytes, int], bytes]:
    width = np.dtype(kind).itemsize

    def undo(base: bytes, data: bytes, length_bytes: int) -> bytes:
        if len(base) != length_bytes or length_bytes % width:
            raise ContentError(f"a base of {len(base)} bytes where {length_bytes} belong")
        streams = Streams(data)
        planes = np.stack([streams.read(length_bytes // width) for _ in range(width)], axis=1)
        streams.check_end()
        zigzag = np.ascontiguousarray(planes).view(kind).reshape(-1)
        difference = (zigzag >> 1) ^ (0 - (zigzag & 1))
        content: bytes = (np.frombuffer(base, kind) + difference).tobytes()
        return content

    return undo


_ENCODERS: dict[str, Callable[[bytes, bytes, Layout, Layout], bytes | None]] = {
    "patch": _encode_patch,
    "ordered": _encode_ordered,
    "gathered": _encode_gathered,
    "words16": _encode_words("<u2"),
    "words32": _encode_words("<u4"),
}
_APPLIERS: dict[str, Callable[[bytes, bytes, int], bytes]] = {
    "patch": _apply_patch,
    "ordered": _apply_ordered,
    "gathered": _apply_gathered,
    "words16": _apply_words("<u2"),
    "words32": _apply_words("<u4"),
}
METHODS = (WHOLE, *_APPLIERS)
