"""What a way for chunks to come must offer, and what goes in and out of it.

In: chunks that are wanted. Out: bytes that claim to be them; nobody has verified anything here.
Neighbours: `mqtt_transport` and `https_transport` are such ways, `fetching` uses and verifies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from protocol.manifest import BlobRef

ChunkKey = tuple[str, int]
"""sha256 of the blob, number of the chunk."""


@dataclass(frozen=True)
class WantedChunk:
    """A chunk of a blob."""

    blob: BlobRef
    chunk: int

    @property
    def key(self) -> ChunkKey:
        """What its topic names."""
        return self.blob.sha256, self.chunk

    @property
    def length_bytes(self) -> int:
        """How long it must be."""
        return self.blob.chunk_length(self.chunk)

    def __str__(self) -> str:
        return f"chunk {self.chunk} of blob {self.blob.sha256}"


@dataclass(frozen=True)
class Arrival:
    """Bytes that came for a chunk, or the problem that came instead of them."""

    key: ChunkKey
    content: bytes = b""
    problem: str = ""


class Transport(Protocol):
    """A way for chunks to come. `ask`, `arrived` and `forget` are for one thread."""

    @property
    def is_ready(self) -> bool:
        """Whether anything can be asked for now."""

    @property
    def generation(self) -> int:
        """Changes when everything that was asked for has to be asked for again."""

    def ask(self, wanted: WantedChunk) -> bool:
        """Ask for a chunk; False if that was not possible just now."""

    def arrived(self, timeout_seconds: float) -> Arrival | None:
        """The next thing that came, waiting for it at most so long."""

    def forget(self, wanted: WantedChunk) -> None:
        """The chunk is not wanted any more; what still comes of it is dropped."""

    def close(self) -> None:
        """End everything that is under way."""
