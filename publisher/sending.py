"""A signed release on its way to everybody: chunks, manifest, workers, order, in this order.

In: the store with a pending or current record, a `Line`. Out: what was sent. Every step may be
repeated: what the broker has is not sent again, a manifest and an order are only retained once
more. So a publish that was killed is finished by running it again, and a broker that has lost
everything is filled by the same code. Neighbours: `making` signs, `upload` has the chunks,
`rollout` the orders; `elma publish` and `watching` call.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from broker.exchange import Publication
from protocol.blobs import BlobRef
from protocol.errors import ProtocolError
from protocol.manifest import Manifest, SignedManifest
from protocol.signing import PublisherTrust
from protocol.topics import ManifestTopic
from publisher.errors import ChannelTaken, PublisherStoreError, WorkersNotReady
from publisher.fleet import Fleet
from publisher.line import ACKNOWLEDGE_SECONDS, Line
from publisher.making import blobs_of
from publisher.rollout import publish_order
from publisher.sent import SentLog
from publisher.store import PublisherStore, Record
from publisher.upload import Progress, Uploaded, clear_unused, upload

__all__ = [
    "assert_channel",
    "blobs_for",
    "clear_old",
    "export_blobs",
    "kept_blobs",
    "send_release",
    "wait_for_workers",
]


WORKER_GONE_SECONDS = 86_400.0
"""A worker that has said nothing for longer is not waited for."""


@dataclass(frozen=True)
class Asserted:
    """What the channel retains now, and what that took."""

    uploaded: Uploaded
    manifest_bytes: int


def send_release(
    line: Line,
    store: PublisherStore,
    channel: str,
    record: Record,
    trust: PublisherTrust,
    *,
    progress: Progress | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> Asserted:
    """Upload a record's blobs, then show its manifest; afterwards it is the channel's current one.

    Raises ChannelTaken, UploadFailed, PublisherStoreError.
    """
    signed = store.signed(channel, record)
    refuse_if_taken(store, channel, line.view.picture(), trust, store.manifest(channel, record))
    uploaded = _upload(line, store, channel, record, progress, None, wall_clock)
    content = signed.encode()
    _show_manifest(line, channel, content)
    with store.change(channel) as state:
        state.mark_published(record)
    return Asserted(uploaded, len(content))


def assert_channel(
    line: Line,
    store: PublisherStore,
    channel: str,
    trust: PublisherTrust,
    *,
    stop: threading.Event | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> Asserted | None:
    """Make the broker retain again what the channel's current release needs, and its order.

    None without a release. Raises ChannelTaken, UploadFailed, PublisherStoreError.
    """
    state = store.channel(channel)
    record = state.current
    if record is None:
        return None
    signed = store.signed(channel, record)
    refuse_if_taken(store, channel, line.view.picture(), trust, store.manifest(channel, record))
    uploaded = _upload(line, store, channel, record, None, stop, wall_clock)
    content = signed.encode()
    _show_manifest(line, channel, content)
    state = store.channel(channel)
    is_current = state.current is not None and state.current.version == record.version
    if is_current and state.order is not None:
        publish_order(line, channel, state.order)
    return Asserted(uploaded, len(content))


def wait_for_workers(
    line: Line, release: str, timeout_seconds: float, say: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Return the live workers once each of them has loaded the release.

    Raises WorkersNotReady as soon as one says that it cannot, when time is up, and when none is
    connected although one was lately.
    """
    lacking = line.view.picture().workers_without(release)
    if lacking:
        say(f"waiting for {', '.join(lacking)} to load the release")

    def is_decided(fleet: Fleet) -> bool:
        return bool(fleet.failed_workers(release)) or not fleet.workers_without(release)

    line.view.wait_for(is_decided, timeout_seconds)
    fleet = line.view.picture()
    failed = fleet.failed_workers(release)
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise WorkersNotReady(
            f"no edge was told to take release {release[:12]}, since a worker cannot: {reasons}"
        )
    lacking = fleet.workers_without(release)
    if lacking:
        reasons = "; ".join(
            f"{name} {what or 'knows nothing of it'}" for name, what in lacking.items()
        )
        raise WorkersNotReady(
            f"no edge was told to take release {release[:12]}: after {timeout_seconds:g} seconds "
            f"{reasons}. Run the same command again to wait on, or with --no-wait"
        )
    live = fleet.live_workers()
    lately = time.time() - WORKER_GONE_SECONDS
    gone = sorted(name for name, report in fleet.workers.items() if report.updated > lately)
    if gone and not live:
        raise WorkersNotReady(
            f"no edge was told to take release {release[:12]}: no worker is connected, though "
            f"{', '.join(gone)} was lately. Start one and run the same command again, or with "
            "--no-wait"
        )
    return live


