"""State codecs: exact sizes, stated errors, and refusal of everything that does not fit."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reader.errors import StateError, StateShapeError, UnknownCodec
from reader.state_codecs import CODECS, INT4_GROUP, decode_state, encode_state, state_bytes

STATE = (np.random.default_rng(4).standard_normal((37, 24)) * 3).astype(np.float32)


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize("hidden", [24, 32, 33, 65])
def test_bytes_have_the_promised_size_and_come_back(codec: str, hidden: int) -> None:
    state = (np.random.default_rng(5).standard_normal((37, hidden)) * 3).astype(np.float32)
    payload = encode_state(codec, state)
    assert len(payload) == state_bytes(codec, 37, hidden)
    back = decode_state(codec, payload, 37, hidden)
    assert back.dtype == np.float32
    assert back.shape == state.shape
    largest = np.abs(state).max(1, keepdims=True)
    # int4: half a step of 1/7.5, and the rounding of its scale, which can clip the largest value.
    bounds = {"fp32": 0.0, "fp16": 2.0**-11, "int8": 0.5 / 127 * 1.001, "int4": 0.5 / 7.5 * 1.02}
    assert (np.abs(back - state) <= bounds[codec] * largest + 1e-6).all()


def test_fp32_is_exact() -> None:
    assert (decode_state("fp32", encode_state("fp32", STATE), 37, 24) == STATE).all()


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_zeros_stay_zeros(codec: str) -> None:
    zeros = np.zeros((3, 40), np.float32)
    assert not decode_state(codec, encode_state(codec, zeros), 3, 40).any()


def test_a_large_value_spoils_only_its_own_group_of_int4() -> None:
    state = np.full((2, 3 * INT4_GROUP), 0.5, np.float32)
    state[0, 0] = 100.0
    back = decode_state("int4", encode_state("int4", state), 2, 3 * INT4_GROUP)
    assert np.abs(back[0, INT4_GROUP:] - 0.5).max() < 0.05
    assert np.abs(back[1] - 0.5).max() < 0.05


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
    bad = STATE.copy()
    bad[3, 3] = np.nan
    with pytest.raises(StateShapeError, match="finite"):
        encode_state(codec, bad)
    payload = bytearray(encode_state(codec, STATE))
    kind = "<f2" if codec in ("fp16", "int4") else "<f4"
    payload[: np.dtype(kind).itemsize] = np.array([np.inf], kind).tobytes()
    with pytest.raises(StateShapeError, match="finite"):
        decode_state(codec, bytes(payload), 37, 24)


@pytest.mark.parametrize("codec", ["fp16", "int4"])
def test_a_codec_refuses_what_it_cannot_hold(codec: str) -> None:
    with pytest.raises(StateShapeError, match="range"):
        encode_state(codec, np.full((2, 2), 1e6, np.float32))


@given(
    st.sampled_from(sorted(CODECS)),
    st.binary(max_size=400),
    st.integers(-2, 20),
    st.integers(1, 40),
)
def test_any_bytes_decode_or_raise_a_state_error(
    codec: str, data: bytes, tokens: int, hidden: int
) -> None:
    with contextlib.suppress(StateError):
        decode_state(codec, data, tokens, hidden)


@given(st.sampled_from(sorted(CODECS)), st.integers(1, 6), st.integers(1, 40), st.data())
def test_any_bytes_of_the_right_size_decode_to_finite_values_or_are_refused(
    codec: str, tokens: int, hidden: int, data: st.DataObject
) -> None:
    size = state_bytes(codec, tokens, hidden)
    payload = data.draw(st.binary(min_size=size, max_size=size))
    with contextlib.suppress(StateShapeError):
        back = decode_state(codec, payload, tokens, hidden)
        assert back.shape == (tokens, hidden)
        assert np.isfinite(back).all()
