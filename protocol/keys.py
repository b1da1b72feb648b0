"""Keys in memory: an edge's, the pool's, and the directory of edges that a worker trusts.

An edge holds `EdgeKeys` and the pool's `PoolPublic`; a worker holds `PoolKeys` (the current key
and, while a rotation lasts, the one before) and an `EdgeDirectory`. Files are the business of
`key_files`. Secrets never appear in a repr or an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import nacl.bindings
import nacl.utils
from nacl.exceptions import CryptoError

from protocol.checks import check_bytes, check_name
from protocol.errors import MalformedMessage, SealingError, UnknownEdge, UnknownKeyId

KEY_BYTES = 32
LIVE_POOL_KEYS = 2


@dataclass(frozen=True)
class PoolPublic:
    """What an edge knows of the pool: the id and the public key (32 bytes) to seal to."""

    key_id: str
    public: bytes

    def __post_init__(self) -> None:
        check_name("pool key id", self.key_id)
        check_bytes("pool public key", self.public, KEY_BYTES, KEY_BYTES)
        _refuse_weak_point(self.public)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits to compare by eye."""
        return fingerprint(self.public)


@dataclass(frozen=True)
class EdgeKeys:
    """An edge's name and its X25519 secret key (32 bytes)."""

    edge: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        check_name("edge", self.edge)
        check_bytes("edge secret key", self.secret, KEY_BYTES, KEY_BYTES)

    @classmethod
    def make(cls, edge: str) -> EdgeKeys:
        """Fresh keys from the operating system's randomness."""
        return cls(edge, nacl.utils.random(KEY_BYTES))

    @property
    def public(self) -> bytes:
        """The public key (32 bytes), for the workers' directory."""
        return nacl.bindings.crypto_scalarmult_base(self.secret)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the public key, to compare by eye."""
        return fingerprint(self.public)


@dataclass(frozen=True)
class PoolKeys:
    """The pool's secret keys by id; the last one is current, an earlier one still opens."""

    secrets: Mapping[str, bytes] = field(repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.secrets) <= LIVE_POOL_KEYS:
            raise SealingError(f"a pool has 1 to {LIVE_POOL_KEYS} live keys")
        for key_id, secret in self.secrets.items():
            check_name("pool key id", key_id)
            check_bytes("pool secret key", secret, KEY_BYTES, KEY_BYTES)
        object.__setattr__(self, "secrets", dict(self.secrets))

    @classmethod
    def make(cls, key_id: str) -> PoolKeys:
        """A pool with one fresh key."""
        return cls({key_id: nacl.utils.random(KEY_BYTES)})

    def rotate(self, key_id: str) -> PoolKeys:
        """A fresh current key; the key that was current still opens, any older one is gone."""
        if key_id in self.secrets:
            raise SealingError(f"pool key id {key_id!r} is in use; rotate to another id")
        kept = {self.current_id: self.secrets[self.current_id]}
        return PoolKeys({**kept, key_id: nacl.utils.random(KEY_BYTES)})

    @property
    def current_id(self) -> str:
        """The id that new edges are given."""
        return list(self.secrets)[-1]

    @property
    def ids(self) -> tuple[str, ...]:
        """All live ids, oldest first."""
        return tuple(self.secrets)

    @property
    def public(self) -> PoolPublic:
        """The current key's public half, for the edges."""
        return self.public_of(self.current_id)

    def public_of(self, key_id: str) -> PoolPublic:
        """The public half of a live key; raises UnknownKeyId."""
        return PoolPublic(key_id, nacl.bindings.crypto_scalarmult_base(self.secret_of(key_id)))

    def secret_of(self, key_id: str) -> bytes:
        """The secret of a live key; raises UnknownKeyId."""
        try:
            return self.secrets[key_id]
        except KeyError as error:
            raise UnknownKeyId(
                f"pool key {key_id!r} is not live here (live: {', '.join(self.ids)}); "
                "give the edge the pool's current public key"
            ) from error


class EdgeDirectory(Protocol):
    """Edge name -> public key: `EdgeKeyring` in memory, `key_files.EdgeFolder` in files."""

    def public_key(self, edge: str) -> bytes:
        """The edge's public key (32 bytes); raises UnknownEdge."""


class EdgeKeyring:
    """An edge directory in memory."""

    def __init__(self, public_keys: Mapping[str, bytes]) -> None:
        for edge, public in public_keys.items():
            check_name("edge", edge)
            check_bytes("edge public key", public, KEY_BYTES, KEY_BYTES)
        self._public_keys = dict(public_keys)

    def public_key(self, edge: str) -> bytes:
        """The edge's public key (32 bytes); raises UnknownEdge."""
        try:
            return self._public_keys[edge]
        except KeyError as error:
            raise UnknownEdge(f"edge {edge!r} is not enrolled; add its public key") from error


def fingerprint(public: bytes) -> str:
    """16 hexadecimal digits of a public key's sha256, to compare by eye."""
    return hashlib.sha256(public).hexdigest()[:16]


def _refuse_weak_point(public: bytes) -> None:
    """Refuse the few public keys with which every shared secret would be known to all."""
    try:
        nacl.bindings.crypto_scalarmult(b"\x01" * KEY_BYTES, public)
    except (CryptoError, RuntimeError) as error:
        raise MalformedMessage("the public key is a low-order point; make a new one") from error
