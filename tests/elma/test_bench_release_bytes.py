"""The bytes of an update are those that an edge would fetch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from elma.bench import release_bytes
from elma.bench.release_bytes import HEADS, THRESHOLDS, markdown_of, run
from reader.tensor_file import TensorFile, write_tensor_file
from tests.tiny import make_tiny_model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = make_tiny_model(tmp_path / "base")
    heads = dict(TensorFile(folder / "exits.safetensors"))
    filling = np.random.default_rng(0).normal(0, 1, (40, 200)).astype(np.float32)
    write_tensor_file(folder / "exits.safetensors", heads | {"filling": filling})
    return folder


@pytest.fixture
def trained(base: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "trained"
    shutil.copytree(base, folder)
    for path in folder.glob("*.safetensors"):
        moved = {name: value + np.float32(1e-6) for name, value in TensorFile(path).items()}
        write_tensor_file(path, moved)
    return folder


def test_updates_cost_what_changed(
    base: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_bytes, "canaries_of", lambda *_: b'{"canaries": []}')
    result = json.loads(json.dumps(run(base, {"fine-tuned": trained}, 1)))
    rows = {row["update"]: row for row in result["rows"]}
    assert rows[THRESHOLDS]["edge_messages"] == 2
    assert rows[THRESHOLDS]["edge_bytes"] < rows[HEADS]["edge_bytes"]
    assert rows[HEADS]["edge_bytes"] < rows["fine-tuned"]["edge_bytes"]
    assert rows["fine-tuned"]["edge_bytes"] < rows["fine-tuned"]["fresh_bytes"]
    assert all(row["best"] <= row["zstd"] for row in result["kinds"]["fine-tuned"] if "zstd" in row)
    text = markdown_of(result)
    assert "Aim for thresholds alone: under 8,192 bytes; met." in text
    assert f"{rows['fine-tuned']['edge_bytes']:,}" in text
