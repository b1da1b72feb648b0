"""What a device or worker has of releases, on disk, so that it survives a kill at any instant.

    {folder}/lock                    one process at a time
    {folder}/trust.json              `trust.TrustState`
    {folder}/state.json              `StoreState`: what is in use, what was, what is refused
    {folder}/installed/{digest}/     `InstalledFolder`: complete model folders
    {folder}/downloads/{sha256}/{n}  `ChunkFolder`: chunks that have come

In: decisions of `follower` and of the agent around it. Out: which release to run. Each change of
the two JSON files is written beside, synced and renamed. Thread-safe.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from broker.log import SafeLog
from releases.chunk_folder import ChunkFolder
from releases.errors import CrashLoop, ReleaseError, StoreError
from releases.files import PARTIAL_SUFFIX, read_json, remove_tree, translated, write_json
from releases.installed_folder import InstalledFolder
from releases.store_state import Attempt, Refusal, StoreState, read_state
from releases.trust import TrustState

_log = SafeLog("elma.releases")


class ReleaseStore:
    """What a process knows of its releases: `installed` and `downloads` are the folders, the rest
    decides what is in use. Raises StoreError when the folder cannot be had, or is in use.

    `max_starts`: how often a process may start with a release on probation, or die while it takes
    one, before the release is given up.
    """

    def __init__(self, folder: Path, *, max_starts: int = 3) -> None:
        self.folder = folder
        self.downloads = ChunkFolder(folder / "downloads")
        self.installed = InstalledFolder(folder / "installed")
        self._max_starts = max_starts
        self._changes = threading.RLock()
        with translated(f"release store {folder}"):
            for one in (self.installed.folder, self.downloads.folder):
                one.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StoreError(
                f"release store {folder} is in use by another process; stop that, or give this "
                "one a folder of its own"
            ) from error
        try:
            self._trust = TrustState.from_json(
                read_json(folder / "trust.json") or TrustState().to_json()
            )
            self._state = read_state(folder / "state.json")
        except StoreError:
            self.close()
            raise
        self._clear_partial()

    def close(self) -> None:
        """Give the store free for another process. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> ReleaseStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- what is here ----------------------------------------------------------------------

    @property
    def trust(self) -> TrustState:
        """What manifests are checked against."""
        return self._trust

    @property
    def state(self) -> StoreState:
        """A snapshot of what is in use, on probation and refused."""
        return self._state

    @property
    def active(self) -> str | None:
        """The release in use; None before the first."""
        return self._state.active

    def refusal(self, manifest: str) -> str | None:
        """Why exactly this manifest is not tried again; None if nothing speaks against it.

        `manifest`: the sha256 of its signed bytes. Versions would not do: a stolen key, revoked
        since, could have used up those of its successor.
        """
        for one in self._state.refused:
            if one.manifest == manifest:
                return one.reason
        return None

    # -- starts and probation --------------------------------------------------------------

    def begin_start(self) -> str | None:
        """The release to start with, None for none of ours; call once at each start.

        Counts the start while the release is on probation, and goes back to the last good one when
        that happened more than `max_starts` times. A release whose folder is gone is not refused:
        it may be fetched again. A disk that is full does not keep the process from its start.
        """
        with self._changes:
            state, probation = self._state, self._state.probation
            if probation is not None:
                state = state.changed(probation=probation.again())
                if probation.starts >= self._max_starts:
                    reason = f"started {probation.starts} times and never worked long enough"
                    state = self._gone_back(state.refusing_active(reason))
            if state.active is not None and self.installed.find(state.active) is None:
                state = self._gone_back(state)
            if state != self._state:
                self._decide(state)
            return self.active

    def confirm(self) -> None:
        """The release in use has worked for long enough: its probation is over."""
        with self._changes:
            if self._state.probation is not None:
                self._change(probation=None)

    def forgive_start(self) -> None:
        """The process ends on purpose: its start says nothing against a release on probation."""
        with self._changes:
            probation = self._state.probation
            if probation is not None and probation.starts:
                self._change(probation=replace(probation, starts=probation.starts - 1))

    def fall_back(self, reason: str) -> str | None:
        """Refuse the release in use and go back to the last good one, or to none; returns it."""
        with self._changes:
            self._decide(self._gone_back(self._state.refusing_active(reason)))
            return self.active

    def go_back(self) -> str | None:
        """The same without a word against the release: it may be fetched again."""
        with self._changes:
            self._decide(self._gone_back(self._state))
            return self.active

    def _gone_back(self, state: StoreState) -> StoreState:
        good = state.last_good
        return state.gone_back(
            has_last_good=good is not None and self.installed.find(good) is not None
        )

    # -- decisions of the follower ---------------------------------------------------------

    def save_trust(self, trust: TrustState) -> None:
        """Remember; returns when the disk has it."""
        with self._changes:
            self._write("trust.json", trust.to_json())
            self._trust = trust

    def begin_trial(self, release: str, version: int, manifest: str) -> None:
        """Note that the process may die of what comes next. Raises CrashLoop, and refuses the
        manifest, when it did so more than `max_starts` times."""
        with self._changes:
            trial = self._state.trial
            if trial is None or trial.manifest != manifest:
                trial = Attempt(release, version, manifest, 0)
            if trial.starts >= self._max_starts:
                died = f"the process died {trial.starts} times"
                reason = f"{died} while it took this release, or had no time or memory for it"
                self.refuse(release, version, manifest, reason)
                raise CrashLoop(f"release {release[:16]} version {version}: {reason}")
            self._change(trial=trial.again())

    def end_trial(self) -> None:
        """The process survived, whatever became of the release."""
        with self._changes:
            if self._state.trial is not None:
                self._change(trial=None)

    def refuse(self, release: str, version: int, manifest: str, reason: str) -> None:
        """Never try exactly this manifest again."""
        with self._changes:
            self._save(self._state.refusing(Refusal(release, version, manifest, reason)))

    def commit(self, release: str, version: int, manifest: str, expires: float) -> None:
        """`release` is in use now, by the manifest with this sha256; see `StoreState.committed`."""
        with self._changes:
            self._save(self._state.committed(release, version, manifest, expires))

    def order_sequence(self, release: str, rollout_public: bytes) -> int:
        """The highest sequence of the rollout orders that this key gave for a release; 0 for none.

        By key: what a stolen one counted up to says nothing about the next one.
        """
        return self._state.orders.get(_order_name(release, rollout_public), 0)

    def note_order(self, release: str, rollout_public: bytes, sequence: int) -> None:
        """Orders of this key below this one do not count any more."""
        with self._changes:
            if sequence > self.order_sequence(release, rollout_public):
                self._save(self._state.with_order(_order_name(release, rollout_public), sequence))

    # -- folders ---------------------------------------------------------------------------

    def remove(self, release: str) -> None:
        """Remove an installed release that nobody uses; never the one in use or the last good."""
        with self._changes:
            if release in (self._state.active, self._state.last_good):
                raise StoreError(f"release {release[:16]} is in use and cannot be removed")
            self.installed.remove(release)

    def collect(self, keep: Collection[str] = ()) -> None:
        """Remove every installed release but the one in use, the last good one, and `keep`."""
        kept = {self._state.active, self._state.last_good, *keep}
        for release in self.installed.digests():
            if release not in kept:
                self.remove(release)

    # -- the disk --------------------------------------------------------------------------

    def _clear_partial(self) -> None:
        """Remove what an interrupted write or assembly left."""
        self.downloads.clear_partial()
        self.installed.clear_partial()
        for path in self.folder.glob(f"*{PARTIAL_SUFFIX}"):
            remove_tree(path)

    def _change(self, **values: object) -> None:
        self._save(self._state.changed(**values))

    def _decide(self, state: StoreState) -> None:
        """What holds in this process even where the disk cannot have it now."""
        try:
            self._save(state)
        except ReleaseError as error:
            _log.error("release_state_not_saved", why=str(error))
            self._state = state

    def _save(self, state: StoreState) -> None:
        self._write("state.json", state.to_json())
        self._state = state

    def _write(self, name: str, document: dict[str, Any]) -> None:
        if self._lock < 0:
            raise StoreError(f"release store {self.folder} is closed; open it anew")
        write_json(self.folder / name, document)


def _order_name(release: str, rollout_public: bytes) -> str:
    return f"{release}/{rollout_public.hex()}"
