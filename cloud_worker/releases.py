"""The releases that a worker has loaded, by their digest.

Inputs: model folders, or names that the reader knows. Output: the reader whose layers continue the
states of a request, and how fast it does so here. Neighbours: `receive` looks releases up, `resume`
runs them, `pace` measures them.
"""

from __future__ import annotations

from collections.abc import Sequence

from cloud_worker.errors import RequestRefused
from cloud_worker.pace import Pace, measure_pace
from reader.model import Reader


class Releases:
    """Digest -> reader; never empty."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        """Measures the pace of each, which takes a moment."""
        self._readers = {reader.digest: reader for reader in readers}
        self._paces = {digest: measure_pace(reader) for digest, reader in self._readers.items()}

    @classmethod
    def load(
        cls,
        models: Sequence[str],
        *,
        threads: int | None = None,
        engine: str = "auto",
        precision: str = "auto",
    ) -> Releases:
        """Load every model. Raises `reader.errors.ModelFolderError` or `EngineError`."""
        return cls(
            [
                Reader.load(model, threads=threads, engine=engine, precision=precision)
                for model in models
            ]
        )

    def find(self, digest: str) -> Reader:
        """The reader of a release. Raises RequestRefused."""
        reader = self._readers.get(digest)
        if reader is None:
            known = ", ".join(digest[:12] for digest in self._readers)
            raise RequestRefused(
                "unknown_release", f"release {digest[:12]} is not loaded here (loaded: {known})"
            )
        return reader

    def pace(self, digest: str) -> Pace:
        """How fast a loaded release is computed here."""
        return self._paces[digest]

    def engines(self) -> list[str]:
        """Engine, precision and threads of each, for health and logs."""
        choices = [reader.engine.choice for reader in self._readers.values()]
        return [f"{choice.name} {choice.precision} x{choice.threads}" for choice in choices]

    def names(self) -> list[str]:
        """Name and first digits of the digest of each, for health and logs."""
        return [f"{reader.name}@{digest[:12]}" for digest, reader in self._readers.items()]
