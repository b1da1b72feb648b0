"""What lacks of a release, and the cheapest way to have it from what is on this disk already.

In: a manifest, the indexes of its large files, local model folders. Out: a `Plan`: for every file
its steps, the chunks to fetch, the space it takes. Neighbours: `fetching` brings the chunks,
`assembly` follows the steps, `parts` cuts local files the same way as the publisher cut its own.

Nothing is believed about sizes: whatever a manifest or an index would make a device fetch or write
is bounded by `max_release_bytes` before the first byte of it is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ProtocolError
from protocol.file_index import MAX_INDEX_BYTES, FileIndex, FilePart, PartSource, decode_index
from protocol.manifest import CHUNK_BYTES, RELEASE_FILES, BlobRef, Manifest, ReleaseFile
from releases.chunk_folder import ChunkFolder
from releases.deltas import METHODS
from releases.errors import ContentError, MalformedRelease, NotEnoughSpace, TooLarge
from releases.parts import TENSOR_SUFFIX, split_file
from releases.transport import ChunkKey, WantedChunk

SPACE_MARGIN_BYTES = 16 * 1024 * 1024
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class LocalPart:
    """A part within a file on this disk."""

    path: Path
    offset: int
    length_bytes: int


@dataclass(frozen=True)
class PartStep:
    """How one part of a file is had: copied from `local`, or made from `source` in `blob`, with the
    bytes of `base` where the source's method wants them."""

    part: FilePart
    local: LocalPart | None = None
    source: PartSource | None = None
    blob: BlobRef | None = None
    base: LocalPart | None = None


@dataclass(frozen=True)
class FilePlan:
    """How one file is had: whole from `local`, from its blob, or part by part."""

    file: ReleaseFile
    local: Path | None = None
    steps: tuple[PartStep, ...] = ()


@dataclass(frozen=True)
class Plan:
    """`chunks` lack; `used` are all that the files are made of. `space_bytes` is what the disk has
    to have free, chunks and files together."""

    files: tuple[FilePlan, ...]
    chunks: tuple[WantedChunk, ...]
    used: tuple[WantedChunk, ...]
    space_bytes: int

    @property
    def fetch_bytes(self) -> int:
        """What has to come."""
        return sum(one.length_bytes for one in self.chunks)


