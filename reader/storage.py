"""How one tensor lies on disk, and which kind of tensor gets which encoding.

In: named float32 arrays. Out: named arrays for one safetensors file, and back. Neighbours:
`encodings` has the arithmetic, `weights` reads files through this, `model_writer` and
`elma compress` write them.

    float32 float16 bfloat16      the values themselves
    int8, int4                    codes and scales (`encodings`)
    sparse_int8, sparse_float16   only the entries that are not 0
    mixed                         word embeddings: int4 for frequent words, signs for the others
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reader.arrays import FloatArray
from reader.encodings import (
    GROUP_COLUMNS,
    best_int4_scales,
    decode_int4_groups,
    decode_int8_rows,
    decode_signs,
    decode_sparse,
    encode_bfloat16,
    encode_int4_groups,
    encode_int8_rows,
    encode_signs,
)
from reader.errors import ModelFolderError

WORD_EMBEDDINGS = "albert.embeddings.word_embeddings.weight"
FLOAT_ENCODINGS = ("float32", "float16", "bfloat16")
PACKED_ENCODINGS = ("int8", "int4", "sparse_int8", "sparse_float16", "mixed")
_CODE_TYPES = {
    "int8": np.int8,
    "int4": np.uint8,
    "sparse_int8": np.int8,
    "sparse_float16": np.float16,
    "mixed": np.uint8,
}
_PARTS = ("", "_scale", "_bits", "_rest", "_rest_scale")


@dataclass(frozen=True)
class StorageFormat:
    """The encoding of each kind of tensor.

    `embeddings` are the word embeddings, `matrices` every other matrix, `vectors` the rest. A
    format of one float encoding is `plain`: it is written in the layout of `transformers`.
    """

    embeddings: str = "float32"
    matrices: str = "float32"
    vectors: str = "float32"

    def __post_init__(self) -> None:
        for encoding in (self.embeddings, self.matrices):
            if encoding not in FLOAT_ENCODINGS + PACKED_ENCODINGS:
                known = ", ".join(FLOAT_ENCODINGS + PACKED_ENCODINGS)
                raise ValueError(f"encoding {encoding!r} is not one of {known}")
        if self.vectors not in FLOAT_ENCODINGS:
            raise ValueError(f"vectors are stored as {FLOAT_ENCODINGS}, not {self.vectors!r}")

    @property
    def plain(self) -> bool:
        """Whether `transformers` can load a folder of this format."""
        return self.embeddings == self.matrices == self.vectors

    def encoding_of(self, name: str, shape: tuple[int, ...]) -> str:
        """The encoding for a tensor of this (Hugging Face) name.

        Small matrices are vectors; one whose width the encoding cannot hold gets int8.
        """
        if self.plain or len(shape) != 2 or min(shape) <= 2:
            return self.vectors
        chosen = self.embeddings if name == WORD_EMBEDDINGS else self.matrices
        multiple = {"int4": GROUP_COLUMNS, "sparse_int8": 8, "sparse_float16": 8}.get(chosen, 1)
        return "int8" if shape[1] % multiple else chosen


FLOAT32 = StorageFormat()
FLOAT16 = StorageFormat("float16", "float16", "float16")
BFLOAT16 = StorageFormat("bfloat16", "bfloat16", "bfloat16")
PACKED = StorageFormat("int4", "int8", "float16")
PACKED_INT4 = StorageFormat("int4", "int4", "float16")
SPARSE = StorageFormat("int4", "sparse_int8", "float16")
SPARSE_FLOAT16 = StorageFormat("int4", "sparse_float16", "float16")
STORAGE_FORMATS: dict[str, StorageFormat] = {
    "float32": FLOAT32,
    "float16": FLOAT16,
    "bfloat16": BFLOAT16,
    "int8": PACKED,
    "int4": PACKED_INT4,
    "sparse-int8": SPARSE,
    "sparse-float16": SPARSE_FLOAT16,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies on disk.

    int8: `codes` int8 `[rows, columns]`, `scales` float16 `[rows, 1]`. int4: codes uint8
    `[rows, columns / 2]`, scales `[rows, columns / GROUP_COLUMNS]`. sparse: codes `[entries]`, row
    after row, `bits` uint8 `[rows, columns / 8]` (highest bit first), scales `[rows, 1]` for
    sparse_int8. mixed: `bits` `[rows / 8]` say which rows are the int4 ones in codes and scales;
    `rest` uint8 `[other rows, columns / 8]` are the signs of the others, `rest_scales` their
    magnitudes `[other rows, 1]`; `rows` counts both. Else `codes` are the values, bfloat16 as its
    16 bits.
    """

    encoding: str
    codes: NDArray[Any]
    scales: NDArray[np.float16] | None = None
    bits: NDArray[np.uint8] | None = None
    rest: NDArray[np.uint8] | None = None
    rest_scales: NDArray[np.float16] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the decoded tensor."""
        if self.rest is not None:
            return (len(self.codes) + len(self.rest), self.rest.shape[1] * 8)
        if self.bits is not None:
            return (self.bits.shape[0], self.bits.shape[1] * 8)
        if self.encoding == "int4":
            return (self.codes.shape[0], self.codes.shape[1] * 2)
        return self.codes.shape

    def decode(self) -> FloatArray:
        """The float32 values, in `shape`."""
        if self.encoding.startswith("sparse") and self.bits is not None:
            return decode_sparse(self.codes, self.scales, self.bits)
        if self.encoding == "bfloat16":
            return (self.codes.astype(np.uint32) << 16).view(np.float32)
        if self.scales is None:
            return self.codes.astype(np.float32)
        return self.decode_rows(np.arange(self.shape[0]))

    def decode_rows(self, rows: NDArray[np.int64]) -> FloatArray:
        """The float32 values of some rows `[len(rows), columns]`; not of a sparse tensor."""
        if self.scales is None or self.encoding.startswith("sparse"):
            return StoredTensor(self.encoding, self.codes[rows]).decode()
        if self.encoding == "int8":
            return decode_int8_rows(self.codes[rows], self.scales[rows])
        if self.rest is None or self.rest_scales is None or self.bits is None:
            return decode_int4_groups(self.codes[rows], self.scales[rows])
        frequent, place = (each[rows] for each in self._places)
        values = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        hot, cold = place[frequent], place[~frequent]
        values[frequent] = decode_int4_groups(self.codes[hot], self.scales[hot])
        values[~frequent] = decode_signs(self.rest[cold], self.rest_scales[cold])
        return values

    @cached_property
    def _places(self) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which rows of a mixed tensor are frequent `[rows]`, and each row's place in its part."""
        assert self.bits is not None  # noqa: S101  # narrows; only asked for mixed tensors
        chosen = np.unpackbits(self.bits, count=self.shape[0]).astype(bool)
        return chosen, np.where(chosen, np.cumsum(chosen), np.cumsum(~chosen)) - 1

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """What a file holds of this tensor, by name in the file."""
        if self.encoding in FLOAT_ENCODINGS:
            return {name: self.codes}
        parts = (self.codes, self.scales, self.bits, self.rest, self.rest_scales)
        return {
            f"{name}.{self.encoding}{end}": part
            for end, part in zip(_PARTS, parts, strict=True)
            if part is not None
        }


