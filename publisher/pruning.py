"""What the publisher's own disk may forget: content of releases that nobody goes back to.

In: the store. Out: fewer files. The last `KEPT_ON_DISK` releases of each channel stay, so that a
rollback finds them, and so do the packed copies that they were made of. Neighbours: `making` knows
a release's blobs, `packing` made the copies; `elma publish` calls this last.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from publisher.errors import PublisherStoreError
from publisher.making import blobs_of
from publisher.packing import PACKED_FOLDER
from publisher.store import KEPT_ON_DISK, PublisherStore
from reader.errors import ReaderError
from reader.weights import folder_digest
from releases.blob_folder import blob_reference
from releases.files import remove_tree

LEAST_AGE_SECONDS = 7 * 86_400.0
"""Younger content stays: it may belong to a release that waits for its signature."""


def prune(store: PublisherStore) -> int:
    """Remove blobs, model folders and packed copies of releases that are not kept any more; how
    many. A packed copy that belongs to no release was made for one that was refused, or not yet
    signed."""
    blobs, models = _kept(store)
    removed = [path for path in store.blobs.folder.iterdir() if path.name not in blobs]
    removed += [path for path in (store.folder / "models").iterdir() if path.name not in models]
    old = [path for path in removed if _is_old(path)]
    packed = [path for path in (store.folder / PACKED_FOLDER).glob("*/*") if _is_old(path)]
    unused = [path for path in packed if _release_of(path) not in models]
    for path in (*old, *unused):
        remove_tree(path)
    for path in unused:
        with suppress(OSError):  # it has another copy, of the same weights under another name
            path.parent.rmdir()
    return len(old) + len(unused)


def _kept(store: PublisherStore) -> tuple[set[str], set[str]]:
    """The blobs and the releases that stay."""
    blobs: set[str] = set()
    models: set[str] = set()
    for channel in store.channels():
        releases: set[str] = set()
        for record in reversed(store.channel(channel).records):
            releases.add(record.release)
            if len(releases) > KEPT_ON_DISK:
                break
            models.add(record.release)
            signed = store.signed(channel, record)
            blobs.add(blob_reference(signed.encode()).sha256)
            try:
                blobs.update(one.sha256 for one in blobs_of(store, store.manifest(channel, record)))
            except PublisherStoreError:
                continue  # an index that is gone takes nothing with it
    return blobs, models


def _release_of(folder: Path) -> str | None:
    """The release that a packed folder is; None for one that was not finished."""
    try:
        return folder_digest(folder)
    except (OSError, ReaderError):
        return None


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > LEAST_AGE_SECONDS
    except OSError:
        return False
