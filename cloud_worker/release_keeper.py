"""The life of releases in a worker: heard of, proved, loaded, kept while edges need them, freed.

    follower: manifest -> chunks -> complete folder, verified
    adopt:    canaries in a child -> loaded beside the others -> new requests may name it
    report:   the publisher reads that it is loaded, and only then lets edges take it
    care:     nobody needs it any more -> takes no new requests -> out of memory, off the disk

Inputs: candidates of `releases.follower`, the edges' model states, the store. Outputs: changes of
`Releases`, retained reports, metrics. Neighbours: `agent` owns it, `receive` hands deliveries over,
`release_loading` proves and loads, `release_room` decides who stays.

A worker waits for no rollout order: it has to have a release before the first edge does.

Threads: the follower's calls `_adopt` and `_note_progress`; "elma-keeper" loads what the disk still
had and cares; the intake's calls `take`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from broker.exchange import Delivery
from broker.log import SafeLog
from broker.session import Session
from cloud_worker.agreement import AgreementCounter
from cloud_worker.errors import RequestRefused, describe_fault
from cloud_worker.living_edges import LivingEdges
from cloud_worker.metrics import WorkerMetrics
from cloud_worker.release_loading import ReleaseLoader
from cloud_worker.release_reports import ReleaseReports
from cloud_worker.release_room import ReleaseRoom
from cloud_worker.release_start import give_way
from cloud_worker.releases import Releases
from cloud_worker.settings import ReleaseSettings, WorkerSettings
from protocol.errors import ProtocolError
from protocol.release_messages import ModelState
from protocol.topics import ModelStateTopic, parse_topic
from reader.weights import resolve_model_folder
from releases.errors import ReleaseError
from releases.follower import Candidate, Progress, ReleaseFollower
from releases.store import ReleaseStore

CARE_SECONDS = 0.5
SWEEP_SECONDS = 60.0
"""How often it is looked at what nobody needs."""
CATCH_UP_SECONDS = 30.0
"""For so long after its start a worker without the channel's release may yet get any release."""
STOP_SECONDS = 10.0

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
        self._rules, self._store, self._releases = rules, store, releases
        self._session, self._metrics, self._clock = session, metrics, clock
        self._edges = LivingEdges(wall_clock)
        self._reports = ReleaseReports(
            session, settings.name, agreement.snapshot, clock=clock, wall_clock=wall_clock
        )
        self._progress = Progress("init")
        self._began = self._worked_since = self._swept_at = clock()
        self._wake = threading.Event()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="elma-keeper", daemon=True)
        self._room = ReleaseRoom(
            store,
            releases,
            self._edges,
            metrics,
            agreement,
            idle_seconds=rules.idle_seconds,
            clock=clock,
        )
        self._loader = ReleaseLoader(
            settings,
            store,
            releases,
            self._room,
            metrics,
            young_seconds=rules.idle_seconds,
            is_stopping=self._is_stopping.is_set,
            clock=clock,
        )
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
        if self._loader.is_hoped_for(release):
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
            "failed": self._loader.failed(),
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
        self._loader.load(candidate.folder, candidate.release, candidate.version)
        self._worked_since = self._clock()
        self._wake.set()

    def _note_progress(self, progress: Progress) -> None:
        """Every change of the follower; any of its failures is counted and told."""
        before, self._progress = self._progress, progress
        self._room.expect(progress.target)
        if progress.target is not None:
            has_failed = progress.state == "failed"
            self._loader.note(progress.target, progress.reason if has_failed else None)
        if progress.state == "failed" and progress != before:
            self._metrics.release_failures.labels(progress.reason_code or "failed").inc()
        self._wake.set()

    # -- the keeper's thread ---------------------------------------------------------------

    def _work(self) -> None:
        give_way()
        while not self._is_stopping.is_set():
            try:
                self._go_around()
            except Exception as error:
                self._metrics.failures.labels("releases").inc()
                _log.error("release_care_failed", error=f"{describe_fault(error)}: {error}")
            self._wake.wait(CARE_SECONDS)
            self._wake.clear()

    def _go_around(self) -> None:
        """Load one of those that the disk had, and care for all."""
        if self._loader.load_next():
            self._wake.set()
        self._confirm()
        if self._clock() - self._swept_at >= min(SWEEP_SECONDS, self._rules.idle_seconds):
            self._swept_at = self._clock()
            self._room.sweep(self._loader.waiting)
        self._room.note_freed()
        self._reports.care(
            [one.digest for one in self._releases.loaded()],
            self._loading_digests(),
            self._loader.failed(),
        )

    def _confirm(self) -> None:
        """What has worked for long enough is on probation no more."""
        probation = self._store.state.probation
        if (
            probation is not None
            and probation.release == self._store.active
            and self._clock() - self._worked_since >= self._rules.probation_seconds
        ):
            self._store.confirm()
            _log.info("release_confirmed", release=probation.release)

    def _loading_digests(self) -> list[str]:
        progress, loading = self._progress, list(self._loader.waiting)
        if progress.state in ("downloading", "verified") and progress.target is not None:
            loading.append(progress.target)
        return [one for one in loading if one not in self._releases.digests()]
