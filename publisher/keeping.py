"""Keeps a channel whole at the broker: what it retains is asserted again, and mended on complaint.

In: the store, a `Line`, what devices and workers report. Out: chunks, manifest and order that the
broker retains again. Neighbours: `watching` calls `keep` at each step; `sending` and `upload` have
the steps.

    a new connection, another manifest or order shown  -> samples, and everything that lacks
    a day has passed                                   -> chunks that would expire are renewed
    somebody says that a chunk is wrong or missing     -> all of them read back, the wrong ones sent

Whoever may write to the broker, or report to it, can cause each of these. So they are bounded:
assertions by an `Allowance`, looks through everything by `repair_seconds`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from broker.log import SafeLog
from protocol.manifest import Manifest
from protocol.signing import PublisherTrust
from publisher.errors import StoreBusy
from publisher.fleet import Fleet
from publisher.line import Line
from publisher.metrics import PublisherMetrics
from publisher.sending import Asserted, assert_channel, blobs_for, clear_old, refuse_if_taken
from publisher.sent import SentLog
from publisher.settings import PublisherSettings
from publisher.store import ChannelState, PublisherStore, Record
from publisher.upload import forget_wrong
from releases.errors import ChunkCorrupt, ChunkMissing

ASSERTIONS_AT_ONCE = 4
ASSERTION_SECONDS = 60.0
"""One more each, for a broker that forgets, or a stranger who overwrites, again and again."""
ASSERT_AGAIN_SECONDS = 86_400.0
"""Chunks expire by days."""
SPOILT_CODES = frozenset({ChunkCorrupt.reason_code, ChunkMissing.reason_code})
_log = SafeLog("elma.publisher")

Complaint = tuple[str, ...]


class Allowance:
    """`at_once` times, and one more every `each_seconds`. Times are unix seconds; a clock that goes
    back costs nothing."""

    def __init__(self, at_once: int, each_seconds: float) -> None:
        self._at_once, self._each_seconds = at_once, each_seconds
        self._left, self._counted_at = float(at_once), float("-inf")

    def is_open(self, now: float) -> bool:
        """Whether `take` would be granted."""
        if now > self._counted_at:
            earned = (now - self._counted_at) / self._each_seconds
            self._left = min(self._at_once, self._left + earned)
        self._counted_at = now
        return self._left >= 1.0

    def take(self, now: float) -> None:
        """Use one up."""
        if self.is_open(now):
            self._left -= 1.0


class Keeper:
    """One channel at one broker. `keep` is for one thread, again and again."""

    def __init__(
        self,
        settings: PublisherSettings,
        store: PublisherStore,
        trust: PublisherTrust,
        line: Line,
        metrics: PublisherMetrics,
        *,
        stop: threading.Event,
        wall_clock: Callable[[], float],
    ) -> None:
        self._channel = settings.channel
        self._store, self._trust, self._line, self._metrics = store, trust, line, metrics
        self._stop, self._wall_clock = stop, wall_clock
        self._asserted: tuple[int, str] | None = None
        self._tried: tuple[str, bytes | None] | None = None
        self._asserted_at = 0.0
        self._assertions = Allowance(ASSERTIONS_AT_ONCE, ASSERTION_SECONDS)
        self._repairs = Allowance(1, settings.rollout.repair_seconds)
        self._heard: frozenset[Complaint] = frozenset()
        self._has_told = False

    def keep(self) -> None:
        """Do what is due. Raises PublisherError, ChannelTaken as long as the channel shows a later
        release of another store; the next call tries again, within the bounds."""
        state = self._store.channel(self._channel)
        record = state.current
        if record is None:
            return
        fleet, now = self._line.view.picture(), self._wall_clock()
        manifest = self._store.manifest(self._channel, record)
        refuse_if_taken(self._store, self._channel, fleet, self._trust, manifest)
        found = complaints(fleet, _releases_of(manifest))
        self._heard &= found  # one that was withdrawn and comes again is new
        try:
            if self._is_assertion_due(state, record, fleet, now):
                self._assert(state, record, now)
            if found - self._heard and self._repairs.is_open(now):
                self._repair(record, found, now)
        except StoreBusy:
            if not self._has_told:
                _log.info("rollout_waits_for_publish", channel=self._channel)
            self._has_told = True
            return
        self._has_told = False

    def _is_assertion_due(
        self, state: ChannelState, record: Record, fleet: Fleet, now: float
    ) -> bool:
        """After each new release and order of our own; and as far as the allowance goes after each
        reconnect, when the broker shows something else, and once a day."""
        signed = self._store.signed(self._channel, record)
        is_shown = fleet.manifest is not None and fleet.manifest.payload == signed.payload
        if state.order is not None:
            is_shown &= fleet.order is not None and fleet.order.encode() == state.order.encode()
        is_asserted = self._asserted == (self._line.session.epoch, record.manifest_file)
        is_recent = now - self._asserted_at < ASSERT_AGAIN_SECONDS
        if is_shown and is_asserted and is_recent:
            return False
        return self._tried != _own(state, record) or self._assertions.is_open(now)

    def _assert(self, state: ChannelState, record: Record, now: float) -> None:
        epoch = self._line.session.epoch
        with self._store.publishing():
            self._tried = _own(state, record)
            self._assertions.take(now)
            asserted = self._send()
            cleared = clear_old(self._line, self._store)
        self._asserted, self._asserted_at = (epoch, record.manifest_file), now
        self._metrics.assertions.inc()
        self._metrics.chunks_cleared.inc(cleared)
        if asserted is not None:
            _log.info(
                "channel_asserted",
                channel=self._channel,
                version=record.version,
                chunks_sent=asserted.uploaded.chunks_sent,
                chunks_there=asserted.uploaded.chunks_there,
                chunks_cleared=cleared,
            )

    def _repair(self, record: Record, found: frozenset[Complaint], now: float) -> None:
        """Send again what the broker has otherwise than the store; it may be nothing."""
        with self._store.publishing():
            self._repairs.take(now)
            wanted = blobs_for(self._store, self._channel, record)
            with SentLog(self._store.sent_log(self._line.address)) as log:
                wrong = forget_wrong(self._line, log, wanted, stop=self._stop)
            self._send()
        self._heard = found
        self._metrics.chunks_repaired.inc(wrong)
        _log.warning(
            "channel_repaired" if wrong else "channel_found_whole",
            channel=self._channel,
            version=record.version,
            chunks_wrong=wrong,
            complaints=len(found),
            first=" ".join(min(found)[:2]),
        )

    def _send(self) -> Asserted | None:
        asserted = assert_channel(
            self._line,
            self._store,
            self._channel,
            self._trust,
            stop=self._stop,
            wall_clock=self._wall_clock,
        )
        if asserted is not None:
            self._metrics.chunks_sent.inc(asserted.uploaded.chunks_sent)
            self._metrics.sent_bytes.inc(asserted.uploaded.bytes_sent)
        return asserted


def complaints(fleet: Fleet, releases: Collection[str]) -> frozenset[Complaint]:
    """Who says that he cannot have one of the releases, and when or why.

    Of edges those whose chunks are missing or wrong, a new one each time they have tried again. A
    worker tells no code of its failure, so each of its reasons counts, once.
    """
    edges = {
        ("edge", name, f"{state.updated:f}")
        for name, state in fleet.edges.items()
        if state.state == "failed"
        and state.reason_code in SPOILT_CODES
        and state.target in releases
    }
    workers = {
        ("worker", name, release, reason)
        for name, report in fleet.workers.items()
        for release, reason in report.failed
        if release in releases and release not in report.loaded
    }
    return frozenset(edges | workers)


def _own(state: ChannelState, record: Record) -> tuple[str, bytes | None]:
    """What we want to be shown; only who has the store changes it."""
    return record.manifest_file, None if state.order is None else state.order.encode()


def _releases_of(manifest: Manifest) -> frozenset[str]:
    """What the broker is to have: the channel's release and the one before it."""
    previous = manifest.previous
    return frozenset({manifest.release} | ({previous.release} if previous else set()))