def encode_tensor(value: FloatArray, encoding: str) -> StoredTensor:
    """`value` in an encoding; for int4 with the scales of the least squared error.

    int8, int4 and sparse take a matrix `[rows, columns]`, the others any shape.
    """
    if encoding == "int8":
        return StoredTensor(encoding, *encode_int8_rows(value))
    if encoding == "int4":
        return StoredTensor(encoding, *encode_int4_groups(value, best_int4_scales(value)))
    if encoding.startswith("sparse"):
        return _encode_sparse(value, encoding)
    if encoding == "bfloat16":
        return StoredTensor(encoding, encode_bfloat16(value))
    return StoredTensor(encoding, np.ascontiguousarray(value, dtype=np.dtype(encoding)))


def encode_mixed_rows(matrix: FloatArray, frequent: NDArray[np.bool_]) -> StoredTensor:
    """Word embeddings with int4 for the rows in `frequent` `[rows]` and signs for the others.

    Columns must be a multiple of `GROUP_COLUMNS`.
    """
    hot = matrix[frequent]
    codes, scales = encode_int4_groups(hot, best_int4_scales(hot))
    return StoredTensor(
        "mixed", codes, scales, np.packbits(frequent), *encode_signs(matrix[~frequent])
    )


def find_stored(name: str, arrays: Mapping[str, NDArray[Any]]) -> StoredTensor | None:
    """The tensor `name` among the arrays of a file; None when it is not there.

    Raises `ModelFolderError` when its parts do not fit each other.
    """
    if name in arrays:
        values = arrays[name]
        encoding = "bfloat16" if values.dtype == np.uint16 else str(values.dtype)
        if encoding not in (*FLOAT_ENCODINGS, "float64"):
            raise ModelFolderError(f"tensor {name} holds {encoding}, not floats")
        return StoredTensor(encoding, values)
    for encoding in PACKED_ENCODINGS:
        if f"{name}.{encoding}" in arrays:
            codes = arrays[f"{name}.{encoding}"]
            others = [arrays.get(f"{name}.{encoding}{end}") for end in _PARTS[1:]]
            if not _parts_fit(encoding, codes, *others):
                described = [None if p is None else p.shape for p in (codes, *others)]
                raise ModelFolderError(
                    f"tensor {name}: {described} are no parts of a {encoding} one"
                )
            return StoredTensor(encoding, codes, *others)
    return None


