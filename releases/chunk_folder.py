"""Chunks of blobs on disk, `downloads/{sha256}/{n}`: what has come so far of a release.

In: verified chunks. Out: whether a chunk is there, and ranges of a blob. A chunk is written beside
and renamed, but not synced: what a power cut spoils is noticed, because a chunk that is found after
a start is hashed before it counts. Neighbours: `fetching` writes, `planning` and `assembly` read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from protocol.manifest import CHUNK_BYTES, BlobRef
from releases.errors import ContentError
from releases.files import PARTIAL_SUFFIX, remove_tree, translated, write_file


class ChunkFolder:
    """The chunks under one folder. For one thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._verified: set[tuple[str, int]] = set()

    def has(self, blob: BlobRef, chunk: int) -> bool:
        """Whether the chunk lies here with its hash; a spoilt one is removed."""
        key = (blob.sha256, chunk)
        path = self._path(blob.sha256, chunk)
        if key in self._verified and path.is_file():
            return True
        self._verified.discard(key)
        try:
            content = path.read_bytes()
        except OSError:
            return False
        if not chunk_is_right(blob, chunk, content):
            remove_tree(path)
            return False
        self._verified.add(key)
        return True

    def put(self, blob: BlobRef, chunk: int, content: bytes) -> None:
        """Keep a chunk. Raises ContentError for the wrong bytes, NotEnoughSpace, StoreError."""
        if not chunk_is_right(blob, chunk, content):
            raise ContentError(f"chunk {chunk} of blob {blob.sha256} does not have its hash")
        path = self._path(blob.sha256, chunk)
        with translated(f"{path.parent} cannot be made"):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content, durable=False)
        self._verified.add((blob.sha256, chunk))

    def read_range(self, blob: BlobRef, offset: int, length_bytes: int) -> bytes:
        """A range of a blob whose chunks are all here; raises ContentError where one is not."""
        if offset < 0 or length_bytes < 0 or offset + length_bytes > blob.length_bytes:
            raise ContentError(f"blob {blob.sha256} has no bytes {offset}+{length_bytes}")
        pieces: list[bytes] = []
        end = offset + length_bytes
        while offset < end:
            chunk, start = divmod(offset, CHUNK_BYTES)
            wanted = min(CHUNK_BYTES - start, end - offset)
            try:
                with self._path(blob.sha256, chunk).open("rb") as stream:
                    stream.seek(start)
                    piece = stream.read(wanted)
            except OSError as error:
                raise ContentError(f"chunk {chunk} of blob {blob.sha256} is not here") from error
            if len(piece) != wanted:
                raise ContentError(f"chunk {chunk} of blob {blob.sha256} ends too early")
            pieces.append(piece)
            offset += wanted
        return b"".join(pieces)

    def read(self, blob: BlobRef) -> bytes:
        """A whole blob."""
        return self.read_range(blob, 0, blob.length_bytes)

    def distrust(self) -> None:
        """Hash every chunk again before it counts: something did not fit together."""
        self._verified.clear()

    def keep_only(self, blobs: Collection[str]) -> None:
        """Remove the chunks of all blobs but these (sha256)."""
        self._verified = {key for key in self._verified if key[0] in blobs}
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name not in blobs:
                    remove_tree(path)

    def clear_partial(self) -> None:
        """Remove what an interrupted write left behind."""
        for path in self.folder.glob(f"*/*{PARTIAL_SUFFIX}"):
            remove_tree(path)

    def _path(self, sha256: str, chunk: int) -> Path:
        return self.folder / sha256 / str(chunk)


def chunk_is_right(blob: BlobRef, chunk: int, content: bytes) -> bool:
    """Whether `content` has the length and the hash of that chunk."""
    return (
        0 <= chunk < blob.chunk_count
        and len(content) == blob.chunk_length(chunk)
        and hashlib.sha256(content).hexdigest() == blob.chunk_sha256(chunk)
    )
