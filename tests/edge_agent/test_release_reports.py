"""What is said about releases: at changes, not at every byte, again after hours, and the truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from broker.errors import NotConnected
from broker.exchange import Publication
from edge_agent.release_metrics import ReleaseMetrics
from edge_agent.release_reports import PROGRESS_SECONDS, REPEAT_SECONDS, ReleaseReports
from protocol.release_messages import ModelState
from releases.progress import Progress

OLD, NEW = "a" * 64, "b" * 64
ACTIVE = Progress("active", release=OLD, version=1, manifest_expires=2e9)
LOADING = Progress(
    "downloading", release=OLD, version=1, target=NEW, target_version=2, total_bytes=100
)
GIVEN_UP = Progress(
    "failed",
    release=OLD,
    version=1,
    target=NEW,
    target_version=2,
    reason="its reader failed",
    reason_code="inference",
)


class Sink:
    """A session that keeps what is published; a clock beside it."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.is_connected = True
        self.is_failing = False
        self.publications: list[Publication] = []

    def publish(self, publication: Publication) -> None:
        if self.is_failing:
            raise NotConnected("just gone")
        self.publications.append(publication)

    @property
    def states(self) -> list[ModelState]:
        return [ModelState.decode(each.payload) for each in self.publications]


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def reports(sink: Sink, registry: CollectorRegistry) -> ReleaseReports:
    session: Any = sink
    return ReleaseReports(
        session,
        "kitchen",
        ReleaseMetrics(registry),
        lambda: OLD,
        clock=lambda: sink.now,
        wall_clock=lambda: sink.now,
    )


def test_a_change_is_published_at_once_retained_and_for_a_week(
    reports: ReleaseReports, sink: Sink
) -> None:
    reports.take(ACTIVE)
    (publication,) = sink.publications
    assert publication.topic == "elma/v1/state/kitchen/model"
    assert publication.retain
    assert publication.expiry_seconds == 7 * 86_400
    assert sink.states[0] == ACTIVE.model_state(1_000.0)
    reports.take(ACTIVE)
    assert len(sink.publications) == 1


def test_progress_is_published_every_few_seconds_only(reports: ReleaseReports, sink: Sink) -> None:
    for done in range(0, 100, 10):
        reports.take(replace(LOADING, done_bytes=done))
        sink.now += 1.0
    done = [state.done_bytes for state in sink.states]
    assert done == [0, 50]
    sink.now += PROGRESS_SECONDS
    reports.care()
    assert sink.states[-1].done_bytes == 90


def test_it_is_said_again_after_hours_and_after_a_reconnect(
    reports: ReleaseReports, sink: Sink
) -> None:
    reports.take(ACTIVE)
    sink.now += REPEAT_SECONDS - 1
    reports.care()
    assert len(sink.publications) == 1
    sink.now += 1
    reports.care()
    assert len(sink.publications) == 2
    reports.connection_changed(False)
    reports.care()
    assert len(sink.publications) == 2
    reports.connection_changed(True)
    reports.care()
    assert len(sink.publications) == 3


def test_what_cannot_be_published_is_published_later(reports: ReleaseReports, sink: Sink) -> None:
    sink.is_connected = False
    reports.take(ACTIVE)
    assert sink.publications == []
    sink.is_connected, sink.is_failing = True, True
    reports.care()
    sink.is_failing = False
    reports.care()
    assert [state.state for state in sink.states] == ["active"]


def test_before_a_first_release_it_is_the_own_model_that_answers(
    reports: ReleaseReports, sink: Sink
) -> None:
    reports.take(Progress("init"))
    assert (sink.states[-1].release, sink.states[-1].version) == (OLD, None)


def test_what_was_given_up_stays_said_until_something_newer_is_done(
    reports: ReleaseReports, sink: Sink
) -> None:
    reports.take(ACTIVE)
    reports.give_up(GIVEN_UP)
    reports.take(ACTIVE)  # as the follower says when it starts
    assert sink.states[-1].state == "failed"
    assert sink.states[-1].reason == "its reader failed"
    assert reports.health()["reason_code"] == "inference"
    reports.take(LOADING)
    reports.take(ACTIVE)
    assert sink.states[-1].state == "active"


def test_a_release_that_is_in_use_after_all_is_no_failure(
    reports: ReleaseReports, sink: Sink
) -> None:
    reports.give_up(GIVEN_UP)
    reports.take(Progress("active", release=NEW, version=3))
    assert sink.states[-1].state == "active"


def test_metrics_tell_the_same(reports: ReleaseReports, registry: CollectorRegistry) -> None:
    def metric(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"elma_edge_{name}", labels)

    reports.take(LOADING)
    assert metric("release_state", state="downloading") == 1
    failed = replace(GIVEN_UP, reason_code="canaries")
    reports.take(failed)
    reports.take(failed)
    assert metric("release_failures_total", reason="canaries") == 1
    assert metric("canary_failures_total") == 1
    assert metric("release_state", state="failed") == 1
    assert metric("release_state", state="downloading") == 0
    reports.take(replace(ACTIVE, version=5))
    assert metric("release_version") == 5
    assert metric("manifest_expires_timestamp_seconds") == 2e9
