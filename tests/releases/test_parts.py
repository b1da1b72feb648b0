"""Files are cut into parts that cover them, the same way for the same content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from reader.tensor_file import write_tensor_file
from reader.weights import shipped_model_folder
from releases.errors import ContentError
from releases.parts import MAX_PART_BYTES, SMALL_TENSOR_BYTES, Layout, split_file


def numbers(seed: int, *shape: int, kind: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 100, shape).astype(kind)


@pytest.mark.parametrize("name", ["packed.safetensors", "exits.safetensors", "tokenizer.json"])
def test_parts_cover_a_shipped_file_from_end_to_end(name: str) -> None:
    path = shipped_model_folder() / name
    content, end = path.read_bytes(), 0
    spans = split_file(path)
    for span in spans:
        piece = content[span.offset : span.offset + span.length_bytes]
        assert span.offset == end
        assert hashlib.sha256(piece).hexdigest() == span.sha256
        end += len(piece)
    assert end == len(content)
    assert max(span.length_bytes for span in spans) <= MAX_PART_BYTES
    assert len({span.name for span in spans}) == len(spans)


def test_a_shipped_model_has_few_enough_parts_for_a_small_index() -> None:
    assert len(split_file(shipped_model_folder() / "packed.safetensors")) < 100


def test_a_changed_tensor_changes_its_own_part_alone(tmp_path: Path) -> None:
    before = {f"layers.{n}.weight": numbers(n, 64, 128) for n in range(4)}
    after = before | {"layers.2.weight": numbers(9, 64, 128)}
    write_tensor_file(tmp_path / "a.safetensors", before)
    write_tensor_file(tmp_path / "b.safetensors", after)
    changed = [
        b.name
        for a, b in zip(
            split_file(tmp_path / "a.safetensors"),
            split_file(tmp_path / "b.safetensors"),
            strict=True,
        )
        if a.sha256 != b.sha256
    ]
    assert changed == ["layers.2.weight"]


def test_small_tensors_of_a_layer_are_one_part_and_those_of_another_layer_another(
    tmp_path: Path,
) -> None:
    path = tmp_path / "small.safetensors"
    write_tensor_file(
        path,
        {f"exits.{n}.{part}": numbers(n, 8) for n in range(3) for part in ("bias", "weight")}
        | {"exits.1.half": numbers(1, 4, kind="float16")},
    )
    names = [span.name for span in split_file(path)]
    assert names == ["header", "exits.0", "exits.1", "exits.2", "exits.1#2"]


def test_a_matrix_knows_its_rows_and_a_large_one_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    rows = MAX_PART_BYTES // 1024 + 1
    write_tensor_file(
        path,
        {"a.codes": numbers(0, rows, 1024, kind="int8"), "b": numbers(1, 150, 128, kind="float16")},
    )
    spans = split_file(path)[1:]
    assert [(span.name, span.length_bytes) for span in spans] == [
        ("b", 38_400),
        ("a.codes", MAX_PART_BYTES),
        ("a.codes#2", 1024),
    ]
    assert spans[0].layout == Layout(item_bytes=2, row_bytes=256)
    assert spans[1].layout == Layout(item_bytes=1)
    assert spans[0].length_bytes > SMALL_TENSOR_BYTES


def test_a_file_without_tensors_is_one_part_and_an_empty_one_none(tmp_path: Path) -> None:
    (tmp_path / "exits.json").write_bytes(b"{}")
    (tmp_path / "empty.json").write_bytes(b"")
    (span,) = split_file(tmp_path / "exits.json")
    assert (span.offset, span.length_bytes) == (0, 2)
    assert split_file(tmp_path / "empty.json") == []


def header(entries: object, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


FLOAT = {"dtype": "F32", "shape": [1]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 7,
        (2**62).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"\xff\xfe",
        header({"a": 3}),
        header({"a": FLOAT}),
        header({"a": {**FLOAT, "data_offsets": [0, 2, 4]}}, bytes(4)),
        header({"a": {**FLOAT, "data_offsets": [0.0, 4.0]}}, bytes(4)),
        header({"a": {**FLOAT, "data_offsets": [0, "4"]}}, bytes(4)),
        header({"a": {**FLOAT, "data_offsets": [0, 8]}}, bytes(4)),
        header({"a": {**FLOAT, "data_offsets": [4, 8]}}, bytes(8)),
        header({"a": {**FLOAT, "data_offsets": [4, 0]}}, bytes(4)),
        header({"a": {**FLOAT, "data_offsets": [0, 4]}}, bytes(5)),
        header({"a": {"dtype": "I8", "shape": [2, "x"], "data_offsets": [0, 4]}}, bytes(4)),
        header({"a": {"dtype": [], "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
        header({n: {**FLOAT, "data_offsets": [0, 4]} for n in "ab"}, bytes(4)),
    ],
    ids=range(18),
)
def test_what_is_called_safetensors_and_is_none_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ContentError):
        split_file(path)


def test_a_missing_file_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ContentError, match="cannot be read"):
        split_file(tmp_path / "nothing.json")
