"""A model folder as what is uploaded: files, indexes and packs of parts.

In: a folder, canaries, the folders that devices have, the indexes that were published before. Out:
`Contents`, with every blob in the publisher's `BlobFolder`. Neighbours: `parts` cuts, `deltas`
encodes, the publisher signs the files into a manifest and uploads the blobs.

New parts of all files together go into one pack, and their differences into one pack for each
base, so that a device fetches few chunks: all of one pack, next to each other. What an earlier
release has uploaded stays where it is and is pointed to. In the pack of whole parts those come
first which some base has no difference for.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from protocol.file_index import FileIndex, FilePart, PartSource, encode_index
from protocol.manifest import RELEASE_FILES, BlobRef, ReleaseFile
from releases.blob_folder import BlobFolder, blob_reference
from releases.deltas import MAX_APPLIED_BYTES, Content, Encoded, encode_difference, encode_whole
from releases.errors import ContentError
from releases.parts import TENSOR_SUFFIX, PartSpan, split_file

CANARIES_FILE = "canaries.json"
INDEXED_BYTES = 16 * 1024
"""A file of tensors from this size on is sent by parts."""
DIFFERENCE_SHARE = 0.9
"""A difference is worth its entry in the index if it is at most this share of the whole part."""
_WHOLE = -1
_HASH_BYTES = 32
MAX_EARLIER_BLOBS = 64
"""An index points into at most so many earlier packs; the rest of an old release is packed anew."""


@dataclass(frozen=True)
class Figures:
    """What became of the parts. Bytes on the wire by method ("patch"), by base (the number in
    `bases`), and of all whole parts; parts that stayed where they were."""

    parts: int
    reused_parts: int
    whole_bytes: int
    bytes_by_method: Mapping[str, int]
    difference_bytes: tuple[int, ...]


@dataclass(frozen=True)
class Contents:
    """The files of a release, every blob that it needs, and the bytes that are new in `blobs`."""

    files: tuple[ReleaseFile, ...]
    blobs: tuple[BlobRef, ...]
    new_bytes: int
    figures: Figures


def build_contents(
    folder: Path,
    canaries: bytes,
    *,
    blobs: BlobFolder,
    bases: Sequence[Path] = (),
    earlier: Sequence[FileIndex] = (),
) -> Contents:
    """Put everything of a release into `blobs`.

    `canaries` becomes canaries.json (b"" for none). `bases` are model folders that devices have;
    `earlier` the indexes whose blobs are uploaded already.
    Raises `ContentError` for a folder that cannot be read or is empty, `NotEnoughSpace`,
    `StoreError`.
    """
    paths = [folder / name for name in RELEASE_FILES if name != CANARIES_FILE]
    paths = [path for path in paths if path.is_file() and path.stat().st_size]
    if not paths:
        raise ContentError(f"{folder} holds no file of a model; give another folder")
    indexed = {path: _File(path, bases, earlier) for path in paths if _is_indexed(path)}
    builder = _Builder(list(indexed.values()), len(bases))
    uploads = _Uploads(blobs)
    packs = builder.packs(uploads)
    files = []
    for path in paths:
        if path in indexed:
            index = builder.index(indexed[path], packs)
            uploads.blobs.update((blob.sha256, blob) for blob in index.blobs)
            files.append(_indexed_file(path, uploads.put(encode_index(index))))
        else:
            files.append(_whole_file(path.name, _read(path), uploads))
    if canaries:
        files.append(_whole_file(CANARIES_FILE, canaries, uploads))
    return Contents(
        tuple(files), tuple(uploads.blobs.values()), uploads.new_bytes, builder.figures()
    )


class _Uploads:
    """The blobs that a release needs, and how many bytes the folder did not have before."""

    def __init__(self, folder: BlobFolder) -> None:
        self._folder = folder
        self.blobs: dict[str, BlobRef] = {}
        self.new_bytes = 0

    def put(self, content: bytes) -> BlobRef:
        """Keep a blob."""
        reference = blob_reference(content)
        if not self._folder.has(reference.sha256, len(content)):
            self._folder.put(content)
            self.new_bytes += len(content)
        return self.blobs.setdefault(reference.sha256, reference)


class _File:
    """An indexed file: its parts, those of the same file in each base, and the sources of its
    parts that earlier releases have."""

    def __init__(self, path: Path, bases: Sequence[Path], earlier: Sequence[FileIndex]) -> None:
        self.path = path
        self.spans = split_file(path)
        self.base_paths = [base / path.name for base in bases]
        self.bases = [_spans_by_name(base) for base in self.base_paths]
        wanted = {span.sha256 for span in self.spans}
        held = {span.sha256 for base in self.bases for span in base.values()}
        self.earlier = _earlier_sources(wanted, held, earlier)


@dataclass
class _Source:
    """Encoded bytes of a part, and where they will lie; `pack` is a base's number or `_WHOLE`."""

    part: str
    encoded: Encoded
    pack: int
    offset: int = 0


