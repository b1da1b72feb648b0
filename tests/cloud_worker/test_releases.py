"""Releases come and go under requests that hold them, and who may go is who nobody needs."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from broker.exchange import Outcome
from cloud_worker.agreement import AgreementCounter
from cloud_worker.errors import CannotCompute, RequestRefused, TooManyReleases
from cloud_worker.held import Asker, HeldRequest
from cloud_worker.living_edges import LIFE_SECONDS, LivingEdges
from cloud_worker.metrics import WorkerMetrics
from cloud_worker.release_reports import COUNTS_SECONDS, REPEAT_SECONDS, ReleaseReports
from cloud_worker.releases import LoadedRelease, Releases
from cloud_worker.request_queue import RequestQueue, Window, waiting_window
from cloud_worker.resume import Resumer
from cloud_worker.scheduler import BatchLimits
from protocol.duplicates import DuplicateGuard
from protocol.messages import AnswerMessage
from protocol.release_messages import Agreement, ModelState, WorkerReleases
from protocol.sealing import RequestHeader, RequestKey, open_answer
from protocol.topics import new_request_id
from protocol.wire import WIRE_VERSION
from reader.model import Reader
from tests.cloud_worker.fakes import FakeClock, FakeSession
from tests.cloud_worker.harness import (
    QUESTION_TOKENS,
    WAIT_SECONDS,
    make_state,
    spans_alone,
)
from tests.tiny import make_tiny_model

LAYERS = 6
A, B, C = (letter * 64 for letter in "abc")


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> list[Reader]:
    """Four releases of one shape."""
    folder = tmp_path_factory.mktemp("releases")
    return [
        Reader.load(
            make_tiny_model(folder / str(seed), layers=LAYERS, groups=3, seed=seed),
            precision="fp32",
        )
        for seed in range(4)
    ]


def held_request(loaded: LoadedRelease, windows: int = 1) -> HeldRequest:
    now = time.monotonic()
    header = RequestHeader(
        WIRE_VERSION, "pool", "kitchen", new_request_id(), 0.0, 60.0, loaded.digest
    )
    return HeldRequest(
        asker=Asker(header, RequestKey.make()),
        loaded=loaded,
        top_spans=5,
        window_count=windows,
        state_bytes=1,
        arrived=now,
        due=now + 600.0,
        lease_until=now + 600.0,
    )


def test_a_retired_release_takes_no_requests_and_leaves_with_the_last_that_holds_it(
    readers: list[Reader],
) -> None:
    releases = Releases(readers[:2])
    digest = readers[0].digest
    request = held_request(releases.find(digest))
    assert releases.retire(digest)
    with pytest.raises(RequestRefused, match="is not loaded here"):
        releases.find(digest)
    assert digest in releases.in_memory()
    assert releases.pace(digest) is request.loaded.pace
    del request
    assert digest not in releases.in_memory()  # at once: no collection of garbage was needed
    assert not releases.retire(digest)


def test_a_release_that_comes_back_while_it_is_held_is_the_same(readers: list[Reader]) -> None:
    releases = Releases(readers[:1])
    loaded = releases.find(readers[0].digest)
    releases.retire(loaded.digest)
    releases.add(readers[0])
    assert releases.find(loaded.digest) is loaded


def test_the_longest_unused_of_those_that_may_go_makes_room(readers: list[Reader]) -> None:
    clock = FakeClock()
    releases = Releases(readers[:3], max_loaded=3, clock=clock)
    first, second, third, new = (reader.digest for reader in readers)
    for digest in (third, first, second):
        clock.now += 1
        releases.find(digest)
    assert releases.add(readers[3], may_go={first, second}) == (first,)
    assert releases.digests() == {second, third, new}


def test_without_a_place_nothing_changes_and_the_reason_is_told(readers: list[Reader]) -> None:
    releases = Releases(readers[:2], max_loaded=2)
    with pytest.raises(TooManyReleases, match="at most 2 may be, and 2 of them are still needed"):
        releases.add(readers[2])
    assert releases.digests() == {reader.digest for reader in readers[:2]}


def test_what_a_request_still_holds_takes_a_place(readers: list[Reader]) -> None:
    releases = Releases(readers[:2], max_loaded=2)
    held = releases.find(readers[0].digest)
    releases.retire(held.digest)
    with pytest.raises(TooManyReleases):
        releases.add(readers[2])
    del held
    releases.add(readers[2])
    assert releases.digests() == {readers[1].digest, readers[2].digest}


def test_a_reader_that_cannot_compute_is_not_taken_and_the_fault_is_named(
    readers: list[Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise RuntimeError("could not create a primitive")

    releases = Releases([])
    monkeypatch.setattr(type(readers[0].engine), "run_mixed", refuse)
    told = "cannot compute on this machine: RuntimeError at .*elma doctor"
    with pytest.raises(CannotCompute, match=told):
        releases.add(readers[0])
    assert not releases.loaded()


def test_a_release_of_a_known_shape_is_not_measured(
    readers: list[Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    releases = Releases(readers[:1])
    measured: list[Reader] = []
    monkeypatch.setattr("cloud_worker.releases.measure_pace", measured.append)
    releases.add(readers[1])
    known, new = (releases.pace(reader.digest) for reader in readers[:2])
    assert not measured
    assert new is not known
    assert new.step_seconds(100) == known.step_seconds(100)


class Listener:
    """What the computing thread speaks to: keeps the sealed answers."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}

    def accepted(self, asker: Asker, lease_seconds: float) -> None: ...

    def error(self, asker: Asker, code: str, detail: str) -> None:  # noqa: ARG002
        raise AssertionError(f"{code}: {detail}")

    def answer(self, asker: Asker, payload: bytes, keep_until: float) -> None:  # noqa: ARG002
        self.answers[asker.header.request] = payload


