"""The packed form: small, close, and free for weights that already lie on its grid."""

from __future__ import annotations

from pathlib import Path

import torch

from reader.storage import (
    decode_int4_groups,
    decode_int8_rows,
    encode_int4_groups,
    encode_int8_rows,
)
from reader.weights import load_network, save_network
from tests.tiny import make_tiny_model

MATRIX = torch.randn(50, 64, generator=torch.Generator().manual_seed(6))


def test_int8_rows_are_within_half_a_step() -> None:
    codes, scale = encode_int8_rows(MATRIX)
    assert codes.dtype == torch.int8
    assert bool(((decode_int8_rows(codes, scale) - MATRIX).abs() <= 0.51 * scale.float()).all())


def test_int4_groups_are_within_half_a_step_and_half_a_byte_each() -> None:
    codes, scale = encode_int4_groups(MATRIX)
    assert codes.numel() == MATRIX.numel() // 2
    error = (decode_int4_groups(codes, scale) - MATRIX).abs().view(50, 2, 32)
    assert bool((error <= 0.51 * scale.float().unsqueeze(2)).all())


def test_packing_twice_changes_nothing_more() -> None:
    once = decode_int4_groups(*encode_int4_groups(MATRIX))
    torch.testing.assert_close(
        decode_int4_groups(*encode_int4_groups(once)), once, atol=2e-3, rtol=0
    )


def test_zeros_stay_zeros() -> None:
    assert not decode_int8_rows(*encode_int8_rows(torch.zeros(3, 8))).any()
    assert not decode_int4_groups(*encode_int4_groups(torch.zeros(3, 32))).any()


def test_a_packed_folder_loads_close_to_the_plain_one_and_is_smaller(tmp_path: Path) -> None:
    plain = make_tiny_model(tmp_path / "plain", layers=4, groups=4, hidden_size=64)
    network = load_network(plain)
    save_network(network, tmp_path / "packed", tokenizer_from=plain, packed=True)
    assert not (tmp_path / "packed" / "model.safetensors").exists()
    ratio = (tmp_path / "packed" / "packed.safetensors").stat().st_size / (
        plain / "model.safetensors"
    ).stat().st_size
    assert ratio < 0.35
    packed = load_network(tmp_path / "packed").state_dict()
    for name, value in network.state_dict().items():
        limit = 0.12 if name == "embeddings.word.weight" else 0.02
        error = float((packed[name] - value).norm() / value.norm().clamp_min(1e-6))
        assert error < limit, f"{name}: {error}"
