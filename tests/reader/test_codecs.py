"""The codecs of a release: names by layer, losses, token ids, and what a folder adds."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reader.codecs import (
    LOSSES_FILE,
    CodecSet,
    decode_tokens,
    encode_tokens,
    load_losses,
    save_losses,
    tokens_bytes,
)
from reader.errors import ModelFolderError, StateError, StateShapeError, UnknownCodec
from reader.weights import folder_digest

STATE = np.random.default_rng(4).standard_normal((9, 24)).astype(np.float32)


def test_a_release_without_matrices_has_the_plain_codecs_at_every_layer() -> None:
    codecs = CodecSet(24)
    for layer in (0, 1, 11):
        assert codecs.names(layer) == ("fp32", "fp16", "int8", "int4")
        for name in codecs.names(layer):
            payload = codecs.encode(name, layer, STATE)
            assert len(payload) == codecs.size(name, layer, 9)
            assert codecs.decode(name, layer, payload, 9).shape == STATE.shape


def test_a_bottleneck_that_is_not_there_is_named_with_its_layer() -> None:
    codecs = CodecSet(24)
    with pytest.raises(UnknownCodec, match="layer 3"):
        codecs.encode("bottleneck", 3, STATE)
    with pytest.raises(UnknownCodec, match="layer 3"):
        codecs.decode("bottleneck", 3, b"x", 9)
    with pytest.raises(UnknownCodec, match="fp16"):
        codecs.size("morse", 3, 9)


def test_measured_losses_go_before_the_usual_ones() -> None:
    codecs = CodecSet(24, losses={5: {"int4": 0.7, "int8": -0.2, "bottleneck": 0.1}})
    assert codecs.loss("int4", 5) == 0.7
    assert codecs.loss("int8", 5) == 0.0  # chance is no gain
    assert codecs.loss("bottleneck", 5) == 0.1
    assert codecs.loss("int4", 6) == CodecSet(24).loss("int4", 6) != 0.7
    assert codecs.loss("bottleneck", 6) is None


def test_losses_of_layers_are_kept_beside_each_other_and_change_no_digest(tmp_path: Path) -> None:
    before = folder_digest(tmp_path)
    save_losses(tmp_path, 5, {"int4": 0.25})
    save_losses(tmp_path, 4, {"int8": 0.5})
    save_losses(tmp_path, 5, {"int4": 0.5})
    assert load_losses(tmp_path) == {4: {"int8": 0.5}, 5: {"int4": 0.5}}
    assert folder_digest(tmp_path) == before


def test_the_matrices_of_the_bottleneck_are_part_of_the_digest(tmp_path: Path) -> None:
    before = folder_digest(tmp_path)
    (tmp_path / "bottleneck.safetensors").write_bytes(b"x")
    assert folder_digest(tmp_path) != before


@pytest.mark.parametrize("text", ["{", "[]", '{"f1_loss": 3}', '{"f1_loss": {"five": {}}}'])
def test_a_broken_file_of_losses_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / LOSSES_FILE).write_text(text)
    with pytest.raises(ModelFolderError, match=LOSSES_FILE):
        load_losses(tmp_path)


@pytest.mark.parametrize(("vocabulary", "width"), [(30_522, 2), (65_536, 2), (250_002, 4)])
def test_token_ids_take_two_bytes_or_four(vocabulary: int, width: int) -> None:
    ids = [0, 7, vocabulary - 1]
    payload = encode_tokens(ids, vocabulary)
    assert len(payload) == tokens_bytes(3, vocabulary) == 3 * width
    assert decode_tokens(payload, 3, vocabulary) == ids


@given(st.binary(max_size=64), st.integers(-1, 40), st.integers(1, 300))
def test_no_token_id_outside_the_vocabulary_gets_through(
    data: bytes, tokens: int, vocabulary: int
) -> None:
    with contextlib.suppress(StateError):
        ids = decode_tokens(data, tokens, vocabulary)
        assert len(ids) == tokens
        assert all(0 <= token < vocabulary for token in ids)


def test_an_unknown_token_id_is_refused() -> None:
    with pytest.raises(StateShapeError, match="vocabulary"):
        decode_tokens(np.array([1, 200], "<u2").tobytes(), 2, 200)
