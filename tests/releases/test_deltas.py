"""Parts come back bit for bit; wrong, damaged or hostile bytes are an error and cost little."""

from __future__ import annotations

import hashlib
import random
import tracemalloc

import numpy as np
import pytest
import zstandard

from releases import deltas
from releases.deltas import (
    MAX_APPLIED_BYTES,
    METHODS,
    WHOLE,
    Content,
    apply,
    encode_difference,
    encode_whole,
)
from releases.errors import ContentError
from releases.parts import Layout

ROWS, COLUMNS = 96, 64
CODES = Layout(1, COLUMNS)


def content(array: np.ndarray, layout: Layout = CODES) -> Content:
    data = array.tobytes()
    return Content(hashlib.sha256(data).hexdigest(), data, layout)


def codes(seed: int = 0, rows: int = ROWS) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(0, 30, (rows, COLUMNS))
    return np.clip(np.rint(drawn), -127, 127).astype(np.int8)


def trained(before: np.ndarray, seed: int = 1) -> np.ndarray:
    """Codes after some training: most as they were, some a step away, few further."""
    steps = np.rint(np.random.default_rng(seed).normal(0, 0.45, before.shape))
    return np.clip(before + steps, -128, 127).astype(np.int8)


def floats(kind: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, 4000).astype(kind)


def pairs() -> dict[str, tuple[Content, Content]]:
    """A new part and its base for each method that should win there."""
    text = b'{"name": "a tensor", "offsets": [%d, %d]}'
    names = b"".join(text % (number, 7 * number) for number in range(900))
    before = codes()
    columns = np.ascontiguousarray(trained(before[:, 5:40]))
    halves, singles = floats("float16"), floats("float32")
    return {
        "patch": (
            content(np.frombuffer(b"new " + names, np.uint8), Layout()),
            content(np.frombuffer(names, np.uint8), Layout()),
        ),
        "ordered": (content(trained(before)), content(before)),
        "gathered": (content(trained(before[10:60])), content(before)),
        "gathered columns": (content(columns, Layout(1, columns.shape[1])), content(before)),
        "words16": (
            content((halves * np.float16(1.01)).astype(np.float16), Layout(2)),
            content(halves, Layout(2)),
        ),
        "words32": (
            content((singles * np.float32(1.001)).astype(np.float32), Layout(4)),
            content(singles, Layout(4)),
        ),
    }


def test_every_method_has_a_case_below() -> None:
    assert {name.split()[0] for name in pairs()} | {WHOLE} == set(METHODS)


@pytest.mark.parametrize("name", list(pairs()))
def test_a_method_wins_where_it_should_and_gives_back_the_same_bits(name: str) -> None:
    new, base = pairs()[name]
    encoded = encode_difference(new, base)
    assert encoded.method == name.split()[0]
    assert encoded.base == base.sha256
    assert len(encoded.data) < 0.9 * len(encode_whole(new.content).data)
    assert apply(encoded.method, base.content, encoded.data, len(new.content)) == new.content


def test_a_whole_part_comes_back() -> None:
    part = codes().tobytes()
    assert apply(WHOLE, None, encode_whole(part).data, len(part)) == part


def test_codes_that_were_only_pruned_cost_next_to_nothing() -> None:
    before = codes()
    after = np.where(np.abs(before) < 20, 0, before).astype(np.int8)
    encoded = encode_difference(content(after), content(before))
    assert encoded.method == "ordered"
    assert len(encoded.data) < 0.1 * len(encode_whole(after.tobytes()).data)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 255])
@pytest.mark.parametrize("method", ["ordered", "words16", "words32", "patch"])
def test_extreme_bytes_and_short_parts_come_back(method: str, length: int) -> None:
    layout = Layout({"words16": 2, "words32": 4}.get(method, 1))
    for new, base in (
        (b"\x80" * length, b"\x00" * length),
        (b"\x00" * length, b"\xff" * length),
        (bytes(range(length)), bytes(reversed(range(length)))),
        (b"\x05" * length, b"\x05" * length),
    ):
        data = deltas._ENCODERS[method](new, base, layout, layout)
        if data is None:
            assert length % layout.item_bytes
            continue
        assert apply(method, base, data, length) == new


