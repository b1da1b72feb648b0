"""Proves releases and loads them beside those that compute; remembers what could not be loaded.

    a new one:               canaries in a child -> loaded -> a place in the room
    what the disk still had:  the same, one at a time; what fails for want of time, memory or
                             place is tried again later, after the others

Inputs: complete folders of the store. Outputs: readers in `release_room`, reasons of failures,
metrics. Neighbour: `release_keeper` calls `load` on the follower's thread and `load_next` on its
own; both run at a lower priority than the one that computes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from broker.log import SafeLog
from cloud_worker.metrics import WorkerMetrics
from cloud_worker.release_room import ReleaseRoom
from cloud_worker.release_start import give_way, load_installed
from cloud_worker.releases import Releases
from cloud_worker.settings import WorkerSettings
from reader.errors import ReaderError
from releases.errors import CannotLoad, ProofStarved, ReleaseError, ReleaseRejected
from releases.proving import Computing, check_in_child
from releases.store import ReleaseStore

FAILURES_KEPT = 64
LOAD_AGAIN_SECONDS = (60.0, 3600.0)
"""First and longest wait before what the disk has, and could not be loaded, is tried again."""

_log = SafeLog("elma.worker")


class ReleaseLoader:
    """One worker's way from a folder to a loaded release. Thread-safe.

    `young_seconds`: for so long after its start it tries again what no edge has named yet.
    `is_stopping` ends a proof that is under way.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        store: ReleaseStore,
        releases: Releases,
        room: ReleaseRoom,
        metrics: WorkerMetrics,
        *,
        young_seconds: float,
        is_stopping: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._store, self._releases = settings, store, releases
        self._room, self._metrics = room, metrics
        self._is_stopping, self._clock = is_stopping, clock
        self._young_until = clock() + young_seconds
        loaded, refused = releases.digests(), self._refused()
        self._waiting = [
            one for one in store.installed.digests() if one not in refused and one not in loaded
        ]
        self._load_at, self._pause = clock(), LOAD_AGAIN_SECONDS[0]
        self._failures: dict[str, str] = {}
        self._noting = threading.Lock()
        self._loading = threading.Lock()  # for as long as a load takes

    @property
    def waiting(self) -> tuple[str, ...]:
        """What the disk had at the start and is yet to be loaded."""
        return tuple(self._waiting)

    def is_hoped_for(self, release: str) -> bool:
        """Whether it waits, and has not failed yet."""
        return release in self._waiting and release not in self._failures

    def failed(self) -> dict[str, str]:
        """Release -> reason, of those that are not loaded."""
        loaded = self._releases.digests()
        with self._noting:
            failed = {**self._refused(), **self._failures}
        return {release: why for release, why in failed.items() if release not in loaded}

    def note(self, release: str, failure: str | None) -> None:
        """Why a release failed just now; None when something newer is done about it."""
        with self._noting:
            self._failures.pop(release, None)
            if failure is not None:
                self._failures[release] = failure
                if len(self._failures) > FAILURES_KEPT:
                    del self._failures[next(iter(self._failures))]

    def load(self, folder: Path, release: str, version: int | None) -> None:
        """Prove a release and load it beside the others, if there is a place for it.

        Raises ReleaseRejected where it is no good, another ReleaseError where it may be later.
        """
        self._room.check_place(release)
        give_way()
        report = check_in_child(
            folder,
            Computing(self._settings.engine, self._settings.precision),
            is_stopping=self._is_stopping,
        )
        _log.info("canaries_passed", release=release, seconds=round(report.seconds, 2))
        with self._loading:
            try:
                reader = load_installed(self._settings, folder, release, version)
            except ReaderError as error:
                raise CannotLoad(f"it cannot be loaded here: {error}") from error
            except MemoryError as error:
                raise ProofStarved("there is no memory to load it beside the others") from error
            self._room.add(reader)
        self._metrics.release_loads.inc()
        _log.info("release_loaded", release=release, releases=self._releases.names())

    def load_next(self) -> bool:
        """Try one of those that wait, if it is time to; whether another can be tried at once.

        Proved like new ones: the last life may have ended between installing and proving.
        """
        if not self._waiting or self._clock() < self._load_at:
            return False
        release, *left = self._waiting
        state = self._store.state
        version = state.last_good_version if release == state.last_good else None
        try:
            if (
                release not in self._releases.digests()
                and self._store.installed.sound(release) is not None
            ):
                self.load(self._store.installed.path_of(release), release, version)
            self.note(release, None)
            self._pause = LOAD_AGAIN_SECONDS[0]
        except ReleaseRejected as error:
            self._note_not_loaded(release, error)
        except ReleaseError as error:
            self._note_not_loaded(release, error)
            self._load_at = self._clock() + self._pause
            self._pause = min(2 * self._pause, LOAD_AGAIN_SECONDS[1])
            if self._clock() < self._young_until or release in self._room.needed():
                left.append(release)
        finally:
            self._waiting = left
        return bool(left)

    def _note_not_loaded(self, release: str, error: ReleaseError) -> None:
        self._metrics.release_failures.labels(error.reason_code).inc()
        self.note(release, str(error))
        _log.error("release_not_loaded", release=release, reason=str(error))

    def _refused(self) -> dict[str, str]:
        return {one.release: one.reason for one in self._store.state.refused}
