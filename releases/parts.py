"""A model file cut into parts that are named by their content, the same way on both ends.

In: a path. Out: `PartSpan`s that cover the file from its first byte to its last. Neighbours:
`building` makes sources of a release's parts, `planning` and `assembly` find among the parts of a
device's own files what need not be fetched.

A file of tensors gives its header, then its tensors. Small neighbours that belong to the same
layer are one part, since a part costs some 60 bytes in an index; a large tensor is cut, since
whoever applies a difference holds a few copies of one part in memory. Any other file is one part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from releases.errors import ContentError

TENSOR_SUFFIX = ".safetensors"
MAX_PART_BYTES = 2 * 1024 * 1024
SMALL_TENSOR_BYTES = 16 * 1024
MAX_GROUP_BYTES = 64 * 1024
MAX_HEADER_BYTES = 16 * 1024 * 1024
_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4}
_ITEM_BYTES |= {"F16": 2, "BF16": 2, "I16": 2, "U16": 2}


@dataclass(frozen=True)
class Layout:
    """The bytes of a part are numbers of `item_bytes`, in rows of `row_bytes` (0: none)."""

    item_bytes: int = 1
    row_bytes: int = 0


PLAIN_BYTES = Layout()


@dataclass(frozen=True)
class PartSpan:
    """Bytes `offset` to `offset + length_bytes` of a file, and their sha256 in hexadecimal.

    `name` is that of the tensor, or of the layer whose small tensors these are; the same part of
    another release of the same network has the same name.
    """

    sha256: str
    offset: int
    length_bytes: int
    name: str = ""
    layout: Layout = PLAIN_BYTES


@dataclass(frozen=True)
class _Tensor:
    name: str
    offset: int
    length_bytes: int
    layout: Layout


def split_file(path: Path) -> list[PartSpan]:
    """The parts of a file in order; they cover all of it. An empty file has none.

    Raises `ContentError` when it cannot be read, or is called safetensors and is none.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            if path.name.endswith(TENSOR_SUFFIX):
                pieces = list(_cut(_group(_read_header(path, stream, size))))
            else:
                pieces = [_Tensor("", 0, size, PLAIN_BYTES)] if size else []
            spans = []
            for piece in pieces:
                stream.seek(piece.offset)
                digest = _hash(stream, piece.length_bytes)
                span = (piece.offset, piece.length_bytes, piece.name, piece.layout)
                spans.append(PartSpan(digest, *span))
            return spans
    except OSError as error:
        raise ContentError(f"{path} cannot be read: {error.strerror}") from error


def _read_header(path: Path, stream: Any, size: int) -> list[_Tensor]:
    """The header itself and every tensor, in file order; together the whole file."""
    header_bytes = int.from_bytes(stream.read(8), "little")
    if size < 8 or header_bytes > min(size - 8, MAX_HEADER_BYTES):
        raise ContentError(f"{path} is no safetensors file: its header does not fit; copy it again")
    data = 8 + header_bytes
    try:
        header = json.loads(stream.read(header_bytes))
        tensors = [
            _Tensor(name, data + entry["data_offsets"][0], _length(entry), _layout(entry))
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise ContentError(f"{path} is no safetensors file: {error!r}; copy it again") from error
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.length_bytes))
    end = data
    for tensor in tensors:
        if tensor.offset != end or tensor.length_bytes < 0:
            raise ContentError(f"{path}: tensor {tensor.name} is not where the one before ends")
        end += tensor.length_bytes
    if end != size:
        raise ContentError(f"{path}: its tensors end at byte {end}, the file at {size}")
    pieces = [_Tensor("header", 0, data, PLAIN_BYTES), *tensors]
    return [piece for piece in pieces if piece.length_bytes]


def _length(entry: dict[str, Any]) -> int:
    begin, end = entry["data_offsets"]
    if not isinstance(begin, int) or not isinstance(end, int):
        raise ValueError("offsets are whole numbers")
    return end - begin


def _layout(entry: dict[str, Any]) -> Layout:
    """Item size, and the row's size of a matrix."""
    item_bytes, shape = _ITEM_BYTES.get(entry["dtype"], 1), entry["shape"]
    return Layout(item_bytes, int(shape[1]) * item_bytes if len(shape) == 2 else 0)


def _group(tensors: list[_Tensor]) -> Iterator[_Tensor]:
    """Small neighbours of one layer and item size as one piece."""
    held: _Tensor | None = None
    for tensor in tensors:
        small = tensor.length_bytes < SMALL_TENSOR_BYTES and tensor.offset > 0
        layer = _layer_of(tensor.name)
        if (
            small
            and held is not None
            and held.name == layer
            and held.layout.item_bytes == tensor.layout.item_bytes
            and held.length_bytes + tensor.length_bytes <= MAX_GROUP_BYTES
        ):
            length = held.length_bytes + tensor.length_bytes
            held = _Tensor(layer, held.offset, length, held.layout)
            continue
        if held is not None:
            yield held
        held = None
        if small:
            layout = Layout(tensor.layout.item_bytes)
            held = _Tensor(layer, tensor.offset, tensor.length_bytes, layout)
        else:
            yield tensor
    if held is not None:
        yield held


def _layer_of(name: str) -> str:
    """The name up to its first number ("exits.3"), which is a layer's or a group's; else ""."""
    levels = name.split(".")
    numbered = [place for place, level in enumerate(levels) if level.isdecimal()]
    return ".".join(levels[: numbered[0] + 1]) if numbered else ""


def _cut(pieces: Iterator[_Tensor]) -> Iterator[_Tensor]:
    """Pieces of at most `MAX_PART_BYTES`; names stay unique within a file."""
    seen: dict[str, int] = {}
    for piece in pieces:
        for begin in range(0, piece.length_bytes, MAX_PART_BYTES):
            length = min(MAX_PART_BYTES, piece.length_bytes - begin)
            count = seen[piece.name] = seen.get(piece.name, 0) + 1
            name = piece.name if count == 1 else f"{piece.name}#{count}"
            whole = length == piece.length_bytes
            layout = piece.layout if whole else Layout(piece.layout.item_bytes)
            yield _Tensor(name, piece.offset + begin, length, layout)


def _hash(stream: Any, length_bytes: int) -> str:
    digest = hashlib.sha256()
    while length_bytes > 0 and (block := stream.read(min(length_bytes, 1 << 20))):
        digest.update(block)
        length_bytes -= len(block)
    if length_bytes:
        raise ContentError("a file became shorter while it was read; try again")
    return digest.hexdigest()
