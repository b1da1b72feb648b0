"""What a starting agent reads with: its release in use, the last good one, or the model it is told.

Inputs: settings, the store of releases. Output: a `Reader`, or None on a device without weights,
and what was given up on the way to it. Neighbours: `service` calls this before anything else runs,
`release_life` when it goes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from broker.log import SafeLog
from edge_agent.settings import NO_MODEL, EdgeSettings
from reader.errors import ReaderError
from reader.model import Reader
from reader.weights import resolve_model_folder
from releases.errors import CannotLoad, ContentError, CrashLoop
from releases.store import ReleaseStore
from releases.store_state import StoreState

DAMAGED = "damaged"
"""The reason of a release that is no longer what was signed; it may be fetched again."""

_log = SafeLog(__name__)


@dataclass(frozen=True)
class GivenUp:
    """A release that was in use and is not any more."""

    release: str
    version: int | None
    reason: str
    reason_code: str


@dataclass(frozen=True)
class Start:
    """What an agent begins with: `given_up` is why it is not the release that was in use last."""

    reader: Reader | None
    given_up: GivenUp | None = None


def open_store(settings: EdgeSettings) -> ReleaseStore | None:
    """The store of releases; None where no channel is followed. Raises StoreError."""
    if settings.releases is None:
        return None
    return ReleaseStore(settings.releases.folder, max_starts=settings.releases.max_starts)


def begin(settings: EdgeSettings, store: ReleaseStore | None) -> Start:
    """The reader to start with; counts a start of a release on probation.

    One that cannot be loaded gives way to the last good one at once; one that was damaged on the
    disk does as well, and may be fetched again. Raises `reader.errors`' errors when even the
    settings' own model cannot be loaded.
    """
    if store is None:
        return Start(load_own_model(settings))
    before = store.state
    store.installed.remove_damaged()
    release, given_up = store.begin_start(), None
    if before.active is not None and release != before.active:
        given_up = _why_not(store, before)
        _log.error("release_given_up", release=before.active, reason=given_up.reason)
    while release is not None:
        version = store.state.version
        try:
            return Start(_load_at_start(settings, store, release), given_up)
        except ContentError as error:
            given_up = GivenUp(release, version, str(error), DAMAGED)
            release = store.go_back()
        except ReaderError as error:
            reason = f"cannot be loaded: {error}"
            given_up = GivenUp(release, version, reason, CannotLoad.reason_code)
            _log.error("release_given_up", release=release, reason=reason)
            release = store.fall_back(reason)
    return Start(load_own_model(settings), given_up)


def load_release(settings: EdgeSettings, store: ReleaseStore, release: str) -> Reader:
    """An installed release, named by channel and version. Raises as `load_installed`."""
    state = store.state
    version = state.version if release == state.active else state.last_good_version
    return load_installed(settings, store.installed.path_of(release), release, version)


def load_installed(
    settings: EdgeSettings, folder: Path, release: str, version: int | None
) -> Reader:
    """A release from its folder, and no other one.

    Raises `reader.errors`' errors; ContentError where the files are not what was signed any more:
    it may be fetched again.
    """
    reader = load_folder(settings, folder, version)
    if reader.digest != release:
        raise ContentError(f"{folder}: its files are no longer those of the release")
    return reader


def load_own_model(settings: EdgeSettings) -> Reader | None:
    """The model that the settings name; None for none. Raises `reader.errors`' errors."""
    if settings.model == NO_MODEL:
        return None
    return load_folder(settings, settings.model, None)


def load_folder(settings: EdgeSettings, model: Path | str, version: int | None) -> Reader:
    """Any model with the engine of the settings; named as a release if it has a version."""
    name = None
    if version is not None and settings.releases is not None:
        name = f"{settings.releases.channel}-{version}"
    return Reader.load(
        model,
        threads=settings.threads,
        engine=settings.engine,
        precision=settings.precision,
        name=name,
    )


def _load_at_start(settings: EdgeSettings, store: ReleaseStore, release: str) -> Reader:
    """As `load_release`; without what the digest does not cover, where it fails with that."""
    try:
        return load_release(settings, store, release)
    except ReaderError:
        if not store.installed.remove_beside(release):
            raise
    return load_release(settings, store, release)


def _why_not(store: ReleaseStore, before: StoreState) -> GivenUp:
    """Why a start did not take the release that was in use."""
    assert before.active is not None  # noqa: S101 - or there was none to give up
    refusal = None if before.manifest is None else store.refusal(before.manifest)
    if refusal is not None:
        return GivenUp(before.active, before.version, refusal, CrashLoop.reason_code)
    reason = "its files were damaged on the device"
    return GivenUp(before.active, before.version, reason, DAMAGED)


def folders_at_hand(settings: EdgeSettings) -> tuple[Path, ...]:
    """Model folders beside the store, whose parts a release need not bring again."""
    if settings.model == NO_MODEL:
        return ()
    try:
        return (resolve_model_folder(settings.model),)
    except ReaderError:  # nobody needs it while a release is in use
        return ()
