"""What a device or worker has of releases, on disk, so that it survives a kill at any instant.

    {folder}/lock                    one process at a time
    {folder}/trust.json              `trust.TrustState`
    {folder}/state.json              `StoreState`: what is in use, what was, what is refused
    {folder}/installed/{digest}/     complete model folders, renamed into place
    {folder}/downloads/{sha256}/{n}  chunks that have come

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

from protocol.checks import is_digest
from releases.chunk_folder import ChunkFolder
from releases.errors import CrashLoop, StoreError
from releases.files import (
    PARTIAL_SUFFIX,
    read_json,
    remove_tree,
    sync_folder,
    translated,
    write_json,
)
from releases.store_state import Attempt, Refusal, StoreState
from releases.trust import TrustState

ORDERS_KEPT = 64
REFUSALS_KEPT = 64


class ReleaseStore:
    """The releases in one folder. Raises StoreError when it cannot be had, or is in use.

    `max_starts`: how often a process may start with a release on probation, or die while it takes
    one, before the release is given up.
    """

    def __init__(self, folder: Path, *, max_starts: int = 3) -> None:
        self.folder = folder
        self.downloads = ChunkFolder(folder / "downloads")
        self._installed = folder / "installed"
        self._max_starts = max_starts
        self._changes = threading.RLock()
        with translated(f"release store {folder}"):
            for one in (self._installed, self.downloads.folder):
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
            self._state = StoreState.from_json(read_json(folder / "state.json") or {})
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

    def path_of(self, release: str) -> Path:
        """Where a release's folder lies, or would lie."""
        if not is_digest(release):
            raise StoreError(f"{release[:80]!r} is no digest of a release")
        return self._installed / release

    def installed(self, release: str) -> Path | None:
        """The complete folder of a release, or None."""
        path = self.path_of(release)
        return path if path.is_dir() else None

    def releases(self) -> tuple[str, ...]:
        """The digests of all installed releases."""
        return tuple(sorted(path.name for path in self._installed.iterdir() if _is_release(path)))

    def refusal(self, release: str, version: int) -> str | None:
        """Why exactly this version is not tried again; None if nothing speaks against it."""
        for one in self._state.refused:
            if (one.release, one.version) == (release, version):
                return one.reason
        return None

    # -- starts and probation --------------------------------------------------------------

    def begin_start(self) -> str | None:
        """The release to start with, None for none of ours; call once at each start.

        Counts the start while the release is on probation, and goes back to the last good one when
        that happened more than `max_starts` times. A release whose folder is gone is not refused:
        it may be fetched again.
        """
        with self._changes:
            probation = self._state.probation
            if probation is not None:
                self._change(probation=probation.again())
                if probation.starts >= self._max_starts:
                    return self.fall_back(
                        f"started {probation.starts} times and never worked long enough"
                    )
            if self.active is not None and self.installed(self.active) is None:
                return self._go_back()
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
            state = self._state
            if state.active is not None and state.version is not None:
                self.refuse(state.active, state.version, reason)
            return self._go_back()

    def _go_back(self) -> str | None:
        state, good = self._state, self._state.last_good
        if good is not None and self.installed(good) is None:
            good = None
        self._change(
            active=good,
            version=state.last_good_version if good else None,
            expires=state.last_good_expires if good else None,
            last_good=None,
            last_good_version=None,
            last_good_expires=None,
            probation=None,
        )
        return good

    # -- decisions of the follower ---------------------------------------------------------

    def save_trust(self, trust: TrustState) -> None:
        """Remember; returns when the disk has it."""
        with self._changes:
            write_json(self.folder / "trust.json", trust.to_json())
            self._trust = trust

    def begin_trial(self, release: str, version: int) -> None:
        """Note that the process may die of what comes next. Raises CrashLoop, and refuses the
        release, when it did so more than `max_starts` times."""
        with self._changes:
            trial = self._state.trial
            if trial is None or (trial.release, trial.version) != (release, version):
                trial = Attempt(release, version, 0)
            if trial.starts >= self._max_starts:
                died = f"the process died {trial.starts} times"
                reason = f"{died} while it took this release, or had no time for it"
                self.refuse(release, version, reason)
                raise CrashLoop(f"release {release[:16]} version {version}: {reason}")
            self._change(trial=trial.again())

    def end_trial(self) -> None:
        """The process survived, whatever became of the release."""
        with self._changes:
            if self._state.trial is not None:
                self._change(trial=None)

    def refuse(self, release: str, version: int, reason: str) -> None:
        """Never try exactly this version again."""
        with self._changes:
            kept = [
                one
                for one in self._state.refused
                if (one.release, one.version) != (release, version)
            ]
            kept.append(Refusal(release, version, reason))
            self._change(refused=tuple(kept[-REFUSALS_KEPT:]), trial=None)

    def commit(self, release: str, version: int, expires: float) -> None:
        """`release` is in use now. Another one than before begins its probation, and the one
        before is the last good one, unless it was on probation itself."""
        with self._changes:
            state = self._state
            if release == state.active:
                self._change(version=version, expires=expires, trial=None)
                return
            if state.active is not None and state.probation is None:
                state = state.changed(
                    last_good=state.active,
                    last_good_version=state.version,
                    last_good_expires=state.expires,
                )
            self._save(
                state.changed(
                    active=release,
                    version=version,
                    expires=expires,
                    probation=Attempt(release, version, 0),
                    trial=None,
                )
            )

    def order_sequence(self, release: str) -> int:
        """The highest sequence of a rollout order that was seen for a release; 0 for none."""
        return self._state.orders.get(release, 0)

    def note_order(self, release: str, sequence: int) -> None:
        """Orders below this one do not count any more."""
        with self._changes:
            if sequence > self.order_sequence(release):
                orders = {
                    name: number for name, number in self._state.orders.items() if name != release
                }
                orders[release] = sequence
                kept = list(orders.items())[-ORDERS_KEPT:]
                self._change(orders=dict(kept))

    # -- folders ---------------------------------------------------------------------------

    def install(self, assembled: Path, release: str) -> Path:
        """Move a complete, synced folder into place, in one step."""
        target = self.path_of(release)
        with translated(f"{target} cannot be installed"):
            assembled.rename(target)
            sync_folder(self._installed)
        return target

    def partial_folder(self, release: str) -> Path:
        """Where a release is put together; cleared at each start."""
        return self.path_of(release).with_name(release + PARTIAL_SUFFIX)

    def remove(self, release: str) -> None:
        """Remove an installed release that nobody uses; never the one in use or the last good."""
        with self._changes:
            if release in (self._state.active, self._state.last_good):
                raise StoreError(f"release {release[:16]} is in use and cannot be removed")
            path = self.path_of(release)
            going = self.partial_folder(release)
            if path.is_dir():
                with translated(f"{path} cannot be removed"):
                    remove_tree(going)
                    path.rename(going)
                remove_tree(going)

    def collect(self, keep: Collection[str] = ()) -> None:
        """Remove every installed release but the one in use, the last good one, and `keep`."""
        kept = {self._state.active, self._state.last_good, *keep}
        for release in self.releases():
            if release not in kept:
                self.remove(release)

    def _clear_partial(self) -> None:
        """Remove what an interrupted write or assembly left."""
        self.downloads.clear_partial()
        for folder in (self.folder, self._installed):
            for path in folder.glob(f"*{PARTIAL_SUFFIX}"):
                remove_tree(path)

    def _change(self, **values: object) -> None:
        self._save(self._state.changed(**values))

    def _save(self, state: StoreState) -> None:
        write_json(self.folder / "state.json", state.to_json())
        self._state = state


def _is_release(path: Path) -> bool:
    return is_digest(path.name) and path.is_dir()
