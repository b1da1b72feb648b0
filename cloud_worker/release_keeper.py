"""The life of releases in a worker: heard of, proved, loaded, kept while edges need them, freed.

    follower: manifest -> chunks -> complete folder, verified
    adopt:    canaries in a child -> loaded beside the others -> new requests may name it
    report:   the publisher reads that it is loaded, and only then lets edges take it
    care:     nobody needs it any more -> takes no new requests -> out of memory, off the disk

Inputs: candidates of `releases.follower`, the edges' model states, the store. Outputs: changes of
`Releases`, retained reports, metrics. Neighbours: `agent` owns it, `receive` hands deliveries over.

A worker waits for no rollout order: it has to have a release before the first edge does. Needed are
the settings' own models, the channel's release and the last good one, what is being fetched, and
what a living edge names; what else is here goes when it is idle, or when its place is needed.

Threads: the follower's calls `_adopt`; "elma-keeper" loads what the disk still had and cares; the
intake's calls `take`. All of them load at a lower priority than the one that computes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from broker.exchange import Delivery
from broker.log import SafeLog
from broker.session import Session
from cloud_worker.agreement import AgreementCounter
from cloud_worker.errors import RequestRefused, TooManyReleases, describe_fault
from cloud_worker.living_edges import LivingEdges
from cloud_worker.metrics import WorkerMetrics
from cloud_worker.release_reports import ReleaseReports
from cloud_worker.release_start import give_way, load_installed
from cloud_worker.releases import Releases
from cloud_worker.settings import ReleaseSettings, WorkerSettings
from protocol.errors import ProtocolError
from protocol.release_messages import ModelState
from protocol.topics import ModelStateTopic, parse_topic
from reader.errors import ReaderError
from reader.model import Reader
from reader.weights import resolve_model_folder
from releases.errors import (
    CannotLoad,
    NotEnoughSpace,
    ProofStarved,
    ReleaseError,
    ReleaseRejected,
)
from releases.follower import Candidate, Progress, ReleaseFollower
from releases.proving import Computing, check_in_child
from releases.store import ReleaseStore

CARE_SECONDS = 0.5
SWEEP_SECONDS = 60.0
"""How often it is looked at what nobody needs."""
CATCH_UP_SECONDS = 30.0
"""For so long after its start a worker without the channel's release may yet get any release."""
STOP_SECONDS = 10.0
FAILURES_KEPT = 64
LOAD_AGAIN_SECONDS = (60.0, 3600.0)
"""First and longest wait before what the disk has, and could not be loaded, is tried again."""

_log = SafeLog("elma.worker")