def _encode_sparse(value: FloatArray, encoding: str) -> StoredTensor:
    present = value != 0
    bits = np.packbits(present, axis=1)
    if encoding == "sparse_float16":
        return StoredTensor(encoding, value[present].astype(np.float16), None, bits)
    codes, scales = encode_int8_rows(value)
    return StoredTensor(encoding, codes[present], scales, bits)


def _parts_fit(
    encoding: str,
    codes: NDArray[Any],
    scales: NDArray[Any] | None,
    bits: NDArray[Any] | None,
    rest: NDArray[Any] | None,
    rest_scales: NDArray[Any] | None,
) -> bool:
    """Whether the parts of a packed tensor have the types, shapes and sizes of its encoding."""
    if codes.dtype != _CODE_TYPES[encoding]:
        return False
    if encoding == "int8":
        return codes.ndim == 2 and _are_scales(scales, (len(codes), 1))
    if encoding in ("int4", "mixed"):
        groups = codes.shape[-1] * 2 // GROUP_COLUMNS
        if codes.ndim != 2 or codes.shape[1] * 2 % GROUP_COLUMNS:
            return False
        if not _are_scales(scales, (len(codes), groups)):
            return False
        if encoding == "int4":
            return True
        if rest is None or rest.dtype != np.uint8 or rest.ndim != 2:
            return False
        rows = len(codes) + len(rest)
        return (
            rest.shape[1] * 4 == codes.shape[1]
            and _are_scales(rest_scales, (len(rest), 1))
            and _are_bits(bits, ((rows + 7) // 8,), len(codes), rows)
        )
    if bits is None or bits.ndim != 2 or not _are_bits(bits, bits.shape, codes.size, 8 * bits.size):
        return False
    if codes.ndim != 1:
        return False
    return scales is None if encoding == "sparse_float16" else _are_scales(scales, (len(bits), 1))


def _are_scales(scales: NDArray[Any] | None, shape: tuple[int, ...]) -> bool:
    if scales is None or scales.dtype != np.float16 or scales.shape != shape:
        return False
    return bool(np.isfinite(scales).all())


def _are_bits(
    bits: NDArray[Any] | None, shape: tuple[int, ...], set_bits: int, used_bits: int
) -> bool:
    if bits is None or bits.dtype != np.uint8 or bits.shape != shape:
        return False
    return int(np.count_nonzero(np.unpackbits(bits, count=used_bits))) == set_bits
