"""Encodings: close, exact where they promise it, small on disk, and refused when damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reader.encodings import (
    best_int4_scales,
    decode_int4_groups,
    decode_int8_rows,
    encode_int4_groups,
    encode_int8_rows,
)
from reader.errors import ModelFolderError
from reader.storage import (
    BFLOAT16,
    FLOAT16,
    PACKED,
    PACKED_INT4,
    SPARSE,
    WORD_EMBEDDINGS,
    StorageFormat,
    StoredTensor,
    encode_mixed_rows,
    encode_tensor,
    find_stored,
)
from reader.tensor_file import TensorFile, write_tensor_file

CHANCE = np.random.default_rng(6)
MATRIX = CHANCE.standard_normal((50, 64)).astype(np.float32)
HALF_EMPTY = np.where(np.abs(MATRIX) > 0.7, MATRIX, 0).astype(np.float32)
FREQUENT = np.arange(50) % 3 == 0


def test_int8_rows_are_within_half_a_step() -> None:
    codes, scale = encode_int8_rows(MATRIX)
    assert codes.dtype == np.int8
    assert np.all(np.abs(decode_int8_rows(codes, scale) - MATRIX) <= 0.51 * scale.astype(float))


def test_int4_groups_are_within_half_a_step_and_half_a_byte_each() -> None:
    codes, scale = encode_int4_groups(MATRIX)
    assert codes.nbytes == MATRIX.size // 2
    error = np.abs(decode_int4_groups(codes, scale) - MATRIX).reshape(50, 2, 32)
    assert np.all(error <= 0.51 * scale.astype(float)[..., None])


def test_the_best_int4_scales_err_less_and_leave_a_grid_alone() -> None:
    plain = decode_int4_groups(*encode_int4_groups(MATRIX))
    best = decode_int4_groups(*encode_int4_groups(MATRIX, best_int4_scales(MATRIX)))
    assert np.square(best - MATRIX).mean() < 0.9 * np.square(plain - MATRIX).mean()
    again = decode_int4_groups(*encode_int4_groups(plain, best_int4_scales(plain)))
    np.testing.assert_array_equal(again, plain)


def test_zeros_stay_zeros() -> None:
    for encoding in ("int8", "int4", "sparse_int8", "sparse_float16"):
        assert not encode_tensor(np.zeros((3, 32), np.float32), encoding).decode().any(), encoding


def test_a_sparse_tensor_keeps_its_zeros_and_is_smaller_than_its_codes() -> None:
    half = encode_tensor(HALF_EMPTY, "sparse_float16")
    np.testing.assert_array_equal(half.decode(), HALF_EMPTY.astype(np.float16).astype(np.float32))
    packed = encode_tensor(HALF_EMPTY, "sparse_int8")
    np.testing.assert_array_equal(packed.decode(), encode_tensor(HALF_EMPTY, "int8").decode())
    assert packed.bits is not None
    assert packed.codes.nbytes + packed.bits.nbytes < 0.65 * HALF_EMPTY.size


def test_mixed_rows_are_int4_where_frequent_and_signs_elsewhere() -> None:
    mixed = encode_mixed_rows(MATRIX, FREQUENT)
    decoded = mixed.decode()
    np.testing.assert_array_equal(
        decoded[FREQUENT], encode_tensor(MATRIX[FREQUENT], "int4").decode()
    )
    rare = decoded[~FREQUENT]
    np.testing.assert_array_equal(np.sign(rare), np.sign(MATRIX[~FREQUENT]))
    np.testing.assert_allclose(np.abs(rare[:, 0]), np.abs(MATRIX[~FREQUENT]).mean(1), rtol=1e-3)


@pytest.mark.parametrize("encoding", ["float32", "float16", "bfloat16", "int8", "int4", "mixed"])
def test_rows_decode_alone_as_they_do_together(encoding: str) -> None:
    rows = np.array([49, 0, 3, 3, 17])
    np.testing.assert_array_equal(
        stored(encoding).decode_rows(rows), stored(encoding).decode()[rows]
    )


@pytest.mark.parametrize(
    "encoding",
    ["float32", "float16", "bfloat16", "int8", "int4", "sparse_int8", "sparse_float16", "mixed"],
)
def test_a_file_gives_back_what_was_written(encoding: str, tmp_path: Path) -> None:
    write_tensor_file(tmp_path / "x.safetensors", stored(encoding).arrays("name"))
    found = find_stored("name", TensorFile(tmp_path / "x.safetensors"))
    assert found is not None
    assert found.encoding == encoding
    assert found.shape == MATRIX.shape
    np.testing.assert_array_equal(found.decode(), stored(encoding).decode())


def test_bfloat16_keeps_eight_bits_and_rounds_to_even() -> None:
    values = np.array([1.0, -2.5, 1.00390625, 1.01171875, 3.14159274], np.float32)
    wanted = np.array([1.0, -2.5, 1.0, 1.015625, 3.140625], np.float32)
    np.testing.assert_array_equal(encode_tensor(values, "bfloat16").decode(), wanted)


@pytest.mark.parametrize(
    ("encoding", "part", "value"),
    [
        ("int8", "_scale", np.ones((49, 1), np.float16)),
        ("int8", "_scale", np.full((50, 1), np.nan, np.float16)),
        ("int8", "_scale", None),
        ("int4", "", np.zeros((50, 31), np.uint8)),
        ("int4", "", np.zeros((50, 32), np.int8)),
        ("int4", "_scale", np.ones((50, 3), np.float16)),
        ("sparse_int8", "_bits", np.zeros((50, 8), np.uint8)),
        ("sparse_int8", "_bits", None),
        ("sparse_float16", "", np.zeros(3, np.float16)),
        ("mixed", "_bits", np.full(7, 255, np.uint8)),
        ("mixed", "_rest", np.zeros((33, 7), np.uint8)),
        ("mixed", "_rest_scale", None),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    encoding: str, part: str, value: np.ndarray | None
) -> None:
    arrays = stored(encoding).arrays("name")
    arrays.pop(f"name.{encoding}{part}")
    if value is not None:
        arrays[f"name.{encoding}{part}"] = value
    with pytest.raises(ModelFolderError, match="tensor name"):
        find_stored("name", arrays)


def test_whole_numbers_are_no_weights() -> None:
    with pytest.raises(ModelFolderError, match="int64"):
        find_stored("name", {"name": np.zeros(3, np.int64)})


def test_a_format_gives_each_kind_of_tensor_an_encoding_that_can_hold_it() -> None:
    assert PACKED.encoding_of(WORD_EMBEDDINGS, (100, 64)) == "int4"
    assert PACKED.encoding_of("other", (64, 64)) == "int8"
    assert PACKED.encoding_of("other", (64,)) == "float16"
    assert PACKED_INT4.encoding_of("other", (64, 48)) == "int8"
    assert SPARSE.encoding_of("other", (64, 12)) == "int8"
    assert FLOAT16.plain
    assert BFLOAT16.plain
    assert not PACKED.plain
    with pytest.raises(ValueError, match="int5"):
        StorageFormat(matrices="int5")
    with pytest.raises(ValueError, match="vectors"):
        StorageFormat(vectors="int8")


def stored(encoding: str) -> StoredTensor:
    if encoding == "mixed":
        return encode_mixed_rows(MATRIX, FREQUENT)
    return encode_tensor(HALF_EMPTY, encoding)