class ReleaseKeeper:
    """One worker's releases; `start` and `stop` once each. Closes the store at its end.

    `clock` is monotonic, `wall_clock` gives unix seconds.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        rules: ReleaseSettings,
        store: ReleaseStore,
        releases: Releases,
        session: Session,
        metrics: WorkerMetrics,
        agreement: AgreementCounter,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises KeyFileError for a publisher file that cannot be used."""
        self._settings, self._rules, self._store = settings, rules, store
        self._releases, self._metrics, self._agreement = releases, metrics, agreement
        self._clock = clock
        self._in_memory = releases.in_memory()
        self._edges = LivingEdges(wall_clock)
        self._reports = ReleaseReports(
            session, settings.name, agreement.snapshot, clock=clock, wall_clock=wall_clock
        )
        self._to_load = [one for one in store.releases() if self._is_worth_loading(one)]
        self._load_at, self._load_pause = clock(), LOAD_AGAIN_SECONDS[0]
        self._failures: dict[str, str] = {}
        self._progress = Progress("init")
        self._began = self._worked_since = clock()
        self._swept_at = clock()
        self._loading = threading.Lock()  # for as long as a load takes
        self._changing = threading.Lock()  # never for long
        self._wake = threading.Event()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="elma-keeper", daemon=True)
        self._session = session
        self._follower = ReleaseFollower(
            session,
            store,
            rules,
            rules.publisher_public_key_file,
            name=settings.name,
            waits_for_order=False,
            keeps_previous=True,
            known_folders=[resolve_model_folder(model) for model in settings.models],
            adopt=self._adopt,
            report=self._note_progress,
            clock=clock,
            wall_clock=wall_clock,
        )
        session.on_subscription_refused = self._follower.subscription_refused

    def start(self) -> None:
        """Begin to follow the channel, and to load what the disk still has."""
        self._thread.start()
        self._follower.start()

    def stop(self) -> None:
        """End what is under way; what has come is kept. A start that ends so was no crash."""
        self._is_stopping.set()
        self._wake.set()
        self._follower.stop()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)
        with suppress(ReleaseError):
            self._store.forgive_start()
        self._store.close()

    def connection_changed(self, is_connected: bool) -> None:
        """For the session's hook. Quick."""
        self._reports.connection_changed(is_connected)
        self._follower.connection_changed(is_connected)
        self._wake.set()

    def take(self, delivery: Delivery) -> bool:
        """Take in a delivery about releases and acknowledge it; False if it is none. Quick."""
        if self._follower.take(delivery):
            return True
        topic = parse_topic(delivery.topic)
        if not isinstance(topic, ModelStateTopic):
            return False
        try:
            state = ModelState.decode(delivery.payload) if delivery.payload else None
            self._edges.note(topic.edge, state)
        except ProtocolError as error:
            _log.warning("model_state_ignored", edge=topic.edge, error_type=type(error).__name__)
        finally:
            self._session.acknowledge(delivery)
        return True

    def is_coming(self, release: str) -> bool:
        """Whether a release that is not loaded may be soon: its requests are worth sending again.

        Called for every request that names an unknown release.
        """
        progress = self._progress
        if release in self._to_load and release not in self._failures:
            return True
        if progress.state in ("active", "failed"):
            return False
        return release == progress.target or self._clock() - self._began < CATCH_UP_SECONDS

    def health(self) -> dict[str, Any]:
        """What is being done about releases, for `GET /healthz`."""
        named = self._edges.named()
        return {
            **self._follower.health(),
            "loading": self._loading_digests(),
            "failed": self._failed(),
            "living_edges": len(self._edges),
            "named_but_not_loaded": sorted(named - self._releases.digests()),
        }

    # -- the follower's thread -------------------------------------------------------------

    def _adopt(self, candidate: Candidate) -> None:
        """Prove a candidate and take it into use beside the others.

        Raises ReleaseRejected where it is no good, another ReleaseError where it may be later.
        """
        with suppress(RequestRefused):
            self._releases.find(candidate.release)  # it is used: nobody takes it for idle
            return
        self._load(candidate.folder, candidate.release, candidate.version)
        self._worked_since = self._clock()
        self._wake.set()

    def _note_progress(self, progress: Progress) -> None:
        """Every change of the follower; any of its failures is counted and told."""
        with self._changing:
            before, self._progress = self._progress, progress
            if progress.target is not None:
                self._failures.pop(progress.target, None)
                if progress.state == "failed":
                    self._failures[progress.target] = progress.reason
                    if len(self._failures) > FAILURES_KEPT:
                        del self._failures[next(iter(self._failures))]
        if progress.state == "failed" and progress != before:
            self._metrics.release_failures.labels(progress.reason_code or "failed").inc()
        self._wake.set()

    # -- loading, on either thread ---------------------------------------------------------

    def _load(self, folder: Path, release: str, version: int | None) -> None:
        """Prove a release and load it beside the others, if there is a place for it.

        Raises ReleaseError.
        """
        try:
            self._releases.check_place(release, self._releases.digests() - self._needed())
        except TooManyReleases as error:
            raise NotEnoughSpace(str(error)) from error
        give_way()
        report = check_in_child(
            folder,
            Computing(self._settings.engine, self._settings.precision),
            is_stopping=self._is_stopping.is_set,
        )
        _log.info("canaries_passed", release=release, seconds=round(report.seconds, 2))
        with self._loading:
            try:
                reader = load_installed(self._settings, folder, release, version)
            except ReaderError as error:
                raise CannotLoad(f"it cannot be loaded here: {error}") from error
            except MemoryError as error:
                raise ProofStarved("there is no memory to load it beside the others") from error
            self._add(reader)
        self._metrics.release_loads.inc()
        _log.info("release_loaded", release=release, releases=self._releases.names())

    def _add(self, reader: Reader) -> None:
        with self._changing:
            may_go = self._releases.digests() - self._needed()
            try:
                gone = self._releases.add(reader, may_go)
            except TooManyReleases as error:
                raise NotEnoughSpace(str(error)) from error
            for release in gone:
                self._let_go(release, "evicted")

    # -- the keeper's thread ---------------------------------------------------------------

    def _work(self) -> None:
        give_way()
        while not self._is_stopping.is_set():
            try:
                self._load_from_disk()
                self._care()
            except Exception as error:
                self._metrics.failures.labels("releases").inc()
                _log.error("release_care_failed", error=f"{describe_fault(error)}: {error}")
            self._wake.wait(CARE_SECONDS)
            self._wake.clear()

    def _load_from_disk(self) -> None:
        """What was here before the worker was started again, one each time.

        Proved like new ones: the last life may have ended between installing and proving. What
        fails for want of time, memory or place is tried again later, after the others.
        """
        if not self._to_load or self._clock() < self._load_at:
            return
        release, *left = self._to_load
        state = self._store.state
        version = state.last_good_version if release == state.last_good else None
        try:
            if release not in self._releases.digests() and self._store.sound(release) is not None:
                self._load(self._store.path_of(release), release, version)
            self._failures.pop(release, None)
            self._load_pause = LOAD_AGAIN_SECONDS[0]
        except ReleaseRejected as error:
            self._note_not_loaded(release, error)
        except ReleaseError as error:
            self._note_not_loaded(release, error)
            self._load_at = self._clock() + self._load_pause
            self._load_pause = min(2 * self._load_pause, LOAD_AGAIN_SECONDS[1])
            is_young = self._clock() - self._began < self._rules.idle_seconds
            if is_young or release in self._needed():
                left.append(release)
        finally:
            self._to_load = left
        if self._to_load:
            self._wake.set()

    def _note_not_loaded(self, release: str, error: ReleaseError) -> None:
        self._metrics.release_failures.labels(error.reason_code).inc()
        self._failures[release] = str(error)
        _log.error("release_not_loaded", release=release, reason=str(error))

    def _care(self) -> None:
        """Confirm what has worked, free what nobody needs, say what has changed."""
        probation = self._store.state.probation
        if (
            probation is not None
            and probation.release == self._store.active
            and self._clock() - self._worked_since >= self._rules.probation_seconds
        ):
            self._store.confirm()
            _log.info("release_confirmed", release=probation.release)
        if self._clock() - self._swept_at >= min(SWEEP_SECONDS, self._rules.idle_seconds):
            self._sweep()
        self._note_freed()
        self._reports.care(
            [one.digest for one in self._releases.loaded()],
            self._loading_digests(),
            self._failed(),
        )

    def _sweep(self) -> None:
        """Retire what is idle and not needed, and remove from the disk what is not loaded."""
        self._swept_at = now = self._clock()
        with self._changing:
            needed = self._needed()
            for one in self._releases.loaded():
                idle_seconds = now - one.last_used
                if one.digest not in needed and idle_seconds >= self._rules.idle_seconds:
                    self._releases.retire(one.digest)
                    self._let_go(one.digest, "idle")
            kept = needed | self._releases.digests() | {*self._to_load}
            for release in self._store.releases():
                if release not in kept:
                    self._store.remove(release)

    def _needed(self) -> frozenset[str]:
        """What may not go, whatever place it takes."""
        state, target = self._store.state, self._progress.target
        channel = {one for one in (state.active, state.last_good, target) if one is not None}
        return self._releases.own | channel | self._edges.named()

    def _let_go(self, release: str, why: str) -> None:
        """A release was retired: off the disk too, and out of the reports."""
        self._metrics.releases_retired.labels(why).inc()
        self._agreement.forget(release)
        _log.info("release_retired", release=release, why=why)
        if self._store.installed(release) is not None:
            self._store.remove(release)

    def _note_freed(self) -> None:
        """Keep the metrics to what is in memory."""
        before, self._in_memory = self._in_memory, self._releases.in_memory()
        for release in before - self._in_memory:
            with suppress(KeyError):  # it never computed
                self._metrics.seconds_per_token.remove(release[:12])
            _log.info("release_freed", release=release)
        self._metrics.show_releases(self._releases.digests())

    # -- what is said ----------------------------------------------------------------------

    def _loading_digests(self) -> list[str]:
        progress, loading = self._progress, list(self._to_load)
        if progress.state in ("downloading", "verified") and progress.target is not None:
            loading.append(progress.target)
        return [one for one in loading if one not in self._releases.digests()]

    def _failed(self) -> dict[str, str]:
        """Release -> reason, of those that are not loaded."""
        loaded = self._releases.digests()
        with self._changing:
            failures = dict(self._failures)
        refused = {one.release: one.reason for one in self._store.state.refused}
        failed = {**refused, **failures}
        return {release: why for release, why in failed.items() if release not in loaded}

    def _is_worth_loading(self, release: str) -> bool:
        """Whether an installed release was in use here, as far as the store knows."""
        refused = {one.release for one in self._store.state.refused}
        return release not in refused and release not in self._releases.digests()
