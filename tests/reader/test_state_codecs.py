"""State codecs: exact sizes, stated errors, and refusal of everything that does not fit."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reader.errors import StateError, StateShapeError, UnknownCodec
from reader.state_codecs import CODECS, decode_state, encode_state, state_bytes

STATE = torch.randn(37, 24, generator=torch.Generator().manual_seed(4)) * 3


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_bytes_have_the_promised_size_and_come_back(codec: str) -> None:
    payload = encode_state(codec, STATE)
    assert len(payload) == state_bytes(codec, 37, 24)
    back = decode_state(codec, payload, 37, 24)
    assert back.dtype == torch.float32
    largest = STATE.abs().amax(1, keepdim=True)
    bound = {"fp32": 0.0, "fp16": 2.0**-11, "int8": 0.5 / 127 * 1.001}[codec]
    assert bool(((back - STATE).abs() <= bound * largest + 1e-7).all())


def test_fp32_is_exact() -> None:
    assert torch.equal(decode_state("fp32", encode_state("fp32", STATE), 37, 24), STATE)


def test_int8_of_zeros_is_zeros() -> None:
    assert not decode_state("int8", encode_state("int8", torch.zeros(3, 8)), 3, 8).any()


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize("change", [b"", b"\0"])
def test_a_wrong_size_is_refused(codec: str, change: bytes) -> None:
    payload = encode_state(codec, STATE)
    wrong = payload + change if change else payload[:-1]
    with pytest.raises(StateShapeError, match="expected"):
        decode_state(codec, wrong, 37, 24)


@pytest.mark.parametrize("tokens", [0, -1, 513, 10**9])
def test_an_impossible_length_is_refused_before_anything_is_built(tokens: int) -> None:
    with pytest.raises(StateShapeError):
        decode_state("fp16", b"", tokens, 384)


def test_an_unknown_codec_names_the_known_ones() -> None:
    with pytest.raises(UnknownCodec, match="fp16"):
        decode_state("morse", b"", 1, 1)


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_values_that_are_not_finite_are_refused_on_both_sides(codec: str) -> None:
    bad = STATE.clone()
    bad[3, 3] = torch.nan
    with pytest.raises(StateShapeError, match="finite"):
        encode_state(codec, bad)
    payload = bytearray(encode_state(codec, STATE))
    kind = "<f2" if codec == "fp16" else "<f4"
    payload[: np.dtype(kind).itemsize] = np.array([np.inf], kind).tobytes()
    with pytest.raises(StateShapeError, match="finite"):
        decode_state(codec, bytes(payload), 37, 24)


def test_fp16_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(StateShapeError, match="range"):
        encode_state("fp16", torch.full((2, 2), 1e6))


@given(
    st.sampled_from(sorted(CODECS)),
    st.binary(max_size=400),
    st.integers(-2, 20),
    st.integers(1, 20),
)
def test_any_bytes_decode_or_raise_a_state_error(
    codec: str, data: bytes, tokens: int, hidden: int
) -> None:
    with contextlib.suppress(StateError):
        decode_state(codec, data, tokens, hidden)
