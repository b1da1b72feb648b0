"""Blobs on the publisher's disk: a flat folder of files named by their sha256.

In: bytes. Out: their name, a path, a range, a `BlobRef`. The folder can be served as it is by any
web server, for the second transport. Neighbours: `building` writes here, the publisher uploads
from here; what a device has of a blob lies in `chunk_folder`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from protocol.blobs import CHUNK_BYTES, BlobRef
from protocol.checks import check_digest
from releases.errors import ContentError
from releases.files import translated, write_file


class BlobFolder:
    """The blobs under one folder, which is made when it is missing."""

    def __init__(self, folder: Path) -> None:
        """Raises `StoreError` when the folder cannot be made."""
        self.folder = folder
        with translated(f"{folder} cannot be made"):
            folder.mkdir(parents=True, exist_ok=True)

    def put(self, content: bytes) -> str:
        """Keep bytes; returns their sha256. What is there already is not written again.

        Raises `NotEnoughSpace` or `StoreError`.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.has(sha256, len(content)):
            write_file(self.path_of(sha256), content)
        return sha256

    def path_of(self, sha256: str) -> Path:
        """Where the blob lies, or would. Raises `MalformedMessage` for what is no sha256."""
        return self.folder / check_digest("blob sha256", sha256)

    def has(self, sha256: str, length_bytes: int | None = None) -> bool:
        """Whether the blob is here, with this length where one is given."""
        try:
            size = self.path_of(sha256).stat().st_size
        except OSError:
            return False
        return length_bytes is None or size == length_bytes

    def read_range(self, sha256: str, offset: int, length_bytes: int) -> bytes:
        """A range of a blob. Raises `ContentError` when it is not here or ends before that."""
        try:
            with self.path_of(sha256).open("rb") as stream:
                stream.seek(offset)
                content = stream.read(length_bytes)
        except OSError as error:
            raise ContentError(
                f"blob {sha256} cannot be read: {error.strerror}; publish the model again"
            ) from error
        if len(content) != length_bytes:
            raise ContentError(f"blob {sha256} has no bytes {offset}+{length_bytes}")
        return content


def blob_reference(content: bytes) -> BlobRef:
    """The reference to a blob of these bytes, chunk hashes included."""
    view, whole = memoryview(content), hashlib.sha256(content).hexdigest()
    chunks = tuple(
        hashlib.sha256(view[begin : begin + CHUNK_BYTES]).hexdigest()
        for begin in range(0, len(content), CHUNK_BYTES)
    )
    return BlobRef(whole, len(content), chunks if len(chunks) > 1 else ())
