"""The index of a large file: its parts, and from where each part can be had.

A file of tensors is the concatenation of parts (its header, then one part a tensor), each named
by its content. A part may have several sources: a range of a blob that holds it whole (perhaps
compressed), or one that holds its difference against another part (`base`) which a device may
have already; the receiver takes the cheapest that it can. The index is a blob itself.

    index = frame(FILE_INDEX, {parts, blobs, bases, sources: counts, methods: names}, columns)

    columns, in order, numbers big endian
    parts     sha256 32, length u32
    blobs     sha256 32, length u32
    chunks    32 for each chunk of each blob that has more than one
    bases     sha256 32
    sources   part u32, method u8, base u32 (all ones: none), blob u32, offset u32, length u32

The counts fix the columns' length, which is checked before anything is built. What a method does
is the business of who applies it.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

from protocol.blobs import MAX_BLOB_BYTES, BlobRef
from protocol.checks import check_digest, check_integer, check_list, take
from protocol.errors import MalformedMessage, OversizedMessage
from protocol.wire import Kind, decode_frame, encode_frame

MAX_INDEX_BYTES = 4 * 1024 * 1024
MAX_PARTS = 20_000
MAX_SOURCES = 100_000
MAX_BLOBS = 256
MAX_METHODS = 32
METHOD_PATTERN = re.compile(r"[a-z0-9_-]{1,32}", re.ASCII)

_SIZED = struct.Struct(">32sI")
_SOURCE = struct.Struct(">IBIIII")
_DIGEST_BYTES = 32
_NO_BASE = 2**32 - 1


@dataclass(frozen=True)
class FilePart:
    """A piece of the file, by its content."""

    sha256: str
    length_bytes: int

    def __post_init__(self) -> None:
        check_digest("part sha256", self.sha256)
        check_integer("part length_bytes", self.length_bytes, 1, MAX_BLOB_BYTES)


@dataclass(frozen=True)
class PartSource:
    """One way to have part number `part`: `length_bytes` from `offset` of blob number `blob`, from
    which `method` makes the part; with the bytes of the part `base` (sha256), or without any.
    """

    part: int
    method: str
    base: str | None
    blob: int
    offset: int
    length_bytes: int

    def __post_init__(self) -> None:
        check_integer("source part", self.part, 0, MAX_PARTS - 1)
        if not isinstance(self.method, str) or METHOD_PATTERN.fullmatch(self.method) is None:
            raise MalformedMessage("method must be 1 to 32 of a-z, 0-9, '_' and '-'")
        if self.base is not None:
            check_digest("source base", self.base)
        check_integer("source blob", self.blob, 0, MAX_BLOBS - 1)
        check_integer("source offset", self.offset, 0, MAX_BLOB_BYTES)
        check_integer("source length_bytes", self.length_bytes, 1, MAX_BLOB_BYTES)


@dataclass(frozen=True)
class FileIndex:
    """The parts in file order, the blobs that sources point into, and the sources.

    Every part's content has a source without a base: who has nothing can have the file.
    """

    parts: tuple[FilePart, ...]
    blobs: tuple[BlobRef, ...]
    sources: tuple[PartSource, ...]

    def __post_init__(self) -> None:
        check_integer("number of parts", len(self.parts), 1, MAX_PARTS)
        check_integer("number of blobs", len(self.blobs), 1, MAX_BLOBS)
        check_integer("number of sources", len(self.sources), 1, MAX_SOURCES)
        available = set()
        for source in self.sources:
            if source.part >= len(self.parts) or source.blob >= len(self.blobs):
                raise MalformedMessage("a source names a part or a blob that the index has not")
            if source.offset + source.length_bytes > self.blobs[source.blob].length_bytes:
                raise MalformedMessage("a source ends after its blob")
            if source.base is None:
                available.add(self.parts[source.part].sha256)
        lacking = sum(part.sha256 not in available for part in self.parts)
        if lacking:
            raise MalformedMessage(f"{lacking} parts have no source without a base")

    @property
    def length_bytes(self) -> int:
        """The length of the file."""
        return sum(part.length_bytes for part in self.parts)


def encode_index(index: FileIndex) -> bytes:
    """The content of an index blob. Raises OversizedMessage above `MAX_INDEX_BYTES`."""
    methods = sorted({source.method for source in index.sources})
    bases = list(dict.fromkeys(source.base for source in index.sources if source.base is not None))
    if len(methods) > MAX_METHODS:
        raise OversizedMessage(f"{len(methods)} methods in an index; at most {MAX_METHODS}")
    method_numbers = {method: number for number, method in enumerate(methods)}
    base_numbers: dict[str | None, int] = {base: number for number, base in enumerate(bases)}
    base_numbers[None] = _NO_BASE
    columns = [
        *(_pack_sized(part) for part in index.parts),
        *(_pack_sized(blob) for blob in index.blobs),
        *(bytes.fromhex(chunk) for blob in index.blobs for chunk in blob.chunk_hashes),
        *(bytes.fromhex(base) for base in bases),
        *(
            _SOURCE.pack(
                one.part,
                method_numbers[one.method],
                base_numbers[one.base],
                one.blob,
                one.offset,
                one.length_bytes,
            )
            for one in index.sources
        ),
    ]
    counts = {
        "parts": len(index.parts),
        "blobs": len(index.blobs),
        "bases": len(bases),
        "sources": len(index.sources),
        "methods": methods,
    }
    content = encode_frame(Kind.FILE_INDEX, counts, b"".join(columns))
    _check_size(content)
    return content


def decode_index(content: bytes) -> FileIndex:
    """The index in a blob's content. Raises MalformedMessage."""
    _check_size(content)
    frame = decode_frame(content, {Kind.FILE_INDEX})
    columns = _Columns(frame.attachment)
    parts_count, blobs_count, bases_count, sources_count = _counts(frame.fields)
    methods = check_list("methods", take(frame.fields, "methods")[0], MAX_METHODS)
    sized = [_SIZED.unpack(one) for one in columns.take(parts_count + blobs_count, _SIZED.size)]
    parts = tuple(FilePart(sha.hex(), length) for sha, length in sized[:parts_count])
    blobs = tuple(_read_blob(columns, sha, length) for sha, length in sized[parts_count:])
    bases = [one.hex() for one in columns.take(bases_count, _DIGEST_BYTES)]
    records = columns.take(sources_count, _SOURCE.size)
    columns.check_end()
    return FileIndex(parts, blobs, tuple(_read_source(one, methods, bases) for one in records))


