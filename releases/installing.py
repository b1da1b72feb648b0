"""From a believed manifest to a complete folder: what lacks is planned, fetched and put together.

In: a manifest. Out: the release's folder in the store. Neighbours: `planning`, `fetching`,
`assembly` do the steps, `follower` decides which release and what becomes of failures.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from broker.log import SafeLog
from protocol.manifest import BlobRef, Manifest
from reader.weights import DIGESTED_FILES
from releases.architecture import check_architecture
from releases.assembly import assemble, update_beside
from releases.errors import ContentError, DigestMismatch, FetchFailed, TransportFailed
from releases.fetching import ChunkFetcher
from releases.https_transport import HttpsTransport
from releases.mqtt_transport import MqttTransport
from releases.planning import (
    LocalContent,
    Plan,
    check_size,
    check_space,
    lacking,
    missing_indexes,
    plan,
)
from releases.settings import FollowSettings
from releases.store import ReleaseStore
from releases.transport import Transport, WantedChunk

OnProgress = Callable[[int, int], None]
"""Told the bytes that have come, and the bytes that have to come in all."""
_log = SafeLog("elma.releases")


class Installer:
    """Installs releases into `store`. For one thread.

    `known_folders`: model folders beside the store whose files and tensors need not be fetched.
    `free_bytes`: what the disk under a path has free.
    """

    def __init__(
        self,
        store: ReleaseStore,
        settings: FollowSettings,
        known_folders: Sequence[Path],
        mqtt: MqttTransport,
        fetcher: ChunkFetcher,
        *,
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._settings, self._known_folders = store, settings, tuple(known_folders)
        self._mqtt, self._fetcher = mqtt, fetcher
        self._free_bytes, self._clock = free_bytes, clock

    def install(self, manifest: Manifest, on_progress: OnProgress) -> Path:
        """The complete, verified folder of the release; what is here already is not fetched.

        Raises ReleaseRejected, FetchFailed, FetchInterrupted, NotEnoughSpace or StoreError.
        """
        check_architecture(manifest.architecture)
        check_size(manifest, self._settings.max_release_bytes)
        with _Ways(manifest.urls, self._settings, self._mqtt, self._clock) as ways:
            try:
                return self._install(manifest, ways, on_progress)
            except ContentError as first:
                # A chunk may have gone bad on the disk since it was verified: hash all of them
                # again, and fetch what is spoilt. If it still does not fit, it was signed so.
                _log.warning("release_content_wrong", release=manifest.release, why=str(first))
                self._store.downloads.distrust()
            try:
                return self._install(manifest, ways, on_progress)
            except ContentError as error:
                raise DigestMismatch(
                    f"release {manifest.release[:16]} does not fit together as it was signed: "
                    f"{error}; publish it again"
                ) from error

    def fetch_blob(self, blob: BlobRef, urls: Sequence[str]) -> bytes:
        """A small blob by itself."""
        chunks = self._store.downloads
        with _Ways(urls, self._settings, self._mqtt, self._clock) as ways:
            self._fetch(lacking(blob, range(blob.chunk_count), chunks), ways, lambda _: None)
        return chunks.read(blob)

    def _install(self, manifest: Manifest, ways: _Ways, on_progress: OnProgress) -> Path:
        folder = self._store.installed.sound(manifest.release)
        files = [
            file
            for file in manifest.files
            if folder is None or _differs(folder, file.name, file.sha256)
        ]
        if folder is not None and not files:
            return folder
        chunks = self._store.downloads
        installed = [self._store.installed.path_of(one) for one in self._store.installed.digests()]
        local = LocalContent([*installed, *self._known_folders])
        indexes = missing_indexes(files, local, chunks)
        self._fetch(indexes, ways, lambda _: None)
        needed = plan(
            manifest, files, local, chunks, max_release_bytes=self._settings.max_release_bytes
        )
        chunks.keep_only(_blobs_of(manifest, needed))
        check_space(needed, self._free_bytes(self._store.folder))
        self._fetch_counted(needed, sum(one.length_bytes for one in indexes), ways, on_progress)
        if folder is None:
            return assemble(manifest, needed, self._store)
        update_beside(folder, needed, chunks)
        return folder

    def _fetch_counted(
        self, needed: Plan, done_bytes: int, ways: _Ways, on_progress: OnProgress
    ) -> None:
        total_bytes = done_bytes + needed.fetch_bytes
        on_progress(done_bytes, total_bytes)

        def count(more: int) -> None:
            nonlocal done_bytes
            done_bytes += more
            on_progress(done_bytes, total_bytes)

        self._fetch(needed.chunks, ways, count)

    def _fetch(
        self, wanted: Sequence[WantedChunk], ways: _Ways, on_bytes: Callable[[int], None]
    ) -> None:
        """Bring the chunks by the first way that works; the next one gets what is left."""
        chunks = self._store.downloads
        while wanted:
            try:
                self._fetcher.fetch(wanted, ways.current(), on_bytes)
            except FetchFailed as error:
                if not ways.give_up_current():
                    raise
                _log.warning("release_transport_failed", why=str(error))
            wanted = [one for one in wanted if not chunks.has(one.blob, one.chunk)]


class _Ways:
    """The transports that the settings allow for a manifest, best first."""

    def __init__(
        self,
        urls: Sequence[str],
        settings: FollowSettings,
        mqtt: MqttTransport,
        clock: Callable[[], float],
    ) -> None:
        self._https: HttpsTransport | None = None
        self._mqtt = None if settings.transport == "https" else mqtt
        if settings.transport != "mqtt" and (urls or settings.transport == "https"):
            try:
                self._https = HttpsTransport(
                    urls, window=settings.window, ca_file=settings.https_ca_file, clock=clock
                )
            except TransportFailed as error:
                if self._mqtt is None:
                    raise
                _log.warning("release_transport_failed", why=str(error))

    def __enter__(self) -> _Ways:
        return self

    def __exit__(self, *_: object) -> None:
        if self._https is not None:
            self._https.close()

    def current(self) -> Transport:
        """The way to try now."""
        way = self._https or self._mqtt
        if way is None:
            raise TransportFailed("the manifest names no address that works; set transport to auto")
        return way

    def give_up_current(self) -> bool:
        """Go to the next way; False where there is none."""
        if self._https is None or self._mqtt is None:
            return False
        self._https.close()
        self._https = None
        return True


def _differs(folder: Path, name: str, sha256: str) -> bool:
    """Whether a file that the release's digest does not cover is another one in the manifest."""
    if name in DIGESTED_FILES:
        return False
    try:
        return hashlib.sha256((folder / name).read_bytes()).hexdigest() != sha256
    except OSError:
        return True


def _blobs_of(manifest: Manifest, needed: Plan) -> set[str]:
    """Every blob that this release needs chunks of."""
    return {file.source.sha256 for file in manifest.files} | {
        one.blob.sha256 for one in needed.used
    }
