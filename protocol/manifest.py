"""The manifest: what a release is, in two kilobytes, signed.

It names every file of the model folder by length and sha256 and says from which blob each can be
had; everything bulky is held by hash only. A device that has a file already fetches nothing for
it, so an update of thresholds costs its manifest and one small blob.

    signed manifest = frame(MANIFEST, {key_id, signature, payload, keys, keys_signature},
                            payload bytes, then key list bytes)
    payload         = frame(MANIFEST_BODY, {fields of `Manifest`})

Inputs and outputs: dataclasses on one side, bytes of `topics.ManifestTopic` on the other.
Neighbours: `release_files` has what it is made of, `signing` the keys and their list, `file_index`
the parts of large files, `release_messages` the order to take a release. Whether a manifest is to
be believed (channel, expiry, versions seen before) is the receiver's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from protocol.blobs import CHUNK_BYTES, MAX_BLOB_BYTES, BlobRef
from protocol.checks import (
    check_bytes,
    check_digest,
    check_float,
    check_integer,
    check_list,
    check_maps,
    check_name,
    check_text,
    digest_from_bytes,
    take,
)
from protocol.errors import MalformedMessage, OversizedMessage
from protocol.keys import KEY_BYTES
from protocol.release_files import (
    MAX_MANIFEST_BYTES,
    MAX_RELEASE_BYTES,
    RELEASE_FILES,
    Architecture,
    Compression,
    PreviousRelease,
    ReleaseFile,
    architecture_from_wire,
    file_from_wire,
    file_to_wire,
    previous_from_wire,
    previous_to_wire,
)
from protocol.signing import (
    MAX_KEY_LIST_BYTES,
    MAX_VERSION,
    SIGNATURE_BYTES,
    KeyList,
    SignedKeyList,
    SigningKey,
    verify,
)
from protocol.wire import Kind, decode_frame, encode_frame

__all__ = [
    "CHUNK_BYTES",
    "MAX_BLOB_BYTES",
    "MAX_MANIFEST_BYTES",
    "MAX_RELEASE_BYTES",
    "RELEASE_FILES",
    "Architecture",
    "BlobRef",
    "Compression",
    "Manifest",
    "PreviousRelease",
    "ReleaseFile",
    "SignedManifest",
    "decode_manifest",
    "encode_manifest",
    "sign_manifest",
]

MAX_URLS = 8
MAX_URL_CHARACTERS = 512
MAX_NOTE_CHARACTERS = 500
MAX_UNIX_SECONDS = 2**40


@dataclass(frozen=True)
class Manifest:
    """A release of a channel.

    `version` never goes back for a signing key and channel; `release` is the digest of the model
    folder (64 hexadecimal digits) that requests carry; `created` and `expires` are unix seconds.
    `rollout_public` (32 bytes) is whose rollout orders count. `urls`: where blobs can be had
    beside the broker. `f1`: what the release was measured at on SQuAD 2.0, 0 to 100.
    """

    channel: str
    version: int
    release: str
    name: str
    created: float
    expires: float
    architecture: Architecture
    files: tuple[ReleaseFile, ...]
    rollout_public: bytes
    previous: PreviousRelease | None = None
    urls: tuple[str, ...] = ()
    f1: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        check_name("channel", self.channel)
        check_integer("version", self.version, 1, MAX_VERSION)
        check_digest("release", self.release)
        check_text("name", self.name, 64)
        check_float("created", self.created, 0, MAX_UNIX_SECONDS)
        check_float("expires", self.expires, self.created, MAX_UNIX_SECONDS)
        check_bytes("rollout_public", self.rollout_public, KEY_BYTES, KEY_BYTES)
        check_text("note", self.note, MAX_NOTE_CHARACTERS)
        names = [file.name for file in self.files]
        if not names or len(set(names)) != len(names):
            raise MalformedMessage("a release has files, and none of them twice")
        check_integer("release bytes", self.total_bytes, 1, MAX_RELEASE_BYTES)
        if len(self.urls) > MAX_URLS:
            raise MalformedMessage(f"at most {MAX_URLS} urls, not {len(self.urls)}")
        for url in self.urls:
            check_text("url", url, MAX_URL_CHARACTERS)
        if self.f1 is not None:
            check_float("f1", self.f1, 0.0, 100.0)

    @property
    def total_bytes(self) -> int:
        """The bytes of all files together, as they lie in the folder."""
        return sum(file.length_bytes for file in self.files)


@dataclass(frozen=True)
class SignedManifest:
    """A manifest as it travels: the signed bytes, who signed, and the newest list of keys."""

    payload: bytes
    key_id: str
    signature: bytes
    key_list: SignedKeyList

    def __post_init__(self) -> None:
        check_bytes("manifest", self.payload, 1, MAX_MANIFEST_BYTES)
        check_name("signing key id", self.key_id)
        check_bytes("signature", self.signature, SIGNATURE_BYTES, SIGNATURE_BYTES)

    def manifest(self, key_list: KeyList) -> Manifest:
        """The manifest, if a key of `key_list` signed it.

        Raises RevokedKey, UnknownKeyId, BadSignature or MalformedMessage.
        """
        verify("manifest", self.payload, self.signature, key_list.public_of(self.key_id))
        return decode_manifest(self.payload)

    def encode(self) -> bytes:
        """The bytes for the broker."""
        fields = {
            "key_id": self.key_id,
            "signature": self.signature,
            "payload": len(self.payload),
            "keys": len(self.key_list.payload),
            "keys_signature": self.key_list.signature,
        }
        return encode_frame(Kind.MANIFEST, fields, self.payload + self.key_list.payload)

    @classmethod
    def decode(cls, content: bytes) -> SignedManifest:
        """The signed manifest in `content`, nothing verified yet. Raises MalformedMessage."""
        _check_size(content, MAX_MANIFEST_BYTES + MAX_KEY_LIST_BYTES)
        frame = decode_frame(content, {Kind.MANIFEST})
        key_id, signature, payload_bytes, keys_bytes, keys_signature = take(
            frame.fields, "key_id", "signature", "payload", "keys", "keys_signature"
        )
        check_integer("payload", payload_bytes, 1, MAX_MANIFEST_BYTES)
        check_integer("keys", keys_bytes, 1, MAX_KEY_LIST_BYTES)
        if payload_bytes + keys_bytes != len(frame.attachment):
            raise MalformedMessage("manifest and key list are not as long as the attachment")
        payload = frame.attachment[:payload_bytes]
        keys = SignedKeyList(frame.attachment[payload_bytes:], keys_signature)
        return cls(payload, key_id, signature, keys)


def sign_manifest(manifest: Manifest, key: SigningKey, key_list: SignedKeyList) -> SignedManifest:
    """The manifest, signed by `key`, with the list of keys that it travels with."""
    payload = encode_manifest(manifest)
    return SignedManifest(payload, key.key_id, key.sign("manifest", payload), key_list)


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes that are signed. Raises OversizedMessage where no receiver would take them."""
    fields: dict[str, Any] = dict(vars(manifest))
    fields["release"] = bytes.fromhex(manifest.release)
    fields["architecture"] = dict(vars(manifest.architecture))
    fields["files"] = [file_to_wire(file) for file in manifest.files]
    fields["urls"] = list(manifest.urls)
    if manifest.previous is not None:
        fields["previous"] = previous_to_wire(manifest.previous)
    payload = encode_frame(
        Kind.MANIFEST_BODY, {name: value for name, value in fields.items() if value is not None}
    )
    _check_size(payload, MAX_MANIFEST_BYTES)
    return payload


def decode_manifest(payload: bytes) -> Manifest:
    """The manifest in bytes whose signature was verified. Raises MalformedMessage."""
    _check_size(payload, MAX_MANIFEST_BYTES)
    fields = decode_frame(payload, {Kind.MANIFEST_BODY}).fields
    channel, version, release, name, created, expires, architecture, files, rollout_public = take(
        fields,
        *("channel", "version", "release", "name", "created", "expires", "architecture", "files"),
        "rollout_public",
    )
    previous = fields.get("previous")
    return Manifest(
        channel,
        version,
        digest_from_bytes("release", release),
        name,
        created,
        expires,
        architecture_from_wire(architecture),
        tuple(file_from_wire(one) for one in check_maps("files", files, len(RELEASE_FILES))),
        rollout_public,
        None if previous is None else previous_from_wire(previous),
        tuple(check_list("urls", fields.get("urls", []), MAX_URLS)),
        fields.get("f1"),
        fields.get("note", ""),
    )


def _check_size(content: bytes, limit: int) -> None:
    if len(content) > limit:
        raise OversizedMessage(f"a manifest of {len(content)} bytes; the limit is {limit}")
