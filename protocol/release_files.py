"""What a manifest is made of: the release's files, its architecture, and the release before it.

Each checks its fields when it is made, and has its wire form here. Neighbours: `manifest` puts
them together, `blobs` refers to bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from protocol.blobs import BlobRef, blob_from_wire, blob_to_wire
from protocol.checks import (
    check_digest,
    check_integer,
    check_map,
    check_name,
    check_text,
    digest_from_bytes,
    take,
)
from protocol.errors import MalformedMessage
from protocol.signing import MAX_VERSION
from protocol.wire import MAX_LIST_ITEMS

MAX_MANIFEST_BYTES = 128 * 1024
MAX_RELEASE_BYTES = 4 * 1024**3
RELEASE_FILES = (
    "config.json",
    "tokenizer.json",
    "model.safetensors",
    "packed.safetensors",
    "exits.safetensors",
    "exits.json",
    "bottleneck.safetensors",
    "codecs.json",
    "canaries.json",
)
"""All that may stand in a release: a closed set, so no name can lead out of its folder."""

Compression = Literal["none", "zstd"]


@dataclass(frozen=True)
class ReleaseFile:
    """One file of the release: its name, its bytes' length and sha256, and where they come from.

    Either `blob` (the whole file, stored as `compression` says) or `index` (a blob that holds a
    `file_index.FileIndex`, for large files of tensors).
    """

    name: str
    length_bytes: int
    sha256: str
    compression: Compression = "none"
    blob: BlobRef | None = None
    index: BlobRef | None = None

    def __post_init__(self) -> None:
        if self.name not in RELEASE_FILES:
            raise MalformedMessage("a release may hold only files that a model folder has")
        check_integer(f"{self.name} length_bytes", self.length_bytes, 1, MAX_RELEASE_BYTES)
        check_digest(f"{self.name} sha256", self.sha256)
        if self.compression not in ("none", "zstd"):
            raise MalformedMessage(f"{self.name}: compression must be none or zstd")
        if (self.blob is None) == (self.index is None):
            raise MalformedMessage(f"{self.name}: needs either a blob or an index")
        if len(self.source.chunk_hashes) > MAX_LIST_ITEMS:
            raise MalformedMessage(
                f"{self.name}: its blob has over {MAX_LIST_ITEMS} chunks; give it an index"
            )
        if self.compression != "none" and self.blob is None:
            raise MalformedMessage(f"{self.name}: parts of an index have their own compression")
        content = (self.length_bytes, self.sha256)
        stored = self.blob if self.compression == "none" else None
        if stored is not None and (stored.length_bytes, stored.sha256) != content:
            raise MalformedMessage(f"{self.name}: an uncompressed blob must be the file")

    @property
    def source(self) -> BlobRef:
        """The blob or the index, whichever there is."""
        return cast(BlobRef, self.blob or self.index)


@dataclass(frozen=True)
class Architecture:
    """What a reader must be able to run, known before anything is fetched."""

    model_type: str
    layers: int
    groups: int
    hidden_size: int
    heads: int
    intermediate_size: int
    embedding_size: int
    vocab_size: int
    max_positions: int

    def __post_init__(self) -> None:
        check_name("model_type", self.model_type)
        for field, value in vars(self).items():
            if field != "model_type":
                check_integer(field, value, 1, 10_000_000)


@dataclass(frozen=True)
class PreviousRelease:
    """The release before this one: its digest, version, and the blob of its signed manifest."""

    release: str
    version: int
    manifest: BlobRef

    def __post_init__(self) -> None:
        check_digest("previous release", self.release)
        check_integer("previous version", self.version, 1, MAX_VERSION)
        if self.manifest.length_bytes > MAX_MANIFEST_BYTES:
            raise MalformedMessage(f"a previous manifest of over {MAX_MANIFEST_BYTES} bytes")


def file_to_wire(file: ReleaseFile) -> dict[str, Any]:
    """A file as a map."""
    fields: dict[str, Any] = {
        "name": file.name,
        "bytes": file.length_bytes,
        "sha256": bytes.fromhex(file.sha256),
    }
    if file.compression != "none":
        fields["compression"] = file.compression
    fields["index" if file.blob is None else "blob"] = blob_to_wire(file.source)
    return fields


def file_from_wire(fields: dict[str, Any]) -> ReleaseFile:
    """The file in a map. Raises MalformedMessage."""
    name, length_bytes, sha256 = take(fields, "name", "bytes", "sha256")
    blob, index = fields.get("blob"), fields.get("index")
    return ReleaseFile(
        check_text("file name", name, 64),
        length_bytes,
        digest_from_bytes("file sha256", sha256),
        cast(Compression, check_text("compression", fields.get("compression", "none"), 16)),
        None if blob is None else blob_from_wire("blob", blob),
        None if index is None else blob_from_wire("index", index),
    )


def previous_from_wire(value: object) -> PreviousRelease:
    """The previous release in a map. Raises MalformedMessage."""
    release, version, manifest = take(
        check_map("previous", value), "release", "version", "manifest"
    )
    return PreviousRelease(
        digest_from_bytes("previous release", release),
        version,
        blob_from_wire("previous manifest", manifest),
    )


def previous_to_wire(previous: PreviousRelease) -> dict[str, Any]:
    """A previous release as a map."""
    return {
        "release": bytes.fromhex(previous.release),
        "version": previous.version,
        "manifest": blob_to_wire(previous.manifest),
    }


def architecture_from_wire(value: object) -> Architecture:
    """The architecture in a map. Raises MalformedMessage."""
    names = tuple(Architecture.__dataclass_fields__)
    return Architecture(*take(check_map("architecture", value), *names))
