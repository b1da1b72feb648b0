"""The life of releases on the device: heard of, fetched, proved, taken, confirmed, or given back.

    follower: manifest, order -> chunks -> complete folder, verified
    adopt:    canaries in a child -> loaded -> warmed up -> new questions are read with it
    follower: the store remembers it, on probation
    care:     it has worked for `probation_seconds`      -> confirmed
              its reader failed before that              -> the last good one is back, for good
    restart:  it was started too often without a confirmation, or cannot be loaded -> the same

Inputs: candidates of `releases.follower`, faults of readers, the clock. Outputs: changes of reader,
and reports of what happened and why. Neighbours: `agent` owns it and changes readers;
`releases.proving` proves, `release_start` loads, `release_reports` tells.

Threads: the follower's calls `_adopt`; the inference thread `is_forgiven`; housekeeping `care`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from broker.log import SafeLog
from edge_agent.ending import describe_fault
from edge_agent.errors import EdgeError
from edge_agent.link import Link, Listener
from edge_agent.local_reading import LocalReading
from edge_agent.metrics import EdgeMetrics
from edge_agent.release_metrics import ReleaseMetrics
from edge_agent.release_reports import ReleaseReports
from edge_agent.release_start import (
    GivenUp,
    folders_at_hand,
    load_installed,
    load_own_model,
    load_release,
)
from edge_agent.settings import NO_MODEL, EdgeSettings
from reader.errors import ReaderError
from reader.model import Reader
from releases.errors import CannotLoad, FetchInterrupted, ProofStarved, ReleaseError
from releases.follower import Candidate, ReleaseFollower
from releases.progress import Progress
from releases.proving import Computing, check_in_child
from releases.settings import FollowSettings
from releases.store import ReleaseStore

CHANGE_SECONDS = 120.0
"""How long the inference thread may take to warm a new reader up between its questions."""

_log = SafeLog(__name__)


class ChangeReader(Protocol):
    """Reads new questions with a reader from now on, once it has warmed up; waits for that."""

    def __call__(self, reader: Reader, timeout_seconds: float) -> None: ...


class ReleaseLife:
    """One device's releases; `start` and `stop` once each.

    `given_up` is what the start did not find good, `current` the digest that answers now. `is_busy`
    says that questions wait for the cloud, so that downloads give way. `clock` is monotonic.
    """

    def __init__(
        self,
        settings: EdgeSettings,
        rules: FollowSettings,
        store: ReleaseStore,
        link: Link,
        metrics: EdgeMetrics,
        given_up: GivenUp | None,
        *,
        current: Callable[[], str | None],
        change: ChangeReader,
        is_busy: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._rules, self._store = settings, rules, store
        self._given_up, self._current, self._change = given_up, current, change
        self._clock = clock
        self._metrics = ReleaseMetrics(metrics.registry)
        self._reports = ReleaseReports(link.session, settings.name, self._metrics, current)
        self._is_stopping = threading.Event()
        self._changing = threading.Lock()
        self._worked_since = clock()
        self._taken: str | None = None
        self._fault: str | None = None
        self._is_stuck = False
        self._follower = ReleaseFollower(
            link.session,
            store,
            rules,
            rules.publisher_public_key_file,
            name=settings.name,
            waits_for_order=True,
            keeps_previous=False,
            known_folders=folders_at_hand(settings),
            adopt=self._adopt,
            report=self._reports.take,
            is_busy=is_busy,
            on_fetched=self._metrics.downloaded_bytes.inc,
        )
        link.add(Listener(self._follower.take, self._connection_changed))
        link.session.on_subscription_refused = self._follower.subscription_refused

    def start(self) -> None:
        """Begin to follow the channel."""
        self._report_start()
        self._follower.start()

    def stop(self) -> None:
        """End what is under way; what has come is kept. A start that ends so was no crash."""
        self._is_stopping.set()
        self._follower.stop()
        with self._changing:
            with suppress(ReleaseError):  # a full disk does not keep the process from its end
                self._store.forgive_start()
            self._store.close()

    def health(self) -> dict[str, Any]:
        """What is in use and what is being done, for `GET /healthz`."""
        return {
            **self._follower.health(),
            **self._reports.health(),
            "on_probation": self._on_probation,
        }

    @property
    def _on_probation(self) -> str | None:
        """The release that has yet to prove itself, as the store remembers it."""
        probation = self._store.state.probation
        return None if probation is None else probation.release

    def is_forgiven(self, local: LocalReading) -> bool:
        """A reader failed: whether another one will be here for its question.

        So it is while its release is on probation: the next `care` goes back. Inference thread.
        """
        release = local.reader.digest
        is_proved = release not in (self._on_probation, self._taken)
        if is_proved or self._is_stuck or not self._can_go_back:
            return False
        self._fault = release
        return True

    def care(self) -> None:
        """Housekeeping: confirm what has worked, give back what has not, report what is due."""
        self._reports.care()
        release = self._on_probation
        if release is None or self._taken not in (None, release):
            return  # nothing to prove, or the store does not know of it yet
        if not self._changing.acquire(blocking=False):
            return
        try:
            if self._is_stopping.is_set():
                return  # the store is closed
            if self._fault == release:
                self._go_back("its reader failed on this device", "inference")
            elif self._clock() - self._worked_since >= self._rules.probation_seconds:
                self._confirm(release)
        except ReleaseError as error:
            _log.error("release_care_failed", error=str(error))
        finally:
            self._changing.release()

    @property
    def _can_go_back(self) -> bool:
        return self._store.state.last_good is not None or self._settings.model != NO_MODEL

    def _adopt(self, candidate: Candidate) -> None:
        """Follower's thread: prove a candidate and read with it from now on.

        Raises ReleaseRejected where it is no good, another ReleaseError where it may be later.
        """
        if candidate.release == self._current():
            return
        computing = Computing(self._settings.engine, self._settings.precision)
        report = check_in_child(candidate.folder, computing, is_stopping=self._is_stopping.is_set)
        self._metrics.check_seconds.set(report.seconds)
        _log.info(
            "canaries_passed",
            release=candidate.release,
            canaries=report.canaries,
            seconds=round(report.seconds, 2),
            peak_bytes=report.peak_bytes,
        )
        with self._changing:
            self._take(candidate)

    def _take(self, candidate: Candidate) -> None:
        self._taken, self._is_stuck, self._worked_since = candidate.release, False, self._clock()
        try:
            reader = load_installed(
                self._settings, candidate.folder, candidate.release, candidate.version
            )
            self._change(reader, CHANGE_SECONDS)
        except Exception as error:
            self._taken = None
            if self._is_stopping.is_set():
                raise FetchInterrupted("the agent stops; the release is taken later") from error
            if isinstance(error, ReleaseError):
                raise
            if isinstance(error, MemoryError):
                raise ProofStarved("there is no memory to load it beside what answers") from error
            if isinstance(error, ReaderError | EdgeError):
                raise CannotLoad(f"it cannot be loaded here: {error}") from error
            if isinstance(error, TimeoutError):
                raise ReleaseError("the device had no time to warm it up") from error
            raise CannotLoad(f"its warm-up failed: {describe_fault(error)}") from error
        self._metrics.changes.inc()

    def _confirm(self, release: str) -> None:
        self._store.confirm()
        self._taken = None
        _log.info("release_confirmed", release=release)

    def _go_back(self, reason: str, reason_code: str) -> None:
        """Housekeeping: the last good release again; the present one is refused for good."""
        state = self._store.state
        self._fault = None
        try:
            if (
                state.last_good is not None
                and self._store.installed.find(state.last_good) is not None
            ):
                reader: Reader | None = load_release(self._settings, self._store, state.last_good)
            else:
                reader = load_own_model(self._settings)
            if reader is None:
                raise CannotLoad("there is no other release on this device")
            self._change(reader, CHANGE_SECONDS)
        except Exception as error:
            self._is_stuck = True  # its faults are from now on those of the questions
            _log.error("release_not_given_back", error=f"{describe_fault(error)}: {error}")
            return
        self._taken = None
        self._store.fall_back(reason)
        if state.active is not None:
            self._note_given_up(GivenUp(state.active, state.version, reason, reason_code))

    def _report_start(self) -> None:
        """What is in use; and what is not although it is newer, since this start or an earlier."""
        state = self._store.state
        self._reports.take(
            Progress(
                "active" if state.active else "init",
                release=state.active,
                version=state.version,
                manifest_expires=state.expires,
            )
        )
        last = state.refused[-1] if state.refused else None
        if self._given_up is not None:
            self._note_given_up(self._given_up)
        elif last is not None and last.version > (state.version or 0):
            self._report(GivenUp(last.release, last.version, last.reason, "earlier"))

    def _note_given_up(self, given_up: GivenUp) -> None:
        """Count and report what was given up in this process."""
        self._metrics.returns.inc()
        self._metrics.note_failure(given_up.reason_code)
        self._report(given_up)

    def _report(self, given_up: GivenUp) -> None:
        state = self._store.state
        self._reports.give_up(
            Progress(
                "failed",
                release=state.active,
                version=state.version,
                target=given_up.release,
                target_version=given_up.version,
                reason=given_up.reason,
                reason_code=given_up.reason_code,
                manifest_expires=state.expires,
            )
        )

    def _connection_changed(self, is_connected: bool) -> None:
        self._reports.connection_changed(is_connected)
        self._follower.connection_changed(is_connected)