@pytest.mark.parametrize("name", list(pairs()))
def test_damaged_bytes_never_give_anything_but_a_content_error(name: str) -> None:
    new, base = pairs()[name]
    encoded = encode_difference(new, base)
    draw = random.Random(name)
    for _ in range(150):
        data = bytearray(encoded.data)
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(min(len(data), 200))] = draw.randrange(256)
        try:
            made = apply(encoded.method, base.content, bytes(data), len(new.content))
        except ContentError:
            continue
        assert len(made) == len(new.content)


@pytest.mark.parametrize("name", [*pairs(), WHOLE])
def test_truncated_or_extended_bytes_are_refused(name: str) -> None:
    new, base = pairs().get(name, pairs()["ordered"])
    encoded = encode_whole(new.content) if name == WHOLE else encode_difference(new, base)
    data = encoded.data
    for wrong in (b"", data[:1], data[:10], data[: len(data) // 2], data[:-1], data + b"\0"):
        with pytest.raises(ContentError):
            apply(encoded.method, base.content, wrong, len(new.content))


@pytest.mark.parametrize("name", [*pairs(), WHOLE])
@pytest.mark.parametrize("shift", [-1, 1, 1_000_000, MAX_APPLIED_BYTES])
def test_a_lying_length_is_refused(name: str, shift: int) -> None:
    new, base = pairs().get(name, pairs()["ordered"])
    encoded = encode_whole(new.content) if name == WHOLE else encode_difference(new, base)
    with pytest.raises(ContentError):
        apply(encoded.method, base.content, encoded.data, len(new.content) + shift)


@pytest.mark.parametrize("name", list(pairs()))
def test_a_missing_or_shorter_base_is_refused(name: str) -> None:
    new, base = pairs()[name]
    encoded = encode_difference(new, base)
    for wrong in (None, b"", base.content[:-1]):
        if wrong and name == "patch":  # it may not have copied from the end
            continue
        with pytest.raises(ContentError):
            apply(encoded.method, wrong, encoded.data, len(new.content))


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ContentError, match="unknown"):
        apply("sorcery", b"base", b"data", 4)


@pytest.mark.parametrize("rows", [(ROWS, 0), (-1, 1), (2**31 - 1, 0)])
def test_a_row_that_the_base_has_not_is_refused(rows: tuple[int, int]) -> None:
    before = codes()
    new = before[:2].tobytes()
    good = deltas._encode_gathered(new, before.tobytes(), CODES, CODES)
    assert good is not None
    listed = np.diff(rows, prepend=0).astype("<i4").view(np.uint8).reshape(-1, 4).T.tobytes()
    head = deltas._GATHER.pack(0, COLUMNS, 2)
    wrong = head + deltas.Streams.write([listed]) + deltas._order_differences(new, new)
    with pytest.raises(ContentError, match="row"):
        apply("gathered", before.tobytes(), wrong, len(new))


MEBIBYTE = 1024 * 1024


def bomb(real_bytes: int, declared_bytes: int | None) -> bytes:
    """A small frame of `real_bytes` zeros that declares another length, or none."""
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=declared_bytes is not None)
    stream = compressor.compressobj(size=-1 if declared_bytes is None else real_bytes)
    pieces = [stream.compress(bytes(MEBIBYTE)) for _ in range(real_bytes // MEBIBYTE)]
    frame = b"".join(pieces) + stream.flush()
    if declared_bytes is None:
        return frame
    was, now = (length.to_bytes(4, "little") for length in (real_bytes, declared_bytes))
    return frame.replace(was, now, 1)


@pytest.mark.parametrize("declared_bytes", [None, 256 * MEBIBYTE, 70_000])
def test_a_small_frame_that_would_become_a_large_file_takes_no_memory(
    declared_bytes: int | None,
) -> None:
    frame = bomb(256 * MEBIBYTE, declared_bytes)
    assert len(frame) < 100_000
    tracemalloc.start()
    try:
        for method in METHODS:
            for data in (frame, len(frame).to_bytes(4, "big") + frame):
                with pytest.raises(ContentError):
                    apply(method, bytes(70_000), data, 70_000)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * MEBIBYTE


def test_a_part_above_the_limit_is_refused_whatever_it_declares() -> None:
    length = MAX_APPLIED_BYTES + 1
    with pytest.raises(ContentError, match="at most"):
        apply(WHOLE, None, encode_whole(bytes(length)).data, length)