class LocalContent:
    """Files and parts that are on this disk, by their sha256. Later folders are looked at last."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._paths = [
            folder / name for folder in folders for name in RELEASE_FILES if _is_file(folder / name)
        ]
        self._files: dict[Path, str] = {}
        self._parts: dict[str, LocalPart] | None = None

    def file(self, wanted: ReleaseFile) -> Path | None:
        """A file with exactly this content, whatever its name."""
        for path in self._paths:
            try:
                if path.stat().st_size == wanted.length_bytes and self._hash(path) == wanted.sha256:
                    return path
            except OSError:
                continue
        return None

    def parts(self) -> Mapping[str, LocalPart]:
        """Every part of every file of tensors; cut when first asked for."""
        if self._parts is None:
            self._parts = {}
            for path in self._paths:
                if path.name.endswith(TENSOR_SUFFIX):
                    self._add_parts(path, self._parts)
        return self._parts

    def _add_parts(self, path: Path, parts: dict[str, LocalPart]) -> None:
        try:
            spans = split_file(path)
        except ContentError:  # a broken file of ours only means that more is fetched
            return
        for span in spans:
            parts.setdefault(span.sha256, LocalPart(path, span.offset, span.length_bytes))

    def _hash(self, path: Path) -> str:
        if path not in self._files:
            digest = hashlib.sha256()
            with path.open("rb") as stream:
                while block := stream.read(_READ_BYTES):
                    digest.update(block)
            self._files[path] = digest.hexdigest()
        return self._files[path]


def missing_indexes(
    files: Sequence[ReleaseFile], local: LocalContent, chunks: ChunkFolder
) -> list[WantedChunk]:
    """The chunks of those indexes that are needed: of large files that are not here whole."""
    wanted: list[WantedChunk] = []
    for file in files:
        if file.index is not None and local.file(file) is None:
            if file.index.length_bytes > MAX_INDEX_BYTES:
                raise TooLarge(f"the index of {file.name} has {file.index.length_bytes} bytes")
            wanted += lacking(file.index, range(file.index.chunk_count), chunks)
    return wanted


def plan(
    manifest: Manifest,
    files: Sequence[ReleaseFile],
    local: LocalContent,
    chunks: ChunkFolder,
    *,
    max_release_bytes: int,
) -> Plan:
    """How `files` of the manifest are had, once the indexes are here.

    Raises TooLarge or MalformedRelease.
    """
    check_size(manifest, max_release_bytes)
    plans: list[FilePlan] = []
    used: dict[ChunkKey, WantedChunk] = {}
    for file in files:
        found = local.file(file)
        if found is not None:
            plans.append(FilePlan(file, local=found))
        elif file.blob is not None:
            _use(used, file.blob, 0, file.blob.length_bytes)
            plans.append(FilePlan(file))
        else:
            steps = _part_steps(file, local.parts(), chunks)
            for step in steps:
                if step.source is not None and step.blob is not None:
                    _use(used, step.blob, step.source.offset, step.source.length_bytes)
            plans.append(FilePlan(file, steps=steps))
        if sum(one.length_bytes for one in used.values()) > max_release_bytes + 2 * CHUNK_BYTES:
            raise TooLarge(
                f"release {manifest.release[:16]} would have more than {max_release_bytes} bytes "
                "fetched (max_release_bytes)"
            )
    missing = tuple(one for one in used.values() if not chunks.has(one.blob, one.chunk))
    space = sum(one.length_bytes for one in missing) + sum(one.file.length_bytes for one in plans)
    return Plan(tuple(plans), missing, tuple(used.values()), space + SPACE_MARGIN_BYTES)


def check_size(manifest: Manifest, max_release_bytes: int) -> None:
    """Raise TooLarge for a release that this device does not take."""
    if manifest.total_bytes > max_release_bytes:
        raise TooLarge(
            f"release {manifest.release[:16]} has {manifest.total_bytes} bytes; at most "
            f"{max_release_bytes} are taken here (max_release_bytes)"
        )


def check_space(needed: Plan, free_bytes: int) -> None:
    """Raise NotEnoughSpace where the disk has less free than the plan takes."""
    if needed.space_bytes > free_bytes:
        raise NotEnoughSpace(
            f"the release takes {needed.space_bytes} bytes while it is installed and "
            f"{free_bytes} are free; free some space, it goes on by itself"
        )


def lacking(blob: BlobRef, numbers: Iterable[int], chunks: ChunkFolder) -> list[WantedChunk]:
    """Those of a blob's chunks that are not here."""
    return [WantedChunk(blob, chunk) for chunk in numbers if not chunks.has(blob, chunk)]


def _part_steps(
    file: ReleaseFile, parts: Mapping[str, LocalPart], chunks: ChunkFolder
) -> tuple[PartStep, ...]:
    """The cheapest way to every part of a file with an index."""
    index = _read_index(file, chunks)
    sources: dict[str, list[PartSource]] = {}
    for source in index.sources:
        sources.setdefault(index.parts[source.part].sha256, []).append(source)
    steps = []
    for part in index.parts:
        found = parts.get(part.sha256)
        if found is not None and found.length_bytes == part.length_bytes:
            steps.append(PartStep(part, local=found))
            continue
        usable = [
            source
            for source in sources.get(part.sha256, [])
            if source.method in METHODS and (source.base is None or source.base in parts)
        ]
        if not usable:
            raise MalformedRelease(
                f"{file.name}: this program knows no method by which its parts could be made; "
                "update it"
            )
        best = min(usable, key=lambda source: source.length_bytes)
        base = None if best.base is None else parts[best.base]
        steps.append(PartStep(part, source=best, blob=index.blobs[best.blob], base=base))
    return tuple(steps)


def _read_index(file: ReleaseFile, chunks: ChunkFolder) -> FileIndex:
    assert file.index is not None  # noqa: S101 - the caller asks for files with an index only
    try:
        index = decode_index(chunks.read(file.index))
    except ProtocolError as error:
        raise MalformedRelease(f"the index of {file.name} is wrong: {error}") from error
    if index.length_bytes != file.length_bytes:
        raise MalformedRelease(
            f"the index of {file.name} makes {index.length_bytes} bytes of {file.length_bytes}"
        )
    return index


def _use(used: dict[ChunkKey, WantedChunk], blob: BlobRef, offset: int, length_bytes: int) -> None:
    """Note the chunks that hold a range of a blob."""
    for chunk in range(offset // CHUNK_BYTES, (offset + length_bytes - 1) // CHUNK_BYTES + 1):
        used.setdefault((blob.sha256, chunk), WantedChunk(blob, chunk))


def _is_file(path: Path) -> bool:
    return path.is_file()
