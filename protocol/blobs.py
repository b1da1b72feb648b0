"""A reference to bytes by their content: a blob, its length and the hashes of its chunks.

A blob travels as chunks of 256 KiB, each a retained message of its own (`topics.BlobTopic`) or a
byte range of an HTTPS download. Every chunk has a hash in something that was signed, so a wrong
one is noticed before it is stored. Neighbours: `manifest` and `file_index` hold references.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.checks import check_digest, check_integer, check_list, digest_from_bytes
from protocol.errors import MalformedMessage

CHUNK_BYTES = 256 * 1024
MAX_BLOB_BYTES = 2 * 1024**3
MAX_BLOB_CHUNKS = MAX_BLOB_BYTES // CHUNK_BYTES


@dataclass(frozen=True)
class BlobRef:
    """A blob of `length_bytes` with this sha256 (hexadecimal).

    `chunk_hashes`: the sha256 of each chunk in order; empty when the blob is one chunk, whose
    hash is the blob's.
    """

    sha256: str
    length_bytes: int
    chunk_hashes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_digest("blob sha256", self.sha256)
        check_integer("blob length_bytes", self.length_bytes, 1, MAX_BLOB_BYTES)
        expected = 0 if self.chunk_count == 1 else self.chunk_count
        if len(self.chunk_hashes) != expected:
            raise MalformedMessage(
                f"a blob of {self.length_bytes} bytes has {expected} chunk hashes, "
                f"not {len(self.chunk_hashes)}"
            )
        for one in self.chunk_hashes:
            check_digest("chunk sha256", one)

    @property
    def chunk_count(self) -> int:
        """How many chunks the blob has, at least 1."""
        return self.count_chunks(self.length_bytes)

    @staticmethod
    def count_chunks(length_bytes: int) -> int:
        """How many chunks a blob of this length has."""
        return -(-length_bytes // CHUNK_BYTES)

    def chunk_sha256(self, chunk: int) -> str:
        """The hash of a chunk, counted from 0. Raises MalformedMessage out of range."""
        self._check_chunk(chunk)
        return self.chunk_hashes[chunk] if self.chunk_hashes else self.sha256

    def chunk_length(self, chunk: int) -> int:
        """The bytes of a chunk; only the last may be short. Raises MalformedMessage."""
        self._check_chunk(chunk)
        return min(CHUNK_BYTES, self.length_bytes - chunk * CHUNK_BYTES)

    def _check_chunk(self, chunk: int) -> None:
        check_integer(f"chunk of blob {self.sha256[:16]}", chunk, 0, self.chunk_count - 1)


def blob_to_wire(blob: BlobRef) -> list[object]:
    """[sha256, length] and, for more than one chunk, the list of their hashes; hashes as bytes."""
    fields: list[object] = [bytes.fromhex(blob.sha256), blob.length_bytes]
    if blob.chunk_hashes:
        fields.append([bytes.fromhex(one) for one in blob.chunk_hashes])
    return fields


def blob_from_wire(field: str, value: object) -> BlobRef:
    """The reference that `blob_to_wire` made. Raises MalformedMessage."""
    fields = check_list(field, value, 8, 2)
    hashes = check_list(f"{field} chunks", fields[2], MAX_BLOB_CHUNKS) if len(fields) > 2 else []
    return BlobRef(
        digest_from_bytes(f"{field} sha256", fields[0]),
        fields[1],
        tuple(digest_from_bytes(f"{field} chunk", one) for one in hashes),
    )
