"""Model folders: every format loads, pruned ones too, without torch; damage is named."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from reader.config import ReaderConfig
from reader.errors import ModelFolderError
from reader.model_writer import write_model
from reader.network_files import load_network, save_network
from reader.storage import FLOAT16, PACKED, STORAGE_FORMATS
from reader.weights import PACKED_FILE, WEIGHTS_FILE, ModelTensors, folder_digest
from tests.tiny import make_tiny_model

LIMITS = {"float32": 0, "float16": 1e-3, "bfloat16": 5e-3, "int8": 0.02, "int4": 0.12}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "plain", layers=4, groups=2, hidden_size=64)


@pytest.fixture
def pruned(plain: Path, tmp_path: Path) -> Path:
    """A folder whose first group has heads 1 and 3 and 32 inner units, its second none."""
    return prune(plain, tmp_path / "pruned", "float32")


@pytest.mark.parametrize("storage", sorted(STORAGE_FORMATS))
def test_every_format_loads_close_to_what_was_saved(
    storage: str, plain: Path, tmp_path: Path
) -> None:
    network = load_network(plain)
    save_network(network, tmp_path / "out", tokenizer_from=plain, storage=STORAGE_FORMATS[storage])
    again = load_network(tmp_path / "out").state_dict()
    for name, value in network.state_dict().items():
        limit = LIMITS.get(storage, LIMITS["int8"])
        if name == "embeddings.word.weight" and limit:
            limit = LIMITS["int4"]
        error = float((again[name] - value).norm() / value.norm().clamp_min(1e-6))
        assert error <= limit, f"{name}: {error}"


def test_a_packed_folder_holds_no_plain_file_and_is_a_third_in_size(
    plain: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    save_network(load_network(plain), out, tokenizer_from=plain, storage=FLOAT16)
    save_network(load_network(plain), out, tokenizer_from=plain, storage=PACKED)
    assert not (out / WEIGHTS_FILE).exists()
    assert (out / PACKED_FILE).stat().st_size < 0.35 * (plain / WEIGHTS_FILE).stat().st_size


def test_a_bfloat16_file_of_another_program_loads(plain: Path) -> None:
    theirs = load_file(plain / WEIGHTS_FILE)
    halved = {name: value.to(torch.bfloat16) for name, value in theirs.items()}
    save_file(halved, plain / WEIGHTS_FILE, metadata={"format": "pt"})
    name = "albert.embeddings.word_embeddings.weight"
    read = ModelTensors.open(plain).read("embeddings.word.weight")
    np.testing.assert_array_equal(read, halved[name].float().numpy())


@pytest.mark.parametrize("storage", ["float32", "int8", "int4"])
def test_a_pruned_network_comes_back_as_small_as_it_was(
    storage: str, plain: Path, tmp_path: Path
) -> None:
    folder = prune(plain, tmp_path / "pruned", storage)
    network = load_network(folder)
    assert network.config.kept_heads == ((1, 3), ())
    assert network.groups[0].query_key_value.weight.shape == (3 * 2 * 16, 64)
    assert network.groups[1].query_key_value.weight.shape == (0, 64)
    assert network.groups[0].down.weight.shape == (64, 32)
    whole = ModelTensors.open(plain)
    kept = [row for head in (1, 3) for row in range(16 * head, 16 * head + 16)]
    expected = whole.read("groups.0.attention_output.weight")[:, kept]
    got = network.groups[0].attention_output.weight.detach().numpy()
    np.testing.assert_allclose(got, expected, atol=LIMITS[storage] + 1e-7)


def test_the_plain_file_of_a_pruned_network_is_full_size_with_zeros(pruned: Path) -> None:
    theirs = load_file(pruned / WEIGHTS_FILE)
    prefix = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    query = theirs[f"{prefix}.attention.query.weight"]
    assert query.shape == (64, 64)
    assert not query[:16].any()
    assert query[16:32].any()
    assert theirs[f"{prefix}.ffn.weight"].shape == (128, 64)
    assert not theirs[f"{prefix}.ffn_output.weight"][:, 32:].any()


def test_packed_codes_are_handed_out_as_they_lie(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save_network(load_network(plain), out, tokenizer_from=plain, storage=PACKED)
    tensors = ModelTensors.open(out)
    for name in ("embeddings.word.weight", "groups.1.query_key_value.weight"):
        stored = tensors.stored(name)
        assert stored is not None
        np.testing.assert_array_equal(stored.decode(), tensors.read(name))
    assert tensors.stored("groups.1.up.bias") is None
    assert tensors.stored("exits.0.span.weight") is None
    assert ModelTensors.open(plain).stored("embeddings.word.weight") is None


def test_a_missing_tensor_is_named(plain: Path) -> None:
    theirs = load_file(plain / WEIGHTS_FILE)
    theirs.pop("albert.encoder.albert_layer_groups.1.albert_layers.0.ffn.bias")
    save_file(theirs, plain / WEIGHTS_FILE)
    with pytest.raises(ModelFolderError, match=r"groups\.1\.up\.bias"):
        ModelTensors.open(plain)


def test_a_tensor_of_another_shape_is_named(plain: Path) -> None:
    theirs = load_file(plain / WEIGHTS_FILE)
    theirs["albert.embeddings.LayerNorm.weight"] = torch.ones(7)
    save_file(theirs, plain / WEIGHTS_FILE)
    with pytest.raises(ModelFolderError, match=r"embeddings\.norm\.weight has shape \(7,\)"):
        load_network(plain)


def test_a_cut_file_is_refused(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save_network(load_network(plain), out, tokenizer_from=plain, storage=PACKED)
    whole = (out / PACKED_FILE).read_bytes()
    for kept in (0, 4, 100, len(whole) - 1):
        (out / PACKED_FILE).write_bytes(whole[:kept])
        with pytest.raises(ModelFolderError, match="copy it again"):
            ModelTensors.open(out)


def test_the_digest_changes_with_the_weights(plain: Path, tmp_path: Path) -> None:
    before = folder_digest(plain)
    assert folder_digest(plain) == before
    network = load_network(plain)
    with torch.no_grad():
        network.groups[0].up.bias[0] += 1
    save_network(network, plain, tokenizer_from=plain)
    assert folder_digest(plain) != before


def test_reading_weights_needs_no_torch(plain: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from reader.weights import ModelTensors\n"
        f"t = ModelTensors.open(Path({str(plain)!r}))\n"
        "[t.read(name) for name in t.shapes]\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def prune(plain: Path, out: Path, storage: str) -> Path:
    whole = ModelTensors.open(plain)
    config: ReaderConfig = replace(whole.config, kept_heads=((1, 3), ()), inner_sizes=(32, 0))
    tensors = {name: whole.read(name) for name in whole.shapes}
    for group, heads, units in ((0, (1, 3), 32), (1, (), 0)):
        rows = [row for head in heads for row in range(16 * head, 16 * head + 16)]
        fused = [64 * part + row for part in range(3) for row in rows]
        prefix = f"groups.{group}"
        for part in ("weight", "bias"):
            name = f"{prefix}.query_key_value.{part}"
            tensors[name] = tensors[name][np.array(fused, dtype=int)]
            tensors[f"{prefix}.up.{part}"] = tensors[f"{prefix}.up.{part}"][:units]
        name = f"{prefix}.attention_output.weight"
        tensors[name] = tensors[name][:, np.array(rows, dtype=int)]
        tensors[f"{prefix}.down.weight"] = tensors[f"{prefix}.down.weight"][:, :units]
    write_model(out, config, tensors, tokenizer_from=plain, storage=STORAGE_FORMATS[storage])
    return out
