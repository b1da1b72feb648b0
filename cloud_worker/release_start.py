"""What a starting worker computes with: the models of its settings, and its channel's last release.

Inputs: settings, the store of releases. Output: `Releases`. Neighbours: `agent` calls this before
anything else runs; `release_keeper` loads the other releases that the store has, once it runs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from broker.log import SafeLog
from cloud_worker.releases import Releases
from cloud_worker.settings import WorkerSettings
from reader.errors import ReaderError
from reader.model import Reader
from releases.errors import ContentError
from releases.store import ReleaseStore

NICENESS = 10
_log = SafeLog("elma.worker")


def open_store(settings: WorkerSettings) -> ReleaseStore | None:
    """The store of releases; None where no channel is followed. Raises StoreError."""
    rules = settings.releases
    return None if rules is None else ReleaseStore(rules.folder, max_starts=rules.max_starts)


def load_releases(
    settings: WorkerSettings,
    store: ReleaseStore | None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Releases:
    """What a starting worker computes with: the settings' models, and the channel's last release.

    Counts a start of a release on probation; one that cannot be loaded gives way to the last good
    one. One that was damaged on the disk does as well, and may be fetched again. Raises
    `ModelFolderError` or `EngineError` for the settings' own models.
    """
    max_loaded = None if settings.releases is None else settings.releases.max_loaded
    releases = Releases.load(
        settings.models,
        threads=settings.threads,
        engine=settings.engine,
        precision=settings.precision,
        max_loaded=max_loaded,
        clock=clock,
    )
    if store is None:
        return releases
    store.installed.remove_damaged()
    release = store.begin_start()
    while release is not None:
        try:
            releases.add(_load_at_start(settings, store, release))
            break
        except (ReaderError, ContentError) as error:
            _log.error("release_given_up", release=release, reason=str(error))
            is_damaged = isinstance(error, ContentError)
            release = (
                store.go_back() if is_damaged else store.fall_back(f"cannot be loaded: {error}")
            )
    return releases


def _load_at_start(settings: WorkerSettings, store: ReleaseStore, release: str) -> Reader:
    """The release in use; without what its digest does not cover, where it fails with that."""
    folder, version = store.installed.path_of(release), store.state.version
    try:
        return load_installed(settings, folder, release, version)
    except ReaderError:
        if not store.installed.remove_beside(release):
            raise
    return load_installed(settings, folder, release, version)


def load_installed(
    settings: WorkerSettings, folder: Path, release: str, version: int | None
) -> Reader:
    """A release of the channel, named by channel and version where that is known.

    Raises the errors of `Reader.load`; ContentError where the files are not what was signed any
    more: it may be fetched again.
    """
    name = None
    if version is not None and settings.releases is not None:
        name = f"{settings.releases.channel}-{version}"
    reader = Reader.load(
        folder,
        threads=settings.threads,
        engine=settings.engine,
        precision=settings.precision,
        name=name,
    )
    if reader.digest != release:
        raise ContentError(f"{folder}: its files are no longer those of the release")
    return reader


def give_way() -> None:
    """Run this thread, and those that it or an engine starts from it, after those that compute."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