class _Columns:
    """Fixed-size records, one after another; never reads past the end."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    def take(self, count: int, record_bytes: int) -> list[bytes]:
        """The next `count` records."""
        begin, end = self._position, self._position + count * record_bytes
        if end > len(self._content):
            raise MalformedMessage("the index's columns are shorter than its counts say")
        self._position = end
        return [self._content[at : at + record_bytes] for at in range(begin, end, record_bytes)]

    def check_end(self) -> None:
        """Nothing is left."""
        if self._position != len(self._content):
            raise MalformedMessage("the index's columns are longer than its counts say")


def _counts(fields: dict[str, Any]) -> tuple[int, int, int, int]:
    parts, blobs, bases, sources = take(fields, "parts", "blobs", "bases", "sources")
    return (
        check_integer("parts", parts, 1, MAX_PARTS),
        check_integer("blobs", blobs, 1, MAX_BLOBS),
        check_integer("bases", bases, 0, MAX_SOURCES),
        check_integer("sources", sources, 1, MAX_SOURCES),
    )


def _read_blob(columns: _Columns, sha256: bytes, length_bytes: int) -> BlobRef:
    """A blob and its chunks' hashes, whose number follows from its length."""
    check_integer("blob length_bytes", length_bytes, 1, MAX_BLOB_BYTES)
    chunk_count = BlobRef.count_chunks(length_bytes)
    hashes = columns.take(chunk_count if chunk_count > 1 else 0, _DIGEST_BYTES)
    return BlobRef(sha256.hex(), length_bytes, tuple(one.hex() for one in hashes))


def _read_source(record: bytes, methods: list[Any], bases: list[str]) -> PartSource:
    part, method, base, blob, offset, length_bytes = _SOURCE.unpack(record)
    if method >= len(methods) or (base != _NO_BASE and base >= len(bases)):
        raise MalformedMessage("a source names a method or a base that the index has not")
    return PartSource(
        part, methods[method], None if base == _NO_BASE else bases[base], blob, offset, length_bytes
    )


def _pack_sized(one: FilePart | BlobRef) -> bytes:
    return _SIZED.pack(bytes.fromhex(one.sha256), one.length_bytes)


def _check_size(content: bytes) -> None:
    if len(content) > MAX_INDEX_BYTES:
        raise OversizedMessage(
            f"a file index of {len(content)} bytes; the limit is {MAX_INDEX_BYTES}"
        )