def clear_old(line: Line, store: PublisherStore) -> int:
    """Make the broker forget chunks that no kept release of this store needs; how many."""
    with SentLog(store.sent_log(line.address)) as log:
        return clear_unused(line, log, kept_blobs(store))


def kept_blobs(store: PublisherStore) -> list[BlobRef]:
    """The blobs of each channel's current release, its previous one, and one on its way."""
    blobs: list[BlobRef] = []
    for channel in store.channels():
        state = store.channel(channel)
        for record in (state.current, state.pending):
            if record is not None:
                blobs.extend(blobs_for(store, channel, record))
    return list(dict.fromkeys(blobs))


def blobs_for(store: PublisherStore, channel: str, record: Record) -> list[BlobRef]:
    """What the broker must have for a record: its blobs and those of the release before it."""
    manifest = store.manifest(channel, record)
    blobs = blobs_of(store, manifest)
    previous = manifest.previous
    if previous is not None:
        for one in store.channel(channel).records:
            if (one.version, one.release) == (previous.version, previous.release):
                blobs.extend(_without_missing(store, store.manifest(channel, one)))
    return list(dict.fromkeys(blobs))


def export_blobs(store: PublisherStore, blobs: Iterable[BlobRef], folder: Path) -> int:
    """Copy blobs into a web server's folder, each under its sha256; how many are new."""
    count = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for blob in blobs:
            target = folder / blob.sha256
            if target.is_file() and target.stat().st_size == blob.length_bytes:
                continue
            partial = folder / f".{blob.sha256}.partial"
            shutil.copyfile(store.blobs.path_of(blob.sha256), partial)
            partial.replace(target)
            count += 1
    except OSError as error:
        raise PublisherStoreError(f"cannot export blobs into {folder}: {error}") from error
    return count


def refuse_if_taken(
    store: PublisherStore,
    channel: str,
    fleet: Fleet,
    trust: PublisherTrust,
    manifest: Manifest,
) -> None:
    """Raise ChannelTaken when the channel shows a later release that this store does not know."""
    seen = opened(fleet.manifest, trust)
    if seen is None or seen.channel != channel or seen.created <= manifest.created:
        return
    known = {(one.version, one.release) for one in store.channel(channel).records}
    if (seen.version, seen.release) not in known:
        raise ChannelTaken(
            f"channel {channel} shows version {seen.version} ({seen.release[:12]}), which was made "
            "later and elsewhere; publish from that store, or publish a new version from here"
        )


def opened(signed: SignedManifest | None, trust: PublisherTrust) -> Manifest | None:
    """A manifest as a device would read it; None for none, and for one that none would trust."""
    if signed is None:
        return None
    try:
        return signed.manifest(trust.keys())
    except ProtocolError:
        return None


def _upload(
    line: Line,
    store: PublisherStore,
    channel: str,
    record: Record,
    progress: Progress | None,
    stop: threading.Event | None,
    wall_clock: Callable[[], float],
) -> Uploaded:
    with SentLog(store.sent_log(line.address)) as log:
        return upload(
            line,
            log,
            store.blobs,
            blobs_for(store, channel, record),
            progress=progress,
            stop=stop,
            wall_clock=wall_clock,
        )


def _without_missing(store: PublisherStore, previous: Manifest) -> list[BlobRef]:
    """The blobs of the previous release that are still here, without what came before it."""
    files_only = [file.source for file in previous.files]
    try:
        found = blobs_of(store, previous)
    except PublisherStoreError:
        found = files_only
    before = previous.previous.manifest if previous.previous else None
    return [blob for blob in found if blob != before and store.blobs.has(blob.sha256)]


def _show_manifest(line: Line, channel: str, content: bytes) -> None:
    """Retained, without an expiry of MQTT: the signed one counts."""
    publication = Publication(str(ManifestTopic(channel)), content, 1, True)
    line.send([publication], patience_seconds=ACKNOWLEDGE_SECONDS)
