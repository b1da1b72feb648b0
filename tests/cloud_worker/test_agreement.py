"""What the worker counts as agreement of an edge's answer with its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, Counter

from cloud_worker.agreement import AgreementCounter
from cloud_worker.held import Asker, HeldRequest
from cloud_worker.releases import LoadedRelease, Releases
from cloud_worker.request_queue import RequestQueue
from cloud_worker.scheduler import BatchLimits
from protocol.messages import Provisional
from protocol.release_messages import MAX_AGREEMENTS, Agreement
from protocol.sealing import RequestHeader, RequestKey
from reader.exits import ExitSettings
from reader.model import Reader
from reader.spans import Span, WindowSpans

RELEASE = "a" * 64
SETTINGS = replace(ExitSettings.uncalibrated(4), no_answer_thresholds=(0.0, 0.0, 0.0, 2.0))
FOUND = WindowSpans(0, 4, 1.0, (Span(5, 7, 1.0, 2.0), Span(9, 9, 1.0, 1.0)))
NULL = replace(FOUND, null_score=5.5)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def counter(registry: CollectorRegistry) -> AgreementCounter:
    labels = ["layer", "kind", "agrees"]
    return AgreementCounter(Counter("elma_worker_agreement", "", labels, registry=registry))


@pytest.mark.parametrize(
    ("mine", "final", "agrees"),
    [
        (Provisional(2, 5, 7), FOUND, True),
        (Provisional(2, 5, 6), FOUND, False),
        (Provisional(2, 9, 9), FOUND, False),  # its second best is not its answer
        (Provisional(2, 0, 0), FOUND, False),
        (Provisional(2, 0, 0), NULL, True),
        (Provisional(2, 5, 7), NULL, False),
        (Provisional(2, 5, 7), replace(FOUND, null_score=4.9), True),  # below the threshold of 2
    ],
)
def test_the_same_tokens_or_both_no_answer_agree(
    counter: AgreementCounter,
    registry: CollectorRegistry,
    mine: Provisional,
    final: WindowSpans,
    agrees: bool,
) -> None:
    counter.note(SETTINGS, RELEASE, {0: mine}, {0: final}, is_audit=False)
    assert counter.snapshot() == (Agreement(RELEASE, 2, "offload", int(agrees), 1),)
    labels = {"layer": "2", "kind": "offload", "agrees": "yes" if agrees else "no"}
    assert registry.get_sample_value("elma_worker_agreement_total", labels) == 1.0


def test_counts_are_kept_by_release_layer_and_kind(counter: AgreementCounter) -> None:
    right, wrong = Provisional(1, 5, 7), Provisional(3, 0, 0)
    results = {0: FOUND, 1: replace(FOUND, window_index=1)}
    counter.note(SETTINGS, RELEASE, {0: right, 1: wrong}, results, is_audit=True)
    counter.note(SETTINGS, RELEASE, {0: right}, results, is_audit=True)
    counter.note(SETTINGS, "b" * 64, {1: wrong}, results, is_audit=False)
    assert counter.snapshot() == (
        Agreement(RELEASE, 1, "audit", 2, 2),
        Agreement(RELEASE, 3, "audit", 0, 1),
        Agreement("b" * 64, 3, "offload", 0, 1),
    )
    counter.forget(RELEASE)
    assert [agreement.release for agreement in counter.snapshot()] == ["b" * 64]


def test_a_window_without_a_provisional_span_or_a_result_is_not_counted(
    counter: AgreementCounter,
) -> None:
    counter.note(SETTINGS, RELEASE, {}, {0: FOUND}, is_audit=False)
    counter.note(SETTINGS, RELEASE, {1: Provisional(2, 5, 7)}, {0: FOUND}, is_audit=False)
    assert counter.snapshot() == ()


def test_an_edge_makes_no_label_of_a_layer_that_there_is_not(
    counter: AgreementCounter, registry: CollectorRegistry
) -> None:
    counter.note(SETTINGS, RELEASE, {0: Provisional(5, 5, 7)}, {0: FOUND}, is_audit=False)
    assert counter.snapshot() == ()
    assert not [sample for family in registry.collect() for sample in family.samples]


def test_a_snapshot_fits_into_a_report(counter: AgreementCounter) -> None:
    for number in range(MAX_AGREEMENTS + 5):
        release = f"{number:064x}"
        counter.note(SETTINGS, release, {0: Provisional(1, 5, 7)}, {0: FOUND}, is_audit=False)
    assert len(counter.snapshot()) == MAX_AGREEMENTS


def held(number: int, loaded: LoadedRelease, *, is_audit: bool) -> HeldRequest:
    header = RequestHeader(1, "p", "kitchen", f"r{number}", 0.0, 10.0, loaded.reader.digest)
    asker = Asker(header, RequestKey(bytes(32)))
    return HeldRequest(asker, loaded, 1, 1, 100, 0.0, 10.0, 5.0, is_audit=is_audit)


def test_audits_find_a_queue_full_when_half_of_it_is(tiny_reader: Reader) -> None:
    releases = Releases([tiny_reader])
    loaded = releases.find(tiny_reader.digest)
    queue = RequestQueue(
        BatchLimits(), releases.pace, bound=4, bound_bytes=1_000, clock=lambda: 0.0
    )
    assert queue.reserve(held(1, loaded, is_audit=True))
    assert queue.reserve(held(2, loaded, is_audit=False))
    assert not queue.reserve(held(3, loaded, is_audit=True))
    assert queue.reserve(held(4, loaded, is_audit=False))
    assert queue.reserve(held(5, loaded, is_audit=False))
    assert not queue.reserve(held(6, loaded, is_audit=False))
