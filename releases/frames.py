"""zstd frames of a known length: what parts, differences and small files travel in.

In: bytes. Out: frames, and back. Neighbours: `deltas` puts parts and differences into frames.

A frame declares the length of its content. The receiver knows which length belongs there and
compares the two before anything is allocated, so a small frame cannot become a large file.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import zstandard
from numpy.typing import NDArray

from releases.errors import ContentError

LEVEL = 19
_LENGTH = struct.Struct(">I")


def compress(content: bytes, base: bytes | None = None) -> bytes:
    """One frame that declares its length; it may copy from `base`."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, source_size=len(content), dict_size=len(base or b""), write_checksum=False
    )
    dictionary = None if base is None else _dictionary(base)
    compressor = zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary)
    return compressor.compress(content)


def decompress(frame: bytes, length_bytes: int, base: bytes | None = None) -> bytes:
    """The content of one frame, which must declare and hold exactly `length_bytes`.

    Raises `ContentError` or `ZstdError`; nothing is allocated for another length.
    """
    declared = zstandard.get_frame_parameters(frame).content_size
    if declared != length_bytes:
        raise ContentError(f"a frame declares {declared} bytes where {length_bytes} belong")
    dictionary = None if base is None else _dictionary(base)
    decompressor = zstandard.ZstdDecompressor(dict_data=dictionary)
    content = decompressor.decompress(frame, allow_extra_data=False)
    if len(content) != length_bytes:
        raise ContentError(f"a frame holds {len(content)} bytes where {length_bytes} belong")
    return content


def _dictionary(base: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


class Streams:
    """Frames one after another, each behind its length; a stream of nothing has length 0."""

    def __init__(self, data: bytes) -> None:
        """Read from `data`."""
        self._data = data
        self._position = 0

    @staticmethod
    def write(streams: Sequence[bytes]) -> bytes:
        """The data of these streams."""
        frames = [compress(stream) if stream else b"" for stream in streams]
        return b"".join(_LENGTH.pack(len(frame)) + frame for frame in frames)

    def read(self, length_bytes: int) -> NDArray[np.uint8]:
        """The next stream, which has `length_bytes`."""
        (size,) = _LENGTH.unpack_from(self._data, self._position)
        begin = self._position + _LENGTH.size
        self._position = begin + size
        frame = self._data[begin : self._position]
        if len(frame) != size or (size == 0) != (length_bytes == 0):
            raise ContentError("a difference has other streams than its length asks for")
        return np.frombuffer(decompress(frame, length_bytes) if size else b"", np.uint8)

    def check_end(self) -> None:
        """Raise `ContentError` when something is left."""
        if self._position != len(self._data):
            raise ContentError("a difference is longer than its streams")