class _Builder:
    """New sources for all parts of all indexed files that earlier releases lack."""

    def __init__(self, files: Sequence[_File], base_count: int) -> None:
        self._files = files
        self._held = [
            {span.sha256 for file in files for span in file.bases[number].values()}
            for number in range(base_count)
        ]
        self._new: dict[str, dict[str | None, _Source]] = {}
        self._lacking: set[str] = set()
        for file in files:
            with _opened(file.path) as read:
                for span in file.spans:
                    self._encode_part(file, span, read)

    def _encode_part(self, file: _File, span: PartSpan, read: Callable[[PartSpan], bytes]) -> None:
        """The part whole, and its differences, as far as they are neither here nor there yet."""
        new = self._new.setdefault(span.sha256, {})
        lengths = {one.base: one.length_bytes for one, _ in file.earlier.get(span.sha256, [])}
        lengths |= {base: len(one.encoded.data) for base, one in new.items()}
        if None not in lengths:
            whole = encode_whole(read(span))
            new[None] = _Source(span.sha256, whole, _WHOLE)
            lengths[None] = len(whole.data)
        for number, held in enumerate(self._held):
            base = file.bases[number].get(span.name)
            if span.sha256 in held or (base is not None and base.sha256 in lengths):
                continue
            if base is not None:
                difference = _encode_difference(span, read, base, file.base_paths[number])
                if len(difference.data) <= DIFFERENCE_SHARE * lengths[None]:
                    lengths[base.sha256] = len(difference.data)
                    new[base.sha256] = _Source(span.sha256, difference, number)
                    continue
            self._lacking.add(span.sha256)

    def packs(self, uploads: _Uploads) -> dict[int, BlobRef]:
        """Lay the new sources out, one pack for whole parts and one for each base."""
        packs: dict[int, BlobRef] = {}
        for pack in sorted({source.pack for source in self._sources()}):
            content = bytearray()
            chosen = [source for source in self._sources() if source.pack == pack]
            for source in sorted(chosen, key=lambda one: one.part not in self._lacking):
                source.offset = len(content)
                content += source.encoded.data
            packs[pack] = uploads.put(bytes(content))
        return packs

    def index(self, file: _File, packs: Mapping[int, BlobRef]) -> FileIndex:
        """The index of a file, once the packs are laid out."""
        blobs: list[BlobRef] = []
        sources: list[PartSource] = []

        def add(part: int, encoded: tuple[str, str | None], blob: BlobRef, *span: int) -> None:
            if blob not in blobs:
                blobs.append(blob)
            sources.append(PartSource(part, *encoded, blobs.index(blob), *span))

        seen: set[str] = set()
        for part, sha256 in enumerate(span.sha256 for span in file.spans):
            if sha256 in seen:
                continue
            seen.add(sha256)
            for source, blob in file.earlier.get(sha256, []):
                add(part, (source.method, source.base), blob, source.offset, source.length_bytes)
            for new in self._new[sha256].values():
                encoded = (new.encoded.method, new.encoded.base)
                add(part, encoded, packs[new.pack], new.offset, len(new.encoded.data))
        parts = tuple(FilePart(span.sha256, span.length_bytes) for span in file.spans)
        return FileIndex(parts, tuple(blobs), tuple(sources))

    def figures(self) -> Figures:
        """Counted over the new sources."""
        methods: Counter[str] = Counter()
        packs: Counter[int] = Counter()
        for source in self._sources():
            methods[source.encoded.method] += len(source.encoded.data)
            packs[source.pack] += len(source.encoded.data)
        parts = {span.sha256 for file in self._files for span in file.spans}
        return Figures(
            len(parts),
            sum(None not in self._new[part] for part in parts),
            packs[_WHOLE],
            dict(methods),
            tuple(packs[number] for number in range(len(self._held))),
        )

    def _sources(self) -> Iterator[_Source]:
        return (source for sources in self._new.values() for source in sources.values())