def test_windows_of_two_releases_that_wait_together_are_never_computed_together(
    readers: list[Reader],
) -> None:
    releases, metrics, listener = Releases(readers[:2]), WorkerMetrics(), Listener()
    queue = RequestQueue(
        BatchLimits(step_seconds=1.0),
        releases.pace,
        bound=100,
        bound_bytes=100,
        clock=time.monotonic,
    )
    resumer = Resumer(
        queue,
        listener,
        DuplicateGuard(clock=time.time),
        metrics,
        AgreementCounter(metrics.agreement),
        name="one",
        lease_seconds=600.0,
        clock=time.monotonic,
    )
    expected: list[tuple[HeldRequest, Any]] = []
    windows: list[Window] = []
    for number in range(24):  # in turn, at every depth
        reader, layer = readers[number % 2], number // 2 % LAYERS
        request = held_request(releases.find(reader.digest))
        state = make_state(reader, layer, 20, seed=number)
        expected.append((request, spans_alone(reader, state, layer)))
        assert queue.reserve(request)
        windows.append(
            waiting_window(
                request,
                reader.config,
                index=0,
                layer=layer,
                question_tokens=QUESTION_TOKENS,
                state=state,
            )
        )
    queue.enter(windows)
    resumer.start()
    assert queue.wait_empty(WAIT_SECONDS)
    resumer.stop(WAIT_SECONDS)
    for request, spans in expected:
        header = request.asker.header
        answer = open_answer(listener.answers[header.request], header, request.asker.key)
        assert isinstance(answer, AnswerMessage)
        assert answer.results[0].null_score == pytest.approx(spans.null_score, abs=1e-3)
        best = answer.results[0].spans[0]
        assert (best.start_token, best.end_token) == (
            spans.spans[0].start_token,
            spans.spans[0].end_token,
        )


