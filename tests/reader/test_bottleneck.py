"""The learned codec: sizes known before decoding, bounded values, classes as agreed."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from reader.bottleneck import (
    BOTTLENECK_FILE,
    Bottleneck,
    BottleneckTensors,
    class_counts,
    load_bottlenecks,
    stored_tensors,
)
from reader.codecs import CodecSet
from reader.errors import ModelFolderError, StateShapeError

HIDDEN = 24


def make_tensors(**changes: Any) -> BottleneckTensors:
    """Three classes of 8, 20 and 96 bits over an orthonormal basis."""
    random = np.random.default_rng(1)
    basis = np.linalg.qr(random.standard_normal((HIDDEN, HIDDEN)))[0].astype(np.float32)
    bits = np.zeros((3, HIDDEN), np.int64)
    bits[0, :4], bits[1, :10], bits[2] = 2, 2, 4
    spread = 8.0 / 2.0 ** np.maximum(bits, 1)
    tensors = BottleneckTensors(
        mean=random.standard_normal(HIDDEN).astype(np.float32),
        down=basis,
        up=basis.T.copy(),
        bits=bits,
        steps=spread.astype(np.float32),
        offsets=np.zeros((3, HIDDEN), np.float32),
        one_in=(1, 4, 16),
    )
    return dataclasses.replace(tensors, **changes)


CODEC = Bottleneck(make_tensors())
STATE = np.random.default_rng(2).standard_normal((40, HIDDEN)).astype(np.float32)


@pytest.mark.parametrize("tokens", [1, 2, 3, 16, 17, 40])
def test_the_size_is_what_was_promised_for_every_length(tokens: int) -> None:
    payload = CODEC.encode(STATE[:tokens])
    assert len(payload) == CODEC.size(tokens)
    assert CODEC.decode(payload, tokens).shape == (tokens, HIDDEN)


def test_the_size_follows_from_the_classes() -> None:
    # 40 tokens: 3 in the finest class, 10 in the middle, 27 plain; 2 bits of class each.
    assert class_counts(40, (1, 4, 16)) == (27, 10, 3)
    assert CODEC.size(40) == 10 + 27 * 1 + 10 * 3 + 3 * 12


@given(st.integers(1, 512), st.lists(st.integers(1, 40), max_size=3))
def test_classes_share_out_all_tokens(tokens: int, one_in: list[int]) -> None:
    counts = class_counts(tokens, (1, *one_in))
    assert sum(counts) == tokens
    assert min(counts) >= 0


def test_tokens_far_from_the_others_get_the_fine_class() -> None:
    state = np.tile(make_tensors().mean, (32, 1))
    state[[7, 20]] += 3 * make_tensors().down[:, -1]  # a component that only the fine class has
    back = CODEC.decode(CODEC.encode(state), 32)
    assert np.abs(back[[7, 20]] - state[[7, 20]]).max() < 0.5
    assert CODEC.assign((state - make_tensors().mean) @ make_tensors().down)[[7, 20]].tolist() == [
        2,
        2,
    ]


def test_one_class_needs_no_map_of_classes() -> None:
    tensors = make_tensors()
    plain = Bottleneck(
        dataclasses.replace(
            tensors,
            bits=tensors.bits[2:],
            steps=tensors.steps[2:],
            offsets=tensors.offsets[2:],
            one_in=(1,),
        )
    )
    assert plain.size(5) == 5 * 12
    back = plain.decode(plain.encode(STATE[:5]), 5)
    assert np.abs((back - STATE[:5]) @ tensors.down).max() <= 0.25 + 1e-5  # half of a step


def test_values_beyond_the_steps_are_clipped_not_wrapped() -> None:
    huge = STATE[:4] * 1e6
    back = CODEC.decode(CODEC.encode(huge), 4)
    assert np.isfinite(back).all()
    assert np.abs(back).max() < 100


@given(st.integers(1, 40), st.data())
def test_any_bytes_of_the_right_size_decode_to_bounded_values_or_are_refused(
    tokens: int, data: st.DataObject
) -> None:
    payload = data.draw(st.binary(min_size=CODEC.size(tokens), max_size=CODEC.size(tokens)))
    with contextlib.suppress(StateShapeError):
        assert np.abs(CODEC.decode(payload, tokens)).max() < 100


@given(st.binary(max_size=300), st.integers(-1, 600))
def test_bytes_of_another_size_are_refused_before_they_are_read(data: bytes, tokens: int) -> None:
    codecs = CodecSet(HIDDEN, {3: CODEC})
    if 0 < tokens <= 512 and len(data) == CODEC.size(tokens):
        return
    with pytest.raises(StateShapeError):
        codecs.decode("bottleneck", 3, data, tokens)


def test_another_count_of_classes_than_agreed_is_refused() -> None:
    payload = bytearray(CODEC.encode(STATE))
    payload[0] ^= 0b11
    with pytest.raises(StateShapeError, match="classes"):
        CODEC.decode(bytes(payload), 40)


def test_a_folder_keeps_the_codecs_of_its_layers(tmp_path: Path) -> None:
    save_file(stored_tensors({2: CODEC, 5: CODEC}), tmp_path / BOTTLENECK_FILE)
    found = load_bottlenecks(tmp_path, HIDDEN)
    assert set(found) == {2, 5}
    # The matrices are kept as float16, so the first round trip settles them.
    again = {layer: Bottleneck(codec.tensors) for layer, codec in found.items()}
    assert found[5].encode(STATE) == again[2].encode(STATE)
    assert len(found[5].encode(STATE)) == CODEC.size(40)
    assert load_bottlenecks(tmp_path / "elsewhere", HIDDEN) == {}


def test_matrices_that_lie_transposed_in_memory_are_kept_right(tmp_path: Path) -> None:
    tensors = make_tensors()
    turned = dataclasses.replace(
        tensors, bits=np.asfortranarray(tensors.bits), down=np.asfortranarray(tensors.down)
    )
    save_file(stored_tensors({2: Bottleneck(turned)}), tmp_path / BOTTLENECK_FILE)
    (found,) = load_bottlenecks(tmp_path, HIDDEN).values()
    assert (found.tensors.bits == tensors.bits).all()
    assert np.allclose(found.tensors.down, tensors.down, atol=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": np.zeros(HIDDEN + 1, np.float32)},
        {"steps": np.zeros((3, HIDDEN), np.float32)},
        {"bits": np.full((3, HIDDEN), 9)},
        {"bits": np.zeros((3, HIDDEN), np.int64)},
        {"one_in": (1, 4)},
        {"one_in": (1, 4, 0)},
        {"up": np.full((HIDDEN, HIDDEN), np.nan, np.float32)},
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ModelFolderError):
        Bottleneck(make_tensors(**change))


def test_a_file_for_another_width_is_refused_with_its_name(tmp_path: Path) -> None:
    save_file(stored_tensors({2: CODEC}), tmp_path / BOTTLENECK_FILE)
    with pytest.raises(ModelFolderError, match=BOTTLENECK_FILE):
        load_bottlenecks(tmp_path, HIDDEN + 8)


def test_a_file_without_all_tensors_is_refused(tmp_path: Path) -> None:
    stored = stored_tensors({2: CODEC})
    del stored["layers.2.up"]
    save_file(stored, tmp_path / BOTTLENECK_FILE)
    with pytest.raises(ModelFolderError, match="layer 2"):
        load_bottlenecks(tmp_path, HIDDEN)
