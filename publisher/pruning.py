"""What the publisher's own disk may forget: content of releases that nobody goes back to.

In: the store. Out: fewer files. The last `KEPT_ON_DISK` releases of each channel stay, so that a
rollback finds them. Neighbours: `making` knows a release's blobs; `elma publish` calls this last.
"""

from __future__ import annotations

import time
from pathlib import Path

from publisher.errors import PublisherStoreError
from publisher.making import blobs_of
from publisher.store import KEPT_ON_DISK, PublisherStore
from releases.blob_folder import blob_reference
from releases.files import remove_tree

LEAST_AGE_SECONDS = 7 * 86_400.0
"""Younger content stays: it may belong to a release that waits for its signature."""


def prune(store: PublisherStore) -> int:
    """Remove blobs and model folders of releases that are not kept any more; how many."""
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
    removed = [path for path in store.blobs.folder.iterdir() if path.name not in blobs]
    removed += [path for path in (store.folder / "models").iterdir() if path.name not in models]
    old = [path for path in removed if _is_old(path)]
    for path in old:
        remove_tree(path)
    return len(old)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > LEAST_AGE_SECONDS
    except OSError:
        return False
