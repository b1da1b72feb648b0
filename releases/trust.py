"""Whether a manifest is to be believed: TUF's rules on rollback, freeze and fast-forward.

In: a signed manifest, what the device was enrolled with, what it has used before. Out: the
manifest, or the reason why not. Neighbours: `protocol.manifest` and `protocol.signing` have the
bytes, `store` keeps the `TrustState`, `follower` asks.

    rollback      a version below the highest used, of this key and channel, is refused; so is the
                  same version with other bytes; so is what another trusted key made earlier
    freeze        an expired manifest is refused
    fast-forward  versions count per key, so that a stolen key's highest number dies with the key
    mix-and-match one signature covers all files by their hashes
    revocation    the newest key list that the root signed counts, wherever it was seen
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from protocol.errors import (
    BadSignature,
    ProtocolError,
    SealingError,
)
from protocol.manifest import Manifest, SignedManifest
from protocol.signing import KeyList, PublisherTrust, SignedKeyList
from releases.errors import (
    ExpiredManifest,
    ForgedManifest,
    MalformedRelease,
    RevokedKey,
    Rollback,
    StoreError,
    WrongChannel,
)

MAX_USED = 256


@dataclass(frozen=True)
class Used:
    """The highest manifest of one key and channel that was in use: version, sha256 of its signed
    bytes, and when it was made (unix seconds)."""

    version: int
    sha256: str
    created: float


@dataclass(frozen=True)
class TrustState:
    """What a device remembers: the newest key list, and what it used of each channel and signing
    key. The key is its public half: another publisher's may have the same name."""

    key_list: SignedKeyList | None = None
    used: Mapping[tuple[str, bytes], Used] = field(default_factory=dict)

    def with_used(self, signed: SignedManifest, manifest: Manifest, signer: bytes) -> TrustState:
        """The state after a release came into use; `signer` as of `signer_of`."""
        used = Used(manifest.version, payload_sha256(signed), manifest.created)
        return replace(self, used={**self.used, (manifest.channel, signer): used})

    def is_used(self, channel: str, signed: SignedManifest) -> bool:
        """Whether this very manifest is the highest that was used of its key."""
        sha256 = payload_sha256(signed)
        return any(one == channel and used.sha256 == sha256 for (one, _), used in self.used.items())

    def to_json(self) -> dict[str, Any]:
        """For `trust.json`."""
        keys = self.key_list
        return {
            "key_list": None
            if keys is None
            else {"payload": _to_text(keys.payload), "signature": _to_text(keys.signature)},
            "used": [
                {"channel": channel, "signer": _to_text(signer), **vars(used)}
                for (channel, signer), used in self.used.items()
            ],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TrustState:
        """The inverse of `to_json`; raises StoreError."""
        try:
            keys = document["key_list"]
            return cls(
                None
                if keys is None
                else SignedKeyList(_to_bytes(keys["payload"]), _to_bytes(keys["signature"])),
                {
                    (str(one["channel"]), _to_bytes(one["signer"])): Used(
                        int(one["version"]), str(one["sha256"]), float(one["created"])
                    )
                    for one in document["used"][:MAX_USED]
                },
            )
        except (KeyError, TypeError, ValueError, ProtocolError, binascii.Error) as error:
            raise StoreError(
                "trust.json does not hold a trust state; without it an old release could come "
                "back as new: restore it, or remove the store and enrol anew"
            ) from error


def check_manifest(
    signed: SignedManifest,
    *,
    trust: TrustState,
    publisher: PublisherTrust,
    channel: str,
    now: float,
    is_vouched_for: bool = False,
) -> Manifest:
    """The manifest, if it may be taken at `now` (unix seconds).

    `is_vouched_for`: a fresh manifest names this one by its hash, so its own expiry does not count.
    Raises a ReleaseRejected.
    """
    keys = current_keys(trust, publisher, signed.key_list)
    manifest = _open(signed, keys)
    if manifest.channel != channel:
        raise WrongChannel(
            f"manifest {manifest.version} was signed for channel {manifest.channel!r} and stood in "
            f"{channel!r}: somebody moved it"
        )
    if manifest.expires <= now and not is_vouched_for:
        raise ExpiredManifest(
            f"manifest {manifest.version} of {channel!r} expired {now - manifest.expires:.0f} s "
            "ago: publish a fresh one, or set this machine's clock"
        )
    _check_order(signed, manifest, trust, keys)
    return manifest


def current_keys(
    trust: TrustState, publisher: PublisherTrust, enclosed: SignedKeyList | None = None
) -> KeyList:
    """The newest key list of those that are known and, if the root signed it, the enclosed one.

    Raises ForgedManifest for an enclosed list that the root did not sign.
    """
    newest = publisher.keys()
    stored = _stored_keys(trust, publisher)
    if stored is not None and stored.version > newest.version:
        newest = stored
    if enclosed is not None:
        offered = _open_keys(enclosed, publisher)
        if offered.version > newest.version:
            newest = offered
    return newest


def newer_key_list(
    signed: SignedManifest, trust: TrustState, publisher: PublisherTrust
) -> SignedKeyList | None:
    """The manifest's key list if it is newer than every one known; it is to be stored at once,
    whatever becomes of the manifest. Raises ForgedManifest."""
    offered = _open_keys(signed.key_list, publisher)
    known = current_keys(trust, publisher)
    return signed.key_list if offered.version > known.version else None


def signer_of(signed: SignedManifest, trust: TrustState, publisher: PublisherTrust) -> bytes:
    """The public key that signed a manifest which `check_manifest` has believed (32 bytes)."""
    return current_keys(trust, publisher, signed.key_list).public_of(signed.key_id)


def payload_sha256(signed: SignedManifest) -> str:
    """The name of exactly this manifest."""
    return hashlib.sha256(signed.payload).hexdigest()


def _open(signed: SignedManifest, keys: KeyList) -> Manifest:
    try:
        return signed.manifest(keys)
    except BadSignature as error:
        raise ForgedManifest(f"the manifest's signature is wrong: {error}") from error
    except SealingError as error:
        raise RevokedKey(
            f"the manifest is signed by a key that may not sign any more: {error}; "
            "publish with a key of the list"
        ) from error
    except ProtocolError as error:
        raise MalformedRelease(
            f"the manifest of key {signed.key_id!r} is wrong: {error}"
        ) from error


def _open_keys(signed: SignedKeyList, publisher: PublisherTrust) -> KeyList:
    try:
        return signed.open(publisher.root_public)
    except ProtocolError as error:
        raise ForgedManifest(
            f"the manifest's key list is not signed by the root key that this device was enrolled "
            f"with: {error}"
        ) from error


def _stored_keys(trust: TrustState, publisher: PublisherTrust) -> KeyList | None:
    """The stored list; one of another root, from before a new enrolment, does not count."""
    if trust.key_list is None:
        return None
    try:
        return trust.key_list.open(publisher.root_public)
    except ProtocolError:
        return None


def _check_order(
    signed: SignedManifest, manifest: Manifest, trust: TrustState, keys: KeyList
) -> None:
    """Nothing older than what was in use, of this key or of another one that is still trusted."""
    signer = keys.public_of(signed.key_id)
    for (channel, other), used in trust.used.items():
        if channel != manifest.channel:
            continue
        if other != signer:
            if other in keys.keys.values() and manifest.created < used.created:
                raise Rollback(
                    f"manifest {manifest.version} of key {signed.key_id!r} is older than manifest "
                    f"{used.version} of another trusted key, which was in use here"
                )
        elif manifest.version < used.version:
            raise Rollback(
                f"manifest {manifest.version} of {channel!r} is older than {used.version}, which "
                "was in use here; to go back, publish the old content under a new version"
            )
        elif manifest.version == used.version and payload_sha256(signed) != used.sha256:
            raise Rollback(
                f"manifest {manifest.version} of {channel!r} is not the {used.version} that was in "
                "use here; each change needs a higher version"
            )


def _to_text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _to_bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
