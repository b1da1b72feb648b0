"""Signatures: who may say what about releases, and the list of those who may.

    root key      signs nothing but key lists; offline; its public half is what a device is given
    signing keys  sign manifests; named in the newest key list that the root key signed
    rollout key   signs rollout orders of one release; named in that release's manifest

Ed25519 (RFC 8032) over b"elma <domain> v1\\0" and the payload, so that a signature made for one
purpose verifies for no other. Inputs and outputs are bytes; `manifest` and `release_messages` say
what they mean, `key_files` keeps keys on disk. Secrets never appear in a repr or an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import nacl.signing
import nacl.utils
from nacl.exceptions import CryptoError

from protocol.checks import check_bytes, check_integer, check_list, check_name, take
from protocol.errors import (
    BadSignature,
    MalformedMessage,
    OversizedMessage,
    RevokedKey,
    SealingError,
    UnknownKeyId,
)
from protocol.keys import KEY_BYTES, fingerprint
from protocol.wire import Kind, decode_frame, encode_frame

SIGNATURE_BYTES = 64
MAX_VERSION = 2**53 - 1
MAX_SIGNING_KEYS = 16
MAX_REVOKED_KEYS = 128
MAX_KEY_LIST_BYTES = 16 * 1024

Domain = Literal["keys", "manifest", "rollout"]


@dataclass(frozen=True)
class SigningKey:
    """An Ed25519 key: its id and its secret seed (32 bytes)."""

    key_id: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        check_name("signing key id", self.key_id)
        check_bytes("signing key", self.secret, KEY_BYTES, KEY_BYTES)

    @classmethod
    def make(cls, key_id: str) -> SigningKey:
        """A fresh key from the operating system's randomness."""
        return cls(key_id, nacl.utils.random(KEY_BYTES))

    @property
    def public(self) -> bytes:
        """The public key (32 bytes)."""
        return bytes(nacl.signing.SigningKey(self.secret).verify_key)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the public key, to compare by eye."""
        return fingerprint(self.public)

    def sign(self, domain: Domain, payload: bytes) -> bytes:
        """The signature (64 bytes) of `payload` for one purpose."""
        return nacl.signing.SigningKey(self.secret).sign(_bound(domain, payload)).signature


def verify(domain: Domain, payload: bytes, signature: bytes, public: bytes) -> None:
    """Raises BadSignature unless `public`'s owner signed `payload` for this purpose."""
    try:
        nacl.signing.VerifyKey(public).verify(_bound(domain, payload), signature)
    except (CryptoError, ValueError, TypeError) as error:
        raise BadSignature(
            f"the signature over this {domain} payload of {len(payload)} bytes is not of key "
            f"{fingerprint(public)}: it was changed on the way, or another key signed it"
        ) from error


@dataclass(frozen=True)
class KeyList:
    """The keys that may sign manifests now, oldest first, and the ids of those that may not any
    more. A list with a higher `version` replaces this one; none replaces it with a lower.
    """

    version: int
    keys: Mapping[str, bytes]
    revoked: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_integer("key list version", self.version, 1, MAX_VERSION)
        if len(self.keys) > MAX_SIGNING_KEYS or len(self.revoked) > MAX_REVOKED_KEYS:
            raise MalformedMessage(
                f"a key list has at most {MAX_SIGNING_KEYS} keys and {MAX_REVOKED_KEYS} revoked ids"
            )
        for key_id, public in self.keys.items():
            check_name("signing key id", key_id)
            check_bytes("signing public key", public, KEY_BYTES, KEY_BYTES)
        for key_id in self.revoked:
            check_name("revoked key id", key_id)
        if len(set(self.revoked)) != len(self.revoked) or set(self.revoked) & set(self.keys):
            raise MalformedMessage("a key id is named twice in the key list")
        object.__setattr__(self, "keys", dict(self.keys))

    def public_of(self, key_id: str) -> bytes:
        """The public key of a key that may sign. Raises RevokedKey or UnknownKeyId."""
        if key_id in self.revoked:
            raise RevokedKey(f"signing key {key_id!r} was revoked by key list {self.version}")
        try:
            return self.keys[key_id]
        except KeyError as error:
            raise UnknownKeyId(
                f"signing key {key_id!r} is not in key list {self.version} "
                f"({', '.join(self.keys) or 'no keys'})"
            ) from error

    def with_key(self, key_id: str, public: bytes) -> KeyList:
        """The next list, in which this key may sign too. An id is never used again."""
        if key_id in self.keys or key_id in self.revoked:
            raise SealingError(f"signing key id {key_id!r} was used before; choose another one")
        return KeyList(self.version + 1, {**self.keys, key_id: public}, self.revoked)

    def without_key(self, key_id: str) -> KeyList:
        """The next list, in which this key is revoked. Raises RevokedKey or UnknownKeyId."""
        self.public_of(key_id)
        kept = {name: public for name, public in self.keys.items() if name != key_id}
        return KeyList(self.version + 1, kept, (*self.revoked, key_id))

    def sign(self, root: SigningKey) -> SignedKeyList:
        """This list, signed by the root key."""
        payload = encode_frame(
            Kind.KEY_LIST,
            {
                "version": self.version,
                "keys": [[key_id, public] for key_id, public in self.keys.items()],
                "revoked": list(self.revoked),
            },
        )
        return SignedKeyList(payload, root.sign("keys", payload))


@dataclass(frozen=True)
class SignedKeyList:
    """A key list as it travels: bytes that mean nothing before `open` has verified them."""

    payload: bytes
    signature: bytes

    def __post_init__(self) -> None:
        if isinstance(self.payload, bytes) and len(self.payload) > MAX_KEY_LIST_BYTES:
            raise OversizedMessage(f"a key list of over {MAX_KEY_LIST_BYTES} bytes")
        check_bytes("key list", self.payload, 1, MAX_KEY_LIST_BYTES)
        check_bytes("key list signature", self.signature, SIGNATURE_BYTES, SIGNATURE_BYTES)

    def open(self, root_public: bytes) -> KeyList:
        """The list, if the root key signed it. Raises BadSignature or MalformedMessage."""
        verify("keys", self.payload, self.signature, root_public)
        return _decode_key_list(self.payload)


@dataclass(frozen=True)
class PublisherTrust:
    """What a device is enrolled with: the root's public key (32 bytes) and a list it signed."""

    root_public: bytes
    key_list: SignedKeyList

    def __post_init__(self) -> None:
        check_bytes("root public key", self.root_public, KEY_BYTES, KEY_BYTES)

    def keys(self) -> KeyList:
        """The list, verified. Raises BadSignature or MalformedMessage."""
        return self.key_list.open(self.root_public)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the root's public key, to compare by eye."""
        return fingerprint(self.root_public)


def _bound(domain: Domain, payload: bytes) -> bytes:
    """What is signed: the purpose, a zero byte that no purpose holds, and the payload."""
    return f"elma {domain} v1".encode("ascii") + b"\0" + payload


def _decode_key_list(payload: bytes) -> KeyList:
    frame = decode_frame(payload, {Kind.KEY_LIST})
    version, keys, revoked = take(frame.fields, "version", "keys", "revoked")
    pairs: dict[str, bytes] = {}
    for item in check_list("keys", keys, MAX_SIGNING_KEYS):
        pair = check_list("a key", item, 8, 2)
        name = check_name("signing key id", pair[0])
        if name in pairs:
            raise MalformedMessage("a key id is named twice in the key list")
        pairs[name] = pair[1]
    names = check_list("revoked", revoked, MAX_REVOKED_KEYS)
    return KeyList(version, pairs, tuple(check_name("revoked key id", name) for name in names))
