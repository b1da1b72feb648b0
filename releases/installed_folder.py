"""Complete releases on disk, `installed/{digest}/`: each a model folder, renamed into place.

In: assembled folders. Out: the folder of a release, if it is here and still what was signed.
Neighbours: `assembly` puts folders in, `store` says which one is in use and which may go.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from broker.log import SafeLog
from protocol.checks import is_digest
from reader.codecs import LOSSES_FILE
from reader.weights import folder_digest
from releases.errors import StoreError
from releases.files import PARTIAL_SUFFIX, remove_tree, sync_folder, translated

_log = SafeLog("elma.releases")


class InstalledFolder:
    """The releases under one folder. Thread-safe, as far as nobody removes what another puts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_of(self, release: str) -> Path:
        """Where a release's folder lies, or would lie. Raises StoreError for no digest."""
        if not is_digest(release):
            raise StoreError(f"{release[:80]!r} is no digest of a release")
        return self.folder / release

    def find(self, release: str) -> Path | None:
        """The complete folder of a release, or None."""
        path = self.path_of(release)
        return path if path.is_dir() else None

    def digests(self) -> tuple[str, ...]:
        """All releases that are here."""
        found = (path for path in self.folder.iterdir() if path.is_dir())
        return tuple(sorted(path.name for path in found if is_digest(path.name)))

    def sound(self, release: str) -> Path | None:
        """The complete folder of a release; one whose files are no longer what was signed is
        removed, as if it had never been here."""
        path = self.find(release)
        if path is None:
            return None
        with suppress(OSError):  # what cannot be read is damaged as well
            if folder_digest(path) == release:
                return path
        _log.error("release_damaged", release=release)
        self.remove(release)
        return None

    def remove_damaged(self) -> None:
        """Remove every release that is not `sound`."""
        for release in self.digests():
            self.sound(release)

    def remove_beside(self, release: str) -> bool:
        """Remove what a reader loads and the digest does not cover, so that no damage to it speaks
        against the release; the channel's next manifest brings it back. Whether any was there."""
        path = self.path_of(release) / LOSSES_FILE
        with translated(f"{path} cannot be removed"):
            if not path.exists():
                return False
            path.unlink()
            _log.error("release_file_removed", release=release, file=path.name)
            return True

    def put(self, assembled: Path, release: str) -> Path:
        """Move a complete, synced folder into place, in one step."""
        target = self.path_of(release)
        with translated(f"{target} cannot be installed"):
            assembled.rename(target)
            sync_folder(self.folder)
        return target

    def partial_folder(self, release: str) -> Path:
        """Where a release is put together; cleared at each start."""
        return self.path_of(release).with_name(release + PARTIAL_SUFFIX)

    def remove(self, release: str) -> None:
        """Out of sight in one step, and then off the disk; `ReleaseStore.remove` asks first whether
        anybody uses it."""
        path, going = self.path_of(release), self.partial_folder(release)
        if path.is_dir():
            with translated(f"{path} cannot be removed"):
                remove_tree(going)
                path.rename(going)
            remove_tree(going)

    def clear_partial(self) -> None:
        """Remove what an interrupted assembly or removal left."""
        for path in self.folder.glob(f"*{PARTIAL_SUFFIX}"):
            remove_tree(path)
