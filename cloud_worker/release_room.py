"""Which releases have a place in a worker: who is needed stays, who is not goes.

Inputs: readers that were proved, what living edges name, what the channel has and fetches. Outputs:
changes of `Releases`, folders off the disk, metrics. Neighbours: `release_loading` brings readers,
`release_keeper` says when to sweep and what is coming.

Needed are the settings' own models, the channel's release and the last good one, what is being
fetched, and what a living edge names; what else is here goes when it is idle, or when its place is
needed. Thread-safe.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress

from broker.log import SafeLog
from cloud_worker.agreement import AgreementCounter
from cloud_worker.errors import TooManyReleases
from cloud_worker.living_edges import LivingEdges
from cloud_worker.metrics import WorkerMetrics
from cloud_worker.releases import Releases
from reader.model import Reader
from releases.errors import NotEnoughSpace
from releases.store import ReleaseStore

_log = SafeLog("elma.worker")


class ReleaseRoom:
    """The places of one worker. `idle_seconds`: how long what nobody needs may stay unused."""

    def __init__(
        self,
        store: ReleaseStore,
        releases: Releases,
        edges: LivingEdges,
        metrics: WorkerMetrics,
        agreement: AgreementCounter,
        *,
        idle_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._releases, self._edges = store, releases, edges
        self._metrics, self._agreement = metrics, agreement
        self._idle_seconds, self._clock = idle_seconds, clock
        self._coming: str | None = None
        self._in_memory = releases.in_memory()
        self._changing = threading.Lock()  # never for long

    def expect(self, release: str | None) -> None:
        """What is being fetched from now on."""
        with self._changing:
            self._coming = release

    def needed(self) -> frozenset[str]:
        """What may not go, whatever place it takes."""
        state = self._store.state
        of_channel = (state.active, state.last_good, self._coming)
        channel = {one for one in of_channel if one is not None}
        return self._releases.own | channel | self._edges.named()

    def check_place(self, release: str) -> None:
        """Raise NotEnoughSpace where `add` would: before the work that leads to it."""
        try:
            self._releases.check_place(release, self._releases.digests() - self.needed())
        except TooManyReleases as error:
            raise NotEnoughSpace(str(error)) from error

    def add(self, reader: Reader) -> None:
        """Take a reader into use; what nobody needs goes for its sake. Raises NotEnoughSpace."""
        with self._changing:
            may_go = self._releases.digests() - self.needed()
            try:
                gone = self._releases.add(reader, may_go)
            except TooManyReleases as error:
                raise NotEnoughSpace(str(error)) from error
            for release in gone:
                self._let_go(release, "evicted")

    def sweep(self, waiting: Collection[str]) -> None:
        """Retire what is idle and not needed, and remove from the disk what is neither loaded nor
        `waiting` to be."""
        now = self._clock()
        with self._changing:
            needed = self.needed()
            for one in self._releases.loaded():
                if one.digest not in needed and now - one.last_used >= self._idle_seconds:
                    self._releases.retire(one.digest)
                    self._let_go(one.digest, "idle")
            kept = needed | self._releases.digests() | {*waiting}
            for release in self._store.installed.digests():
                if release not in kept:
                    self._store.remove(release)

    def note_freed(self) -> None:
        """Keep the metrics to what is in memory. For one thread."""
        before, self._in_memory = self._in_memory, self._releases.in_memory()
        for release in before - self._in_memory:
            with suppress(KeyError):  # it never computed
                self._metrics.seconds_per_token.remove(release[:12])
            _log.info("release_freed", release=release)
        self._metrics.show_releases(self._releases.digests())

    def _let_go(self, release: str, why: str) -> None:
        """A release was retired: off the disk too, and out of the reports."""
        self._metrics.releases_retired.labels(why).inc()
        self._agreement.forget(release)
        _log.info("release_retired", release=release, why=why)
        if self._store.installed.find(release) is not None:
            self._store.remove(release)
