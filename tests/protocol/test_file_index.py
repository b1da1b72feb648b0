"""The index of a large file: round trips, bounds, and no part that a newcomer could not have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.blobs import CHUNK_BYTES, MAX_BLOB_BYTES
from protocol.errors import MalformedMessage, OversizedMessage, ProtocolError
from protocol.file_index import (
    MAX_BLOBS,
    MAX_INDEX_BYTES,
    MAX_METHODS,
    MAX_PARTS,
    MAX_SOURCES,
    FileIndex,
    FilePart,
    PartSource,
    decode_index,
    encode_index,
)
from protocol.wire import Kind, decode_frame, encode_frame
from tests.protocol.release_samples import blob, index, sha

METHODS = ["whole", "zstd", "difference", "sparse-2"]


@st.composite
def indexes(draw: st.DrawFn) -> FileIndex:
    """Any index in which every part can be had whole."""
    lengths = draw(st.lists(st.integers(1, MAX_BLOB_BYTES), min_size=1, max_size=6))
    parts = tuple(FilePart(sha(f"part {number % 4}"), n) for number, n in enumerate(lengths))
    sizes = draw(st.lists(st.integers(1, 5 * CHUNK_BYTES), min_size=1, max_size=3))
    blobs = tuple(blob(f"blob {number}", size) for number, size in enumerate(sizes))
    bases = [None] * len(parts) + draw(
        st.lists(st.sampled_from([sha("x"), sha("y"), None]), max_size=5)
    )
    sources = []
    for number, base in enumerate(bases):
        part = number if number < len(parts) else draw(st.integers(0, len(parts) - 1))
        which = draw(st.integers(0, len(blobs) - 1))
        offset = draw(st.integers(0, blobs[which].length_bytes - 1))
        length = draw(st.integers(1, blobs[which].length_bytes - offset))
        method = draw(st.sampled_from(METHODS))
        sources.append(PartSource(part, method, base, which, offset, length))
    return FileIndex(parts, blobs, tuple(draw(st.permutations(sources))))


@given(indexes())
def test_every_index_survives_its_bytes(one: FileIndex) -> None:
    assert decode_index(encode_index(one)) == one


def test_the_shipped_models_index_is_small() -> None:
    """Some 400 parts, each with a whole and a difference: 40 KB beside 34 MB."""
    parts = tuple(FilePart(sha(f"part {number}"), 80_000) for number in range(400))
    pack = blob("pack", 400 * 80_000)
    whole = [PartSource(n, "zstd", None, 0, n * 80_000, 80_000) for n in range(400)]
    differences = [PartSource(n, "difference", sha(f"old {n}"), 0, 0, 9) for n in range(400)]
    made = FileIndex(parts, (pack,), (*whole, *differences))
    assert made.length_bytes == 32_000_000
    assert len(encode_index(made)) < 50_000


@pytest.mark.parametrize("column", ["parts", "blobs", "sources"])
def test_an_empty_index_is_refused(column: str) -> None:
    with pytest.raises(MalformedMessage):
        replace(index(), **{column: ()})


def test_a_part_that_a_newcomer_could_not_have_is_refused() -> None:
    """Whoever has no base must be able to have the file, so a difference alone is not enough."""
    good = index()
    without = tuple(one for one in good.sources if (one.part, one.base) != (1, None))
    with pytest.raises(MalformedMessage, match="1 parts have no source without a base"):
        replace(good, sources=without)


def test_parts_of_the_same_content_need_one_source() -> None:
    good = index()
    twice = replace(good, parts=(*good.parts, good.parts[0]))
    assert decode_index(encode_index(twice)).length_bytes == good.length_bytes + 5_000


@pytest.mark.parametrize(
    "changes",
    [
        {"part": 3},
        {"part": -1},
        {"part": MAX_PARTS},
        {"blob": 2},
        {"blob": -1},
        {"blob": MAX_BLOBS},
        {"offset": -1},
        {"offset": 2 * CHUNK_BYTES + 9},
        {"length_bytes": 0},
        {"length_bytes": 2 * CHUNK_BYTES + 10},
        {"base": "ab"},
        {"base": b"bytes"},
        {"method": "Whole"},
        {"method": "../whole"},
        {"method": ""},
        {"method": None},
    ],
)
def test_a_source_that_points_nowhere_is_refused(changes: dict[str, Any]) -> None:
    good = index()
    with pytest.raises(MalformedMessage):
        replace(good, sources=(*good.sources, replace(good.sources[0], **changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": 0},
        {"parts": -1},
        {"parts": 2},
        {"parts": 4},
        {"parts": MAX_PARTS + 1},
        {"parts": None},
        {"parts": "3"},
        {"parts": True},
        {"blobs": 0},
        {"blobs": MAX_BLOBS + 1},
        {"bases": -1},
        {"bases": 0},
        {"bases": MAX_SOURCES + 1},
        {"sources": 3},
        {"sources": 5},
        {"sources": MAX_SOURCES},
        {"methods": ["whole"]},
        {"methods": [7, 7, 7]},
        {"methods": {}},
        {"methods": ["whole"] * (MAX_METHODS + 1)},
    ],
)
def test_counts_that_do_not_fit_the_columns_are_refused(changes: dict[str, Any]) -> None:
    frame = decode_frame(encode_index(index()), {Kind.FILE_INDEX})
    with pytest.raises(MalformedMessage):
        decode_index(encode_frame(Kind.FILE_INDEX, {**frame.fields, **changes}, frame.attachment))


def test_bytes_after_the_last_column_are_refused() -> None:
    """Nothing can ride in an index that nobody reads."""
    frame = decode_frame(encode_index(index()), {Kind.FILE_INDEX})
    with pytest.raises(MalformedMessage, match="longer than its counts say"):
        decode_index(encode_frame(Kind.FILE_INDEX, frame.fields, frame.attachment + b"x"))


def test_a_blob_that_claims_a_length_must_bring_its_chunks_hashes() -> None:
    """A length of two gigabytes in the columns asks for 8,192 hashes, and they must be there."""
    frame = decode_frame(encode_index(index()), {Kind.FILE_INDEX})
    at = 3 * 36 + 32  # the first blob's length, after three parts and its sha256
    for length in (MAX_BLOB_BYTES, 2**32 - 1, 0):
        columns = bytearray(frame.attachment)
        columns[at : at + 4] = length.to_bytes(4, "big")
        with pytest.raises(MalformedMessage):
            decode_index(encode_frame(Kind.FILE_INDEX, frame.fields, bytes(columns)))


def test_an_index_of_a_later_program_is_understood() -> None:
    frame = decode_frame(encode_index(index()), {Kind.FILE_INDEX})
    later = encode_frame(Kind.FILE_INDEX, {**frame.fields, "new": [1]}, frame.attachment)
    assert decode_index(later) == index()


def test_an_index_too_large_to_be_read_is_not_made() -> None:
    good = index()
    sources = tuple(
        PartSource(0, "difference", sha(f"base {number}"), 0, 0, 1) for number in range(90_000)
    )
    with pytest.raises(OversizedMessage):
        encode_index(replace(good, sources=(*good.sources, *sources)))
    with pytest.raises(OversizedMessage):
        decode_index(bytes(MAX_INDEX_BYTES + 1))


@given(st.data())
def test_changed_bytes_raise_nothing_but_protocol_errors(data: st.DataObject) -> None:
    content = bytearray(encode_index(index()))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_index(bytes(content))
    except ProtocolError:
        return
    assert decode_index(encode_index(decoded)) == decoded
