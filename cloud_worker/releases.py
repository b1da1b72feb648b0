"""The releases that a worker has loaded, by their digest.

Inputs: model folders, or names that the reader knows. Output: the reader whose layers continue the
states of a request. Neighbours: `receive` looks releases up, `resume` runs them.
"""

from __future__ import annotations

from collections.abc import Sequence

from cloud_worker.errors import RequestRefused
from reader.model import Reader


class Releases:
    """Digest -> reader; never empty."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self._readers = {reader.digest: reader for reader in readers}

    @classmethod
    def load(cls, models: Sequence[str], *, threads: int | None) -> Releases:
        """Load every model. Raises `reader.errors.ModelFolderError`."""
        return cls([Reader.load(model, threads=threads) for model in models])

    def find(self, digest: str) -> Reader:
        """The reader of a release. Raises RequestRefused."""
        reader = self._readers.get(digest)
        if reader is None:
            known = ", ".join(digest[:12] for digest in self._readers)
            raise RequestRefused(
                "unknown_release", f"release {digest[:12]} is not loaded here (loaded: {known})"
            )
        return reader

    def names(self) -> list[str]:
        """Name and first digits of the digest of each, for health and logs."""
        return [f"{reader.name}@{digest[:12]}" for digest, reader in self._readers.items()]
