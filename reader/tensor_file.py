"""One safetensors file as numpy arrays, bfloat16 included: read lazily, or written.

In: a path. Out: a mapping from names to arrays, each read from disk when it is asked for; or the
other way round. Neighbours: `weights` opens a model folder's files through this, `model_writer`
writes them. numpy does not have bfloat16: it stands here as its 16 bits, uint16.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from reader.errors import ModelFolderError

_KINDS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "uint16": "BF16",
    "int8": "I8",
    "uint8": "U8",
}


def write_tensor_file(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a safetensors file: a header's length, the header, the values one after the other.

    By hand, since the library's numpy side cannot write bfloat16. Wider types come first, so that
    every tensor is aligned, as the library does.
    """
    ordered = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in ordered:
        array = arrays[name]
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": _KINDS[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            stream.write(np.ascontiguousarray(arrays[name]).tobytes())


class TensorFile(Mapping[str, NDArray[Any]]):
    """The tensors of a file; bfloat16 as uint16."""

    def __init__(self, path: Path) -> None:
        """Open `path`; raises `ModelFolderError` when it is no safetensors file."""
        self.path = path
        try:
            self._file: Any = safe_open(path, framework="numpy")
            self._names: frozenset[str] = frozenset(self._file.keys())  # type: ignore[no-untyped-call]
            self._bfloat16 = frozenset(name for name in self._names if self._kind(name) == "BF16")
        except (SafetensorError, OSError) as error:
            raise ModelFolderError(f"{path} cannot be read: {error}; copy it again") from error

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        if name in self._bfloat16:
            return self._read_bits(name)
        try:
            array: NDArray[Any] = self._file.get_tensor(name)
        except (SafetensorError, OSError, TypeError) as error:
            raise ModelFolderError(f"{self.path}: tensor {name} cannot be read: {error}") from error
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._file.get_slice(name).get_shape())

    def _kind(self, name: str) -> str:
        return str(self._file.get_slice(name).get_dtype())

    def _read_bits(self, name: str) -> NDArray[np.uint16]:
        with self.path.open("rb") as stream:  # the header was checked when the file was opened
            header_bytes = int.from_bytes(stream.read(8), "little")
            begin, end = json.loads(stream.read(header_bytes))[name]["data_offsets"]
            stream.seek(8 + header_bytes + begin)
            bits = np.frombuffer(stream.read(end - begin), dtype="<u2")
        return bits.reshape(self.shape(name))
