"""The learned codec: a state through a narrow projection, a few bits a component, packed.

In: a state `[T, H]` after one layer, and that layer's matrices of the release. Out: bytes of an
exactly known size. Neighbours: `codecs` offers it by name, `cloud_worker.training.bottleneck`
learns the matrices and writes them.

A token becomes K components, `(state - mean) @ down`, the first ones varying most (KLT: transform
coding, Goyal 2001, section III). Each is rounded to one of 2^bits steps around an offset, by a
uniform mid-rise quantiser that clips; `codes @ up + mean` comes back.

Not all tokens are alike: those that the network already marks as possible answers lie far from the
others, matter most, and would be clipped by what suits the rest. So tokens belong to C classes,
each with its own bits, steps and offsets: of T tokens, the `ceil(T / one_in[c])` that the plainest
class (0) would spoil most go to the finest class, the next to the one before it.

    classes    T codes of 0, 1 or 2 bits (for C = 1, 2, 3..4)      packed, little bit order
    class 0    a row a token, in token order: its codes' bits      rows end at whole bytes
    class 1    ...

Every payload of the right size whose classes have the right counts decodes to bounded values.

Shapes: T tokens, H hidden, K components, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reader.arrays import FloatArray, IntArray
from reader.errors import ModelFolderError, StateShapeError
from reader.tensor_file import TensorFile

BOTTLENECK_FILE = "bottleneck.safetensors"
MAX_CLASSES = 4
MAX_BITS = 8
CLASS_BITS = (0, 1, 2, 2)  # of a token's class, for 1 to 4 classes

ByteArray = NDArray[np.uint8]


@dataclass(frozen=True)
class BottleneckTensors:
    """What is learned for one layer, as it is stored."""

    mean: FloatArray  # [H]
    down: FloatArray  # [H, K]
    up: FloatArray  # [K, H]
    bits: IntArray  # [C, K], 0..8; 0 leaves a component at its offset
    steps: FloatArray  # [C, K], above 0
    offsets: FloatArray  # [C, K]
    one_in: tuple[int, ...]  # [C]; class 0 takes the rest, its number is 1


@dataclass(frozen=True)
class _Class:
    """How tokens of one class are written: which bit of the row is which bit of which component."""

    steps: FloatArray  # [K]
    offsets: FloatArray  # [K], the value of code 0
    highest: FloatArray  # [K], the largest code
    component: IntArray  # [bits of a row]
    shift: ByteArray  # [bits of a row]
    first: IntArray  # where each used component begins in a row
    used: IntArray  # [components with bits]

    @property
    def row_bytes(self) -> int:
        """Bytes of one token."""
        return -(-len(self.component) // 8)


class Bottleneck:
    """The codec of one layer; raises `ModelFolderError` for tensors that do not fit together."""

    def __init__(self, tensors: BottleneckTensors) -> None:
        _check(tensors)
        self.tensors = tensors
        self._classes = [_make_class(tensors, number) for number in range(len(tensors.one_in))]
        self._weight = (tensors.up**2).sum(1)  # [K], what an error in a component does to the state

    def size(self, length_tokens: int) -> int:
        """Bytes of a state of so many tokens."""
        counts = class_counts(length_tokens, self.tensors.one_in)
        rows = sum(
            count * chosen.row_bytes for count, chosen in zip(counts, self._classes, strict=True)
        )
        return self._map_bytes(length_tokens) + rows

    def encode(self, state: FloatArray) -> bytes:
        """The bytes of a finite state `[T, H]`."""
        centred: FloatArray = state - self.tensors.mean
        components: FloatArray = centred @ self.tensors.down  # [T, K]
        classes = self.assign(components)  # [T]
        parts = [self._pack_map(classes)]
        for number, chosen in enumerate(self._classes):
            codes = _quantise(components[classes == number], chosen)  # [tokens of the class, K]
            bits = (codes[:, chosen.component] >> chosen.shift) & 1
            parts.append(np.packbits(bits, axis=1, bitorder="little").tobytes())
        return b"".join(parts)

    def decode(self, payload: bytes, length_tokens: int) -> FloatArray:
        """The state `[T, H]` of a payload of the right size.

        Raises `StateShapeError` when its classes do not have the counts that they must.
        """
        begin = self._map_bytes(length_tokens)
        classes = self._unpack_map(payload[:begin], length_tokens)
        counts = class_counts(length_tokens, self.tensors.one_in)
        if np.bincount(classes, minlength=len(counts)).tolist() != list(counts):
            raise StateShapeError("codec bottleneck: the classes of the tokens are not as agreed")
        components = np.empty((length_tokens, self.tensors.down.shape[1]), np.float32)
        for number, chosen in enumerate(self._classes):
            size = counts[number] * chosen.row_bytes
            rows = np.frombuffer(payload, np.uint8, size, begin)
            rows = rows.reshape(counts[number], chosen.row_bytes)
            components[classes == number] = _restore(rows, chosen)
            begin += size
        state: FloatArray = components @ self.tensors.up + self.tensors.mean
        return state

    def assign(self, components: FloatArray) -> IntArray:
        """The class of each token of a window, from its components `[T, K]`."""
        tokens = len(components)
        classes = np.zeros(tokens, np.int64)
        if len(self._classes) == 1:
            return classes
        plain = self._classes[0]
        values = _quantise(components, plain) * plain.steps + plain.offsets
        spoiled = (components - values) ** 2 @ self._weight  # [T]
        order = np.argsort(-spoiled, kind="stable")
        begin = 0
        counts = class_counts(tokens, self.tensors.one_in)
        for number in range(len(counts) - 1, 0, -1):
            classes[order[begin : begin + counts[number]]] = number
            begin += counts[number]
        return classes

    def _map_bytes(self, length_tokens: int) -> int:
        return -(-length_tokens * CLASS_BITS[len(self._classes) - 1] // 8)

    def _pack_map(self, classes: IntArray) -> bytes:
        shift = np.arange(CLASS_BITS[len(self._classes) - 1])
        bits = ((classes[:, None] >> shift) & 1).astype(np.uint8)
        packed: bytes = np.packbits(bits, bitorder="little").tobytes()
        return packed

    def _unpack_map(self, payload: bytes, length_tokens: int) -> IntArray:
        width = CLASS_BITS[len(self._classes) - 1]
        bits = np.unpackbits(
            np.frombuffer(payload, np.uint8), count=length_tokens * width, bitorder="little"
        ).reshape(length_tokens, width)
        classes: IntArray = (bits.astype(np.int64) << np.arange(width)).sum(1)
        return classes


def class_counts(length_tokens: int, one_in: Sequence[int]) -> tuple[int, ...]:
    """How many of T tokens belong to each class; the plainest takes what the others leave."""
    counts = [0] * len(one_in)
    left = length_tokens
    for number in range(len(one_in) - 1, 0, -1):
        counts[number] = min(left, -(-length_tokens // one_in[number]))
        left -= counts[number]
    counts[0] = left
    return tuple(counts)


def load_bottlenecks(folder: Path, hidden_size: int) -> dict[int, Bottleneck]:
    """The codecs of a model folder, by layer; none where it has no such file.

    Raises `ModelFolderError` for a file that does not fit.
    """
    path = folder / BOTTLENECK_FILE
    if not path.is_file():
        return {}
    file = TensorFile(path)
    layers = sorted({name.split(".")[1] for name in file if name.startswith("layers.")})
    found = {}
    for layer in layers:
        try:
            found[int(layer)] = Bottleneck(_read_layer(file, layer))
        except (KeyError, ValueError, ModelFolderError) as error:
            raise ModelFolderError(f"{path}, layer {layer[:8]}: {error}") from error
        if found[int(layer)].tensors.mean.shape != (hidden_size,):
            raise ModelFolderError(f"{path}, layer {layer}: not made for {hidden_size} wide states")
    return found


def stored_tensors(bottlenecks: Mapping[int, Bottleneck]) -> dict[str, NDArray[Any]]:
    """What `BOTTLENECK_FILE` holds, layer (1-based) by layer; the matrices are rounded to float16,
    as `load_bottlenecks` reads them."""
    stored: dict[str, NDArray[Any]] = {}
    for layer, bottleneck in bottlenecks.items():
        tensors = bottleneck.tensors
        for name in ("mean", "steps", "offsets"):
            stored[f"layers.{layer}.{name}"] = getattr(tensors, name).astype(np.float32)
        for name in ("down", "up"):
            stored[f"layers.{layer}.{name}"] = getattr(tensors, name).astype(np.float16)
        stored[f"layers.{layer}.bits"] = tensors.bits.astype(np.uint8)
        stored[f"layers.{layer}.one_in"] = np.array(tensors.one_in, np.int32)
    # safetensors writes an array's memory as it lies, whatever its strides say.
    return {name: np.ascontiguousarray(value) for name, value in stored.items()}


def _read_layer(file: TensorFile, layer: str) -> BottleneckTensors:
    def read(name: str) -> FloatArray:
        return file[f"layers.{layer}.{name}"].astype(np.float32)

    return BottleneckTensors(
        mean=read("mean"),
        down=read("down"),
        up=read("up"),
        bits=file[f"layers.{layer}.bits"].astype(np.int64),
        steps=read("steps"),
        offsets=read("offsets"),
        one_in=tuple(int(number) for number in file[f"layers.{layer}.one_in"]),
    )


def _check(tensors: BottleneckTensors) -> None:
    """Raise `ModelFolderError` unless the tensors of a layer fit together."""
    hidden, components = tensors.down.shape
    classes = (len(tensors.one_in), components)
    wanted = {
        "mean": (hidden,),
        "up": (components, hidden),
        "bits": classes,
        "steps": classes,
        "offsets": classes,
    }
    for name, shape in wanted.items():
        if getattr(tensors, name).shape != shape:
            raise ModelFolderError(f"bottleneck: {name} is not of shape {shape}")
    if not 1 <= len(tensors.one_in) <= MAX_CLASSES or min(tensors.one_in) < 1:
        raise ModelFolderError(f"bottleneck: one_in is {tensors.one_in}")
    if tensors.bits.min() < 0 or tensors.bits.max() > MAX_BITS or not tensors.bits.any(1).all():
        raise ModelFolderError(f"bottleneck: bits beyond 0..{MAX_BITS}, or a class without")
    finite = all(
        np.isfinite(getattr(tensors, name)).all()
        for name in ("mean", "down", "up", "steps", "offsets")
    )
    if not finite or tensors.steps.min() <= 0:
        raise ModelFolderError("bottleneck: a value is not finite, or a step not above 0")


def _make_class(tensors: BottleneckTensors, number: int) -> _Class:
    bits = tensors.bits[number]
    levels = np.where(bits > 0, 2.0**bits, 1.0)
    used = np.flatnonzero(bits)
    # The middle of the lowest step; a component without bits has one step, at its offset.
    lowest = tensors.offsets[number] - tensors.steps[number] * (levels - 1) / 2
    return _Class(
        steps=tensors.steps[number],
        offsets=lowest.astype(np.float32),
        highest=(levels - 1).astype(np.float32),
        component=np.repeat(np.arange(len(bits)), bits),
        shift=np.concatenate([np.arange(count) for count in bits]).astype(np.uint8),
        first=(np.cumsum(bits) - bits)[used],
        used=used,
    )


def _quantise(components: FloatArray, chosen: _Class) -> ByteArray:
    """Codes `[n, K]` of components `[n, K]`: the nearest step, clipped to those there are."""
    codes = np.rint((components - chosen.offsets) / chosen.steps)
    clipped: ByteArray = np.clip(codes, 0, chosen.highest).astype(np.uint8)
    return clipped


def _restore(rows: ByteArray, chosen: _Class) -> FloatArray:
    """Components `[n, K]` of packed rows `[n, row_bytes]`."""
    bits = np.unpackbits(rows, axis=1, count=len(chosen.component), bitorder="little")
    codes = np.zeros((len(rows), len(chosen.steps)), np.float32)
    codes[:, chosen.used] = np.add.reduceat(bits << chosen.shift, chosen.first, axis=1)
    return codes * chosen.steps + chosen.offsets
