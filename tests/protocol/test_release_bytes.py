"""The bytes of everything about releases: golden, and hostile.

Manifests live for weeks on brokers and devices of different ages, so the format must not drift
unnoticed: a change of these bytes is a change for every device in the field.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import nacl.signing
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from protocol.file_index import decode_index, encode_index
from protocol.manifest import (
    Manifest,
    SignedManifest,
    decode_manifest,
    encode_manifest,
    sign_manifest,
)
from protocol.release_messages import ModelState, RolloutOrder, SignedRollout, WorkerReleases
from protocol.signing import KeyList, SignedKeyList
from protocol.wire import Kind, decode_frame, encode_frame
from tests.protocol.release_samples import (
    FIXED_KEY,
    index,
    manifest,
    model_state,
    order,
    worker_releases,
)

KEYS = KeyList(2, {FIXED_KEY.key_id: FIXED_KEY.public}, ("publisher-0",))
KEY_LIST = KEYS.sign(FIXED_KEY)
SIGNED = sign_manifest(manifest(), FIXED_KEY, KEY_LIST)


def open_resigned_list(payload: bytes) -> KeyList:
    """What the root signed, whatever it was."""
    return SignedKeyList(payload, FIXED_KEY.sign("keys", payload)).open(FIXED_KEY.public)


def open_resigned_order(payload: bytes) -> RolloutOrder:
    """What the rollout key signed, whatever it was."""
    return SignedRollout(payload, FIXED_KEY.sign("rollout", payload)).open(FIXED_KEY.public)


def open_received_manifest(content: bytes) -> Manifest:
    """What a device does with a message."""
    signed = SignedManifest.decode(content)
    return signed.manifest(signed.key_list.open(FIXED_KEY.public))


CASES: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
    "key list": (KEY_LIST.payload, open_resigned_list),
    "manifest": (encode_manifest(manifest()), decode_manifest),
    "signed manifest": (SIGNED.encode(), open_received_manifest),
    "order": (order().sign(FIXED_KEY).payload, open_resigned_order),
    "signed order": (
        order().sign(FIXED_KEY).encode(),
        lambda content: SignedRollout.decode(content).open(FIXED_KEY.public),
    ),
    "file index": (encode_index(index()), decode_index),
    "model state": (model_state().encode(), ModelState.decode),
    "worker releases": (worker_releases().encode(), WorkerReleases.decode),
}
GOLDEN = {
    "key list": "98 a4e716a3c3c339568dd0871669e9b7f36ad384613256806f2fffb7f3ec4e24b8",
    "manifest": "1564 e630576c70462a23c90974335db9dc769e7d41e3ca92604991398182b058a5d4",
    "signed manifest": "1870 a87cf9227e901148e877cedbe761ab8c82c1aae06bc7901bc49bf0fc9f0c2958",
    "order": "164 b156c75023d5c5cd8cbf157913da794dd34791fde86998245850bb94bf0bde35",
    "signed order": "255 3c9218eed8f907f446d8496f73a40bdfd6585e00e00f339346366a08de0d8558",
    "file index": "468 06be83660018223c9fba27a0f21e6255d441cccace96e34d54d11e70a73f39f3",
    "model state": "303 6c5fb945c8773e548caaf580bb5ab39a99a45660f860ea852b2232308df47f4a",
    "worker releases": "453 91ee77993f818bc54d24873887ab6fbfcd4064ddefe851b9156602e69de21ee3",
}


@pytest.mark.parametrize("case", CASES)
def test_the_bytes_are_those_of_the_first_release(case: str) -> None:
    """Length and sha256. Only a new wire version may change them."""
    content = CASES[case][0]
    assert f"{len(content)} {hashlib.sha256(content).hexdigest()}" == GOLDEN[case]


def test_a_signature_is_over_the_purpose_and_the_payload() -> None:
    """Ed25519 without ELMA's help says the same, so another program can make and check them."""
    signature = FIXED_KEY.sign("manifest", b"payload")
    plain = nacl.signing.VerifyKey(FIXED_KEY.public)
    assert plain.verify(b"elma manifest v1\0payload", signature)
    assert signature.hex().startswith("074afcd7c4015e53c6d8e7ceaf01fc1b")


@pytest.mark.parametrize("case", CASES)
def test_every_cut_is_refused(case: str) -> None:
    content, decode = CASES[case]
    decode(content)
    for length in [*range(60), *range(60, len(content), 41), len(content) - 1]:
        with pytest.raises(ProtocolError):
            decode(content[:length])
    with pytest.raises(ProtocolError):
        decode(content + b"\0")


@given(st.data())
def test_changed_bytes_raise_nothing_but_protocol_errors(data: st.DataObject) -> None:
    content, decode = CASES[data.draw(st.sampled_from(sorted(CASES)))]
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    decoded_or_protocol_error(decode, bytes(changed))


_ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=40),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4)
    ),
    max_leaves=10,
)


@given(st.data())
def test_fields_of_any_type_raise_nothing_but_protocol_errors(data: st.DataObject) -> None:
    """One value, at any depth, becomes anything that msgpack can hold."""
    content, decode = CASES[data.draw(st.sampled_from(sorted(CASES)))]
    frame = decode_frame(content, set(Kind))
    place: Any = frame.fields
    while True:
        choices = sorted(place) if isinstance(place, dict) else range(len(place))
        chosen = data.draw(st.sampled_from(choices))
        deeper = place[chosen]
        if not (isinstance(deeper, dict | list) and deeper and data.draw(st.booleans())):
            break
        place = deeper
    place[chosen] = data.draw(_ANYTHING)
    decoded_or_protocol_error(decode, encode_frame(frame.kind, frame.fields, frame.attachment))


@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_protocol_errors(noise: bytes) -> None:
    for _, decode in CASES.values():
        with pytest.raises(ProtocolError):
            decode(noise)


def decoded_or_protocol_error(decode: Callable[[bytes], Any], content: bytes) -> None:
    """Nothing but a message or a ProtocolError comes of any bytes."""
    try:
        message = decode(content)
    except ProtocolError:
        return
    assert message is not None
