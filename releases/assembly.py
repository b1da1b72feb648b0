"""Makes a model folder of what is on the disk, and lets nobody see it before it is proved.

In: a plan whose chunks are all here. Out: `installed/{digest}`, renamed into place in one step when
every part, every file and the whole folder had their digests and everything was synced. Neighbours:
`planning` says how each file is had, `deltas` makes parts, `store` has the place.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from protocol.manifest import Manifest
from reader.weights import DIGESTED_FILES, folder_digest
from releases.architecture import check_folder_is
from releases.chunk_folder import ChunkFolder
from releases.deltas import WHOLE, apply
from releases.errors import ContentError, DigestMismatch
from releases.files import remove_tree, sync_folder, translated, write_file
from releases.planning import FilePlan, LocalPart, PartStep, Plan
from releases.store import ReleaseStore

_READ_BYTES = 1 << 20


def assemble(manifest: Manifest, needed: Plan, store: ReleaseStore) -> Path:
    """The installed folder of the release.

    Raises ContentError (bytes that are not what was signed), DigestMismatch,
    UnsupportedArchitecture, NotEnoughSpace or StoreError; nothing of it is in sight then.
    """
    partial = store.installed.partial_folder(manifest.release)
    remove_tree(partial)
    try:
        with translated(f"{partial} cannot be made"):
            partial.mkdir()
        for one in needed.files:
            _write(one, partial / one.file.name, store.downloads)
        _check_folder(manifest, partial)
        with translated(f"{partial} cannot be synced"):
            sync_folder(partial)
        return store.installed.put(partial, manifest.release)
    finally:
        remove_tree(partial)


def update_beside(folder: Path, needed: Plan, chunks: ChunkFolder) -> None:
    """Bring files that the release's digest does not cover (canaries, codecs) up to date in an
    installed folder, each in one step."""
    for one in needed.files:
        if one.file.name in DIGESTED_FILES:
            raise DigestMismatch(f"{one.file.name} of an installed release cannot change")
        content = b"".join(_content(one, chunks))
        if hashlib.sha256(content).hexdigest() != one.file.sha256:
            raise ContentError(f"{one.file.name} does not have the hash that was signed")
        write_file(folder / one.file.name, content)


def _check_folder(manifest: Manifest, folder: Path) -> None:
    """The folder is the release that was signed, and the network that was declared."""
    digest = folder_digest(folder)
    if digest != manifest.release:
        raise DigestMismatch(
            f"the assembled files make release {digest[:16]}, the manifest says "
            f"{manifest.release[:16]}: publish it again"
        )
    check_folder_is(manifest.architecture, folder)


def _write(one: FilePlan, target: Path, chunks: ChunkFolder) -> None:
    """Write a file from its pieces and sync it; raises ContentError for the wrong content."""
    digest, length_bytes = hashlib.sha256(), 0
    with translated(f"{target.name} of the release cannot be written"), target.open("xb") as stream:
        for piece in _content(one, chunks):
            length_bytes += len(piece)
            if length_bytes > one.file.length_bytes:
                break
            digest.update(piece)
            stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())
    if length_bytes != one.file.length_bytes or digest.hexdigest() != one.file.sha256:
        raise ContentError(f"{one.file.name} does not have the length and hash that were signed")


def _content(one: FilePlan, chunks: ChunkFolder) -> Iterator[bytes]:
    """The bytes of a file in order."""
    blob = one.file.blob
    if one.local is not None:
        yield from _read(LocalPart(one.local, 0, one.file.length_bytes))
    elif blob is None:
        for step in one.steps:
            yield from _part(step, chunks)
    elif one.file.compression == "none":
        for offset in range(0, blob.length_bytes, _READ_BYTES):
            yield chunks.read_range(blob, offset, min(_READ_BYTES, blob.length_bytes - offset))
    else:
        yield apply(WHOLE, None, chunks.read(blob), one.file.length_bytes)


def _part(step: PartStep, chunks: ChunkFolder) -> Iterator[bytes]:
    """A part's bytes, verified before they are handed on where they were made here."""
    if step.local is not None:
        yield from _read(step.local)
        return
    assert step.source is not None and step.blob is not None  # noqa: S101, PT018 - one of the two ways
    data = chunks.read_range(step.blob, step.source.offset, step.source.length_bytes)
    base = None if step.base is None else b"".join(_read(step.base))
    content = apply(step.source.method, base, data, step.part.length_bytes)
    if hashlib.sha256(content).hexdigest() != step.part.sha256:
        raise ContentError(
            f"part {step.part.sha256} made by {step.source.method} does not have its hash"
        )
    yield content


def _read(part: LocalPart) -> Iterator[bytes]:
    """A range of a local file."""
    left = part.length_bytes
    try:
        with part.path.open("rb") as stream:
            stream.seek(part.offset)
            while left > 0 and (piece := stream.read(min(_READ_BYTES, left))):
                left -= len(piece)
                yield piece
    except OSError as error:
        raise ContentError(f"{part.path} cannot be read any more: {error.strerror}") from error
    if left:
        raise ContentError(f"{part.path} became shorter than it was")