def test_loading_leaves_the_threads_of_who_computes_as_they_are(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    folder = make_tiny_model(tmp_path / "one")
    threads: list[int] = []
    loading, looked = threading.Event(), threading.Event()

    def compute() -> None:
        threads.append(torch.get_num_threads())
        loading.set()
        assert looked.wait(WAIT_SECONDS)
        threads.append(torch.get_num_threads())

    computing = threading.Thread(target=compute)
    computing.start()
    assert loading.wait(WAIT_SECONDS)
    Releases([Reader.load(folder, precision="fp32", threads=before)])
    looked.set()
    computing.join()
    assert threads == [before, before]


def state_of(release: str | None, target: str | None = None, updated: float = 0.0) -> ModelState:
    return ModelState("active", release, None, target, None, "", 0, 0, updated)


def test_living_edges_name_what_they_use_and_what_they_are_about_to_use() -> None:
    clock = FakeClock(1e9)
    edges = LivingEdges(clock)
    edges.note("kitchen", state_of(A, B, updated=clock.now))
    edges.note("cellar", state_of(C, updated=clock.now - LIFE_SECONDS - 1))
    edges.note("hall", state_of(None, updated=clock.now))
    assert edges.named() == {A, B}
    edges.note("kitchen", state_of(B, updated=clock.now))
    assert edges.named() == {B}
    clock.now += LIFE_SECONDS + 1
    assert edges.named() == frozenset()
    assert len(edges) == 0


def test_a_cleared_state_and_a_clock_that_runs_ahead_keep_nothing_alive() -> None:
    clock = FakeClock(1e9)
    edges = LivingEdges(clock)
    edges.note("kitchen", state_of(A, updated=clock.now + 1e8))
    edges.note("hall", state_of(B, updated=clock.now))
    edges.note("hall", None)
    assert edges.named() == {A}
    clock.now += LIFE_SECONDS + 1
    assert edges.named() == frozenset()


def test_of_too_many_edges_the_longest_silent_are_forgotten() -> None:
    edges = LivingEdges(FakeClock(1e9), bound=2)
    for edge, release in (("one", A), ("two", B), ("one", A), ("three", C)):
        edges.note(edge, state_of(release, updated=1e9))
    assert edges.named() == {A, C}


class Reports:
    """Reports on a session that is none, with counts that a test may change."""

    def __init__(self) -> None:
        self.session, self.clock = FakeSession(), FakeClock()
        self.counts: tuple[Agreement, ...] = ()
        self.reports = ReleaseReports(
            self.session,
            "one",
            lambda: self.counts,
            clock=self.clock,
            wall_clock=lambda: 1e9,
        )

    def care(self, loaded: list[str], failed: dict[str, str] | None = None) -> int:
        """How many messages there are after it."""
        self.reports.care(loaded, [], failed or {})
        return len(self.session.published)

    @property
    def last(self) -> WorkerReleases:
        return WorkerReleases.decode(self.session.published[-1].payload)


@pytest.fixture
def said() -> Reports:
    return Reports()


def test_a_change_is_said_once_and_retained(said: Reports) -> None:
    assert (said.care([A]), said.care([A])) == (1, 1)
    assert said.care([A, B], {C: "its canaries\nfailed"}) == 2
    assert said.last.loaded == (A, B)
    assert said.last.failed == ((C, "its canaries failed"),)
    assert said.session.published[0].topic == "elma/v1/state/one/releases"
    assert said.session.published[0].retain


def test_counts_are_said_once_a_minute_at_most(said: Reports) -> None:
    said.care([A])
    said.counts = (Agreement(A, 3, "offload", 1, 2),)
    assert said.care([A]) == 1
    said.clock.now += COUNTS_SECONDS
    assert (said.care([A]), said.care([A])) == (2, 2)
    assert said.last.agreement == said.counts
    said.clock.now += COUNTS_SECONDS
    assert said.care([A]) == 2
    said.clock.now += REPEAT_SECONDS
    assert said.care([A]) == 3


def test_a_new_connection_and_a_lost_message_are_reasons_to_say_it_again(said: Reports) -> None:
    said.session.settles_receipts = False
    said.care([A])
    said.reports.connection_changed(True)
    assert said.care([A]) == 2
    said.session.receipts[-1].settle(Outcome.LOST)
    assert said.care([A]) == 3
    said.session.is_connected = False
    assert said.care([B]) == 3
    said.session.is_connected = True
    assert said.care([B]) == 4
