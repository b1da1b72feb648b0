"""The releases that a worker has loaded, by their digest; they come and go while it computes.

Inputs: readers, from the settings' models or, as a channel brings them, from `release_keeper`.
Output: the release whose layers continue the states of a request. Neighbours: `receive` looks
releases up, each `HeldRequest` keeps its own until it ends, `resume` computes with it.

    add -> loaded -> retire -> retired -> freed

A loaded release takes new requests. A retired one takes no more, and leaves memory with the last
request that holds it: nothing is interrupted by a change, and nobody counts. Both count against
`max_loaded`, because both take memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

from cloud_worker.errors import CannotCompute, RequestRefused, TooManyReleases, describe_fault
from cloud_worker.pace import Pace, measure_pace
from reader.engines.choosing import cannot_compute
from reader.model import Reader


@dataclass(eq=False)
class LoadedRelease:
    """A release in memory; who computes with it holds it. `last_used` is monotonic seconds."""

    reader: Reader
    pace: Pace
    last_used: float

    @property
    def digest(self) -> str:
        """The digest that requests name."""
        return self.reader.digest


class Releases:
    """Digest -> loaded release. Thread-safe; `clock` is monotonic."""

    def __init__(
        self,
        readers: Sequence[Reader],
        *,
        max_loaded: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Measures the pace of each, which takes a moment.

        Raises TooManyReleases, or CannotCompute for a reader that fails with its engine.

        `max_loaded`: how many may be in memory at once; None for any number.
        """
        self._max_loaded, self._clock = max_loaded, clock
        self._loaded: dict[str, LoadedRelease] = {}
        self._in_memory: WeakValueDictionary[str, LoadedRelease] = WeakValueDictionary()
        self._lock = threading.Lock()
        for reader in readers:
            self.add(reader)
        self.own = frozenset(self._loaded)
        """Those that it was made with."""

    @classmethod
    def load(
        cls,
        models: Sequence[str],
        *,
        threads: int | None = None,
        engine: str = "auto",
        precision: str = "auto",
        max_loaded: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Releases:
        """Load every model.

        Raises `ModelFolderError`, `EngineError`, CannotCompute or TooManyReleases.
        """
        return cls(
            [
                Reader.load(model, threads=threads, engine=engine, precision=precision)
                for model in models
            ],
            max_loaded=max_loaded,
            clock=clock,
        )

    def add(self, reader: Reader, may_go: Collection[str] = ()) -> tuple[str, ...]:
        """Take a release into use; returns the digests of those that were retired for its sake.

        Where `max_loaded` are in memory, the longest unused of `may_go` is retired first. Raises
        TooManyReleases when that leaves no place, CannotCompute where the reader fails: nothing has
        changed then.
        """
        loaded = self._made_ready(reader)
        with self._lock:
            if loaded.digest in self._loaded:
                return ()
            going = self._going_for(loaded.digest, may_go)
            for digest in going:
                del self._loaded[digest]
            loaded.last_used = self._clock()
            self._loaded[loaded.digest] = self._in_memory[loaded.digest] = loaded
            return going

    def check_place(self, release: str, may_go: Collection[str] = ()) -> None:
        """Raise TooManyReleases where `add` would: before the work that leads to it."""
        with self._lock:
            if release not in self._loaded:
                self._going_for(release, may_go)

    def _going_for(self, release: str, may_go: Collection[str]) -> tuple[str, ...]:
        """Who has to be retired for a release. Raises TooManyReleases. Under the lock."""
        others = {*self._in_memory} - {release}
        excess = 0 if self._max_loaded is None else len(others) + 1 - self._max_loaded
        idle = sorted(
            (one for digest, one in self._loaded.items() if digest in may_go),
            key=lambda one: one.last_used,
        )
        if excess > len(idle):
            raise TooManyReleases(
                f"release {release[:12]} finds no place: {len(others)} are in memory, at "
                f"most {self._max_loaded} may be, and {len(others) - len(idle)} of them are "
                "still needed; raise max_loaded if there is memory"
            )
        return tuple(one.digest for one in idle[: max(0, excess)])

    def retire(self, digest: str) -> bool:
        """Let a release take no more requests; whether it was loaded."""
        with self._lock:
            return self._loaded.pop(digest, None) is not None

    def find(self, digest: str) -> LoadedRelease:
        """The release for a request, which is a use of it. Raises RequestRefused."""
        with self._lock:
            loaded = self._loaded.get(digest)
            if loaded is not None:
                loaded.last_used = self._clock()
                return loaded
            known = ", ".join(digest[:12] for digest in self._loaded) or "none"
        raise RequestRefused(
            "unknown_release", f"release {digest[:12]} is not loaded here (loaded: {known})"
        )

    def pace(self, digest: str) -> Pace:
        """How fast a release that is in memory is computed here."""
        with self._lock:
            return self._in_memory[digest].pace

    def loaded(self) -> tuple[LoadedRelease, ...]:
        """Those that take requests, in the order in which they came."""
        with self._lock:
            return tuple(self._loaded.values())

    def in_memory(self) -> frozenset[str]:
        """The digests of those that are loaded, or that a request still holds."""
        with self._lock:
            return frozenset(self._in_memory)

    def digests(self) -> frozenset[str]:
        """The digests of those that take requests."""
        with self._lock:
            return frozenset(self._loaded)

    def engines(self) -> list[str]:
        """Engine, precision and threads of each, for health and logs."""
        choices = [one.reader.engine.choice for one in self.loaded()]
        return [f"{choice.name} {choice.precision} x{choice.threads}" for choice in choices]

    def names(self) -> list[str]:
        """Name and first digits of the digest of each, for health and logs."""
        return [f"{one.reader.name}@{one.digest[:12]}" for one in self.loaded()]

    def _made_ready(self, reader: Reader) -> LoadedRelease:
        """With its pace: measured, or as it is known from a release that computes alike.

        A measurement takes the processors from those who compute, and they from it. A release that
        is still in memory comes back as what it was.
        """
        with self._lock:
            known = self._in_memory.get(reader.digest)
            if known is not None:
                return known
            likes = [
                one.pace
                for one in self._in_memory.values()
                if one.reader.config == reader.config
                and one.reader.engine.choice == reader.engine.choice
            ]
        try:
            pace = likes[0].copy() if likes else measure_pace(reader)
        except MemoryError:
            raise
        except Exception as error:
            fault = describe_fault(error)
            raise CannotCompute(cannot_compute(reader.engine.choice, fault)) from error
        return LoadedRelease(reader, pace, self._clock())
