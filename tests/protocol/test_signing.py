"""Signatures: of one key, for one purpose, over these bytes; and the list of keys that count."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import (
    BadSignature,
    MalformedMessage,
    OversizedMessage,
    RevokedKey,
    SealingError,
    UnknownKeyId,
)
from protocol.manifest import sign_manifest
from protocol.release_messages import SignedRollout
from protocol.signing import (
    MAX_KEY_LIST_BYTES,
    MAX_REVOKED_KEYS,
    MAX_SIGNING_KEYS,
    Domain,
    KeyList,
    PublisherTrust,
    SignedKeyList,
    SigningKey,
    verify,
)
from protocol.wire import Kind, encode_frame
from tests.protocol.release_samples import manifest, order

DOMAINS: tuple[Domain, ...] = ("keys", "manifest", "rollout")


@pytest.fixture
def root() -> SigningKey:
    """A root key."""
    return SigningKey.make("root")


@pytest.fixture
def key() -> SigningKey:
    """A signing key."""
    return SigningKey.make("publisher-1")


@given(st.binary(max_size=200))
def test_a_signature_verifies_for_its_bytes_and_no_others(payload: bytes) -> None:
    key = SigningKey.make("k")
    signature = key.sign("manifest", payload)
    verify("manifest", payload, signature, key.public)
    with pytest.raises(BadSignature):
        verify("manifest", payload + b"\0", signature, key.public)


@pytest.mark.parametrize("signed_for", DOMAINS)
@pytest.mark.parametrize("used_for", DOMAINS)
def test_a_signature_counts_for_one_purpose(
    key: SigningKey, signed_for: Domain, used_for: Domain
) -> None:
    signature = key.sign(signed_for, b"payload")
    if signed_for == used_for:
        verify(used_for, b"payload", signature, key.public)
        return
    with pytest.raises(BadSignature, match=f"this {used_for} payload"):
        verify(used_for, b"payload", signature, key.public)


def test_a_rollout_signature_does_not_make_a_manifest(root: SigningKey, key: SigningKey) -> None:
    """The rollout key is on a machine with a network: whoever steals it must sign no release,
    not even where the same key were in both places."""
    keys = KeyList(1, {key.key_id: key.public})
    good = sign_manifest(manifest(), key, keys.sign(root))
    assert good.manifest(keys) == manifest()
    forged = replace(good, signature=key.sign("rollout", good.payload))
    with pytest.raises(BadSignature):
        forged.manifest(keys)


def test_a_manifest_signature_does_not_make_an_order(key: SigningKey) -> None:
    good = order().sign(key)
    assert good.open(key.public) == order()
    with pytest.raises(BadSignature):
        SignedRollout(good.payload, key.sign("manifest", good.payload)).open(key.public)


def test_a_key_list_is_the_roots_alone(root: SigningKey, key: SigningKey) -> None:
    keys = KeyList(3, {key.key_id: key.public}, ("old",))
    assert keys.sign(root).open(root.public) == keys
    with pytest.raises(BadSignature):
        keys.sign(key).open(root.public)
    with pytest.raises(BadSignature):
        KeyList(4, {}).sign(key).open(root.public)


def test_another_key_does_not_verify(key: SigningKey) -> None:
    signature = key.sign("manifest", b"payload")
    with pytest.raises(BadSignature, match=SigningKey("x", bytes(32)).fingerprint):
        verify("manifest", b"payload", signature, SigningKey("x", bytes(32)).public)


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(32), b"\xff" * 32, bytes(33)])
@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), b"\xff" * 64, bytes(65)])
def test_keys_and_signatures_that_are_none_verify_nothing(public: bytes, signature: bytes) -> None:
    with pytest.raises(BadSignature):
        verify("keys", b"payload", signature, public)


def test_a_list_says_why_a_key_does_not_count(key: SigningKey) -> None:
    keys = KeyList(1, {key.key_id: key.public}).with_key("publisher-2", bytes(32))
    assert keys.version == 2
    assert list(keys.keys) == ["publisher-1", "publisher-2"]
    after = keys.without_key("publisher-1")
    assert after == KeyList(3, {"publisher-2": bytes(32)}, ("publisher-1",))
    with pytest.raises(RevokedKey, match="publisher-1"):
        after.public_of("publisher-1")
    with pytest.raises(UnknownKeyId, match="publisher-9"):
        after.public_of("publisher-9")


def test_a_key_id_is_never_used_again(key: SigningKey) -> None:
    keys = KeyList(1, {key.key_id: key.public, "b": bytes(32)}).without_key(key.key_id)
    for used in (key.key_id, "b"):
        with pytest.raises(SealingError, match="used before"):
            keys.with_key(used, bytes(32))


def test_a_revoked_keys_manifest_is_refused_whatever_its_version(
    root: SigningKey, key: SigningKey
) -> None:
    """The fast-forward attack: a stolen key signs the largest version that there is."""
    keys = KeyList(1, {key.key_id: key.public, "publisher-2": bytes(32)})
    signed = sign_manifest(manifest(version=2**53 - 1), key, keys.sign(root))
    assert signed.manifest(keys).version == 2**53 - 1
    with pytest.raises(RevokedKey):
        signed.manifest(keys.without_key(key.key_id))


def test_a_key_list_without_bounds_is_not_made(root: SigningKey) -> None:
    many = {f"k{number}": bytes(32) for number in range(MAX_SIGNING_KEYS + 1)}
    with pytest.raises(MalformedMessage, match="at most"):
        KeyList(1, many)
    with pytest.raises(MalformedMessage, match="at most"):
        KeyList(1, {}, tuple(f"k{number}" for number in range(MAX_REVOKED_KEYS + 1)))
    largest = KeyList(
        2**53 - 1,
        {f"{number:064d}": bytes(32) for number in range(MAX_SIGNING_KEYS)},
        tuple(f"{number:x<64d}" for number in range(MAX_REVOKED_KEYS)),
    )
    assert largest.sign(root).open(root.public) == largest


@pytest.mark.parametrize(
    "values",
    [
        (0, {}, ()),
        (2**53, {}, ()),
        (True, {}, ()),
        (1, {"a/b": bytes(32)}, ()),
        (1, {"a": bytes(31)}, ()),
        (1, {"a": "text"}, ()),
        (1, {}, ("a b",)),
        (1, {}, ("a", "a")),
        (1, {"a": bytes(32)}, ("a",)),
    ],
)
def test_a_key_list_that_makes_no_sense_is_not_made(values: tuple[object, ...]) -> None:
    with pytest.raises(MalformedMessage):
        KeyList(*values)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"version": 1, "keys": {}, "revoked": []},
        {"version": 1, "keys": [["a"]], "revoked": []},
        {"version": 1, "keys": [["a", 7]], "revoked": []},
        {"version": 1, "keys": [[["a"], bytes(32)]], "revoked": []},
        {"version": 1, "keys": [["a", bytes(32)], ["a", bytes(32)]], "revoked": []},
        {"version": 1, "keys": [["a", bytes(32)]] * 1000, "revoked": []},
        {"version": 1, "keys": [], "revoked": ["a"] * 1000},
        {"version": 1, "keys": [], "revoked": [[]]},
    ],
)
def test_a_signed_list_that_is_malformed_is_refused(root: SigningKey, fields: object) -> None:
    payload = encode_frame(Kind.KEY_LIST, fields)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(MalformedMessage):
        SignedKeyList(payload, root.sign("keys", payload)).open(root.public)


def test_a_list_of_a_later_program_is_understood(root: SigningKey) -> None:
    payload = encode_frame(
        Kind.KEY_LIST,
        {"version": 2, "keys": [["a", bytes(32), "since"]], "revoked": [], "threshold": 2},
    )
    keys = SignedKeyList(payload, root.sign("keys", payload)).open(root.public)
    assert keys == KeyList(2, {"a": bytes(32)})


def test_sizes_are_checked_before_anything_is_verified() -> None:
    with pytest.raises(OversizedMessage):
        SignedKeyList(bytes(MAX_KEY_LIST_BYTES + 1), bytes(64))
    with pytest.raises(MalformedMessage):
        SignedKeyList(b"payload", bytes(63))
    with pytest.raises(MalformedMessage):
        PublisherTrust(bytes(31), SignedKeyList(b"payload", bytes(64)))


def test_no_secret_is_shown(key: SigningKey) -> None:
    assert repr(key.secret) not in repr(key)
    assert key.secret.hex() not in repr(key)
    assert key.fingerprint not in ("", key.secret.hex()[:16])