def _earlier_sources(
    wanted: set[str], held: set[str], earlier: Sequence[FileIndex]
) -> dict[str, list[tuple[PartSource, BlobRef]]]:
    """For each wanted part that earlier releases have whole: its sources there and their blobs.

    Left behind are differences against bases that nobody holds any more, and blobs of which so
    little is wanted that their hashes in the index would cost more.
    """
    found: dict[str, dict[str | None, tuple[PartSource, BlobRef]]] = {}
    for index in earlier:
        for source in index.sources:
            sha256, blob = index.parts[source.part].sha256, index.blobs[source.blob]
            if sha256 in wanted and (source.base is None or source.base in held):
                found.setdefault(sha256, {}).setdefault(source.base, (source, blob))
    bytes_of: Counter[BlobRef] = Counter()
    for sources in found.values():
        for source, blob in sources.values():
            bytes_of[blob] += source.length_bytes
    kept = {
        blob
        for blob, wanted_bytes in bytes_of.most_common(MAX_EARLIER_BLOBS)
        if wanted_bytes > _HASH_BYTES * blob.chunk_count
    }
    usable = {
        sha256: [one for one in sources.values() if one[1] in kept]
        for sha256, sources in found.items()
    }
    return {
        sha256: sources
        for sha256, sources in usable.items()
        if any(source.base is None for source, _ in sources)
    }


def _encode_difference(
    span: PartSpan, read: Callable[[PartSpan], bytes], base: PartSpan, base_path: Path
) -> Encoded:
    with _opened(base_path) as read_base:
        was = Content(base.sha256, read_base(base), base.layout)
    return encode_difference(Content(span.sha256, read(span), span.layout), was)


def _indexed_file(path: Path, index: BlobRef) -> ReleaseFile:
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return ReleaseFile(path.name, path.stat().st_size, sha256, index=index)


def _whole_file(name: str, content: bytes, uploads: _Uploads) -> ReleaseFile:
    """A file as a blob of its own, compressed when that is smaller."""
    if len(content) > MAX_APPLIED_BYTES:
        raise ContentError(f"{name} has over {MAX_APPLIED_BYTES} bytes; no device would take it")
    sha256, packed = hashlib.sha256(content).hexdigest(), encode_whole(content).data
    if len(packed) < len(content):
        return ReleaseFile(name, len(content), sha256, "zstd", blob=uploads.put(packed))
    return ReleaseFile(name, len(content), sha256, blob=uploads.put(content))


def _is_indexed(path: Path) -> bool:
    return path.name.endswith(TENSOR_SUFFIX) and path.stat().st_size >= INDEXED_BYTES


def _spans_by_name(path: Path) -> dict[str, PartSpan]:
    """The parts of a base's file; none where it has no such file."""
    return {span.name: span for span in split_file(path)} if path.is_file() else {}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ContentError(f"{path} cannot be read: {error.strerror}") from error


@contextmanager
def _opened(path: Path) -> Iterator[Callable[[PartSpan], bytes]]:
    """Reads parts of a file; raises `ContentError` for one that is not what it was."""

    def read(span: PartSpan) -> bytes:
        stream.seek(span.offset)
        content = stream.read(span.length_bytes)
        if hashlib.sha256(content).hexdigest() != span.sha256:
            raise ContentError(f"{path} changed while it was read; try again")
        return content

    try:
        with path.open("rb") as stream:
            yield read
    except OSError as error:
        raise ContentError(f"{path} cannot be read: {error.strerror}") from error
