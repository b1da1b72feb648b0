"""What a worker says about its releases: one retained message, for the publisher.

Inputs: what is loaded, loading and failed, and the counts of agreement. Output: `WorkerReleases`
at each change, with every new connection, each minute in which counts have changed, and every few
hours, so that the broker does not forget it. Neighbour: `release_keeper` calls `care`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from broker.errors import BrokerError
from broker.exchange import Outcome, Publication, Receipt
from broker.log import LineLimit, SafeLog
from protocol.release_messages import (
    MAX_REPORTED_RELEASES,
    Agreement,
    WorkerReleases,
)
from protocol.topics import WorkerReleasesTopic
from releases.progress import printable

COUNTS_SECONDS = 60.0
REPEAT_SECONDS = 6 * 3_600.0
EXPIRY_SECONDS = 7 * 24 * 3_600

_log = SafeLog("elma.worker")


class PublishingSession(Protocol):
    """What the reports need of `broker.session.Session`."""

    @property
    def is_connected(self) -> bool:
        """Whether there is a live connection."""

    def publish(self, publication: Publication) -> Receipt:
        """Hand a publication to the broker."""


class ReleaseReports:
    """Speaks for the worker called `name`. `care` is for one thread, the rest for any.

    `clock` is monotonic, `wall_clock` gives unix seconds.
    """

    def __init__(
        self,
        session: PublishingSession,
        name: str,
        counts: Callable[[], tuple[Agreement, ...]],
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._session, self._name, self._counts = session, name, counts
        self._clock, self._wall_clock = clock, wall_clock
        self._said: tuple[object, ...] | None = None
        self._said_counts: tuple[Agreement, ...] = ()
        self._said_at = 0.0
        self._receipt: Receipt | None = None
        self._lines = LineLimit()

    def connection_changed(self, is_connected: bool) -> None:
        """A broker that was restarted may have forgotten; the next `care` says it again."""
        if is_connected:
            self._said = None

    def care(self, loaded: list[str], loading: list[str], failed: Mapping[str, str]) -> None:
        """Say it, if it is time to."""
        self._look_at_receipt()
        words = (
            tuple(loaded[:MAX_REPORTED_RELEASES]),
            tuple(loading[:MAX_REPORTED_RELEASES]),
            tuple(
                (release, printable(reason))
                for release, reason in list(failed.items())[-MAX_REPORTED_RELEASES:]
            ),
        )
        counts = self._counts()
        if not self._session.is_connected or not self._is_due(words, counts):
            return
        report = WorkerReleases(self._name, *words, counts, self._wall_clock())
        try:
            self._receipt = self._session.publish(
                Publication(
                    str(WorkerReleasesTopic(self._name)),
                    report.encode(),
                    retain=True,
                    expiry_seconds=EXPIRY_SECONDS,
                )
            )
        except BrokerError:  # tried again with the next `care`
            return
        self._said, self._said_counts, self._said_at = words, counts, self._clock()

    def _is_due(self, words: tuple[object, ...], counts: tuple[Agreement, ...]) -> bool:
        seconds = self._clock() - self._said_at
        if words != self._said or seconds >= REPEAT_SECONDS:
            return True
        return counts != self._said_counts and seconds >= COUNTS_SECONDS

    def _look_at_receipt(self) -> None:
        if self._receipt is None or self._receipt.outcome is Outcome.PENDING:
            return
        if self._receipt.outcome is Outcome.REFUSED:
            _log.limited_warning(
                self._lines, "release_report_refused", why=self._receipt.reason, name=self._name
            )
        elif self._receipt.outcome is Outcome.LOST:
            self._said = None
        self._receipt = None
