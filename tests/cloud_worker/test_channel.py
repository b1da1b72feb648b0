"""Real worker processes on a real broker: releases come and go while requests are computed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from protocol.messages import AnswerMessage, Busy, RequestWindow, WorkerMessage
from reader.model import Reader
from reader.spans import WindowSpans
from tests.cloud_worker.channel import Channel
from tests.cloud_worker.conftest import MakeCloud
from tests.cloud_worker.harness import (
    Cloud,
    FakeEdge,
    Sent,
    make_state,
    make_window,
    spans_alone,
    wait_until,
)
from tests.tiny import make_tiny_model

MakeModel = Callable[..., Path]
BUSY_SECONDS = 0.1
SILENT_SECONDS = 3.0


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Models that differ in their weights alone, so that a mixed batch would go unnoticed."""

    def make(seed: int, **changes: int) -> Path:
        folder = tmp_path_factory.mktemp(f"model-{seed}")
        return make_tiny_model(folder, **{"layers": 6, "groups": 3, **changes}, seed=seed)

    return make


@pytest.fixture
def stack() -> ExitStack:
    """Ends what a test starts."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def make_channel(tmp_path: Path, stack: ExitStack) -> Callable[[Cloud], Channel]:
    """A channel on a cloud's broker."""
    return lambda cloud: Channel(tmp_path, cloud.broker, stack)


class Stream:
    """Requests for one release, one after another, until `stop`; sent again where needed."""

    def __init__(self, edge: FakeEdge, reader: Reader, pause_seconds: float = 0.02) -> None:
        self.edge, self.reader, self.pause_seconds = edge, reader, pause_seconds
        self.windows = [make_window(reader, seed=seed, tokens=24 + seed) for seed in range(4)]
        self.sent: list[tuple[int, Sent]] = []
        self._published: dict[str, float] = {}
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        while not self._is_stopping.wait(self.pause_seconds):
            seed = len(self.sent) % len(self.windows)
            sent = self.edge.seal([self.windows[seed]], release=self.reader.digest)
            self.sent.append((seed, self._publish(sent)))
            self._send_again()

    def _send_again(self) -> None:
        """The same bytes once more after a worker's `busy`, or a long silence, as an edge does."""
        for _, sent in self.sent:
            waited_seconds = time.monotonic() - self._published[sent.header.request]
            is_busy = bool(sent.words) and isinstance(sent.words[-1], Busy)
            if waited_seconds > (BUSY_SECONDS if is_busy else SILENT_SECONDS) and not sent.final():
                self._publish(sent)

    def _publish(self, sent: Sent) -> Sent:
        self._published[sent.header.request] = time.monotonic()
        return self.edge.publish(sent)

    def _final(self, sent: Sent) -> WorkerMessage | None:
        self._send_again()
        return sent.final()

    def stop(self) -> None:
        """Ask no more, and assert that every request has its own right answer."""
        self._is_stopping.set()
        self._thread.join()
        expected = [
            spans_alone(self.reader, make_state(self.reader, 1, 24 + seed, seed), 1)
            for seed in range(len(self.windows))
        ]
        for seed, sent in self.sent:
            answer = wait_until(
                lambda sent=sent: self._final(sent), f"an answer to {sent.header}", 60.0
            )
            assert isinstance(answer, AnswerMessage), answer
            assert_answers(answer, expected[seed])


def assert_answers(answer: AnswerMessage, expected: WindowSpans) -> None:
    (result,) = answer.results
    assert result.null_score == pytest.approx(expected.null_score, abs=1e-3)
    found = [(span.start_token, span.end_token) for span in result.spans]
    assert found == [(span.start_token, span.end_token) for span in expected.spans[: len(found)]]


def ask(edge: FakeEdge, reader: Reader, seed: int = 0) -> None:
    """One question to a release, answered as that release does."""
    sent = edge.publish(edge.seal([make_window(reader, seed=seed)], release=reader.digest))
    answer = edge.wait_final(sent)
    assert isinstance(answer, AnswerMessage), answer
    assert_answers(answer, spans_alone(reader, make_state(reader, 1, 24, seed), 1))


def test_a_release_is_learnt_under_load_and_no_request_is_lost_or_mixed(
    make_cloud: MakeCloud, make_channel: Callable[[Cloud], Channel], make_model: MakeModel
) -> None:
    cloud = make_cloud()
    channel = make_channel(cloud)
    worker = cloud.worker("one", queue_bound=4, releases=channel.settings())
    assert channel.wait_for("one", cloud.reader.digest).loaded == (cloud.reader.digest,)
    old = Stream(cloud.edge(), cloud.reader)
    model = make_model(1)
    digest = channel.publish(model)
    report = channel.wait_for("one", digest)
    assert report.loading == ()
    new = Stream(cloud.edge("hall"), Reader.load(model, precision="fp32"))
    wait_until(lambda: len(new.sent) >= 30, "requests for both releases")
    old.stop()
    new.stop()
    assert len(old.sent) > 30
    assert worker.metric("elma_worker_releases_loaded") == 2
    assert worker.metric("elma_worker_release_info", release=digest[:12]) == 1
    listed = {one["release"]: one for one in worker.get("/healthz").json()["releases"]}
    assert set(listed) == {cloud.reader.digest, digest}
    assert listed[digest]["name"] == "stable-1"
    assert listed[digest]["unused_seconds"] < 60


def test_chunks_and_requests_leave_each_other_a_way_through_a_worker_with_one_place(
    make_cloud: MakeCloud,
    make_channel: Callable[[Cloud], Channel],
    make_model: MakeModel,
    slow_model: Path,
    slow_windows: list[RequestWindow],
) -> None:
    cloud = make_cloud(model=slow_model)
    channel = make_channel(cloud)
    # A chunk is larger than the largest request.
    cloud.worker("one", queue_bound=1, max_request_bytes=65_536, releases=channel.settings())
    edge = cloud.edge()
    digest = channel.publish(make_model(1, hidden_size=128))
    sent: list[Sent] = []

    def is_loaded_under_load() -> bool:
        sent.append(edge.publish(edge.seal(slow_windows[:1])))
        report = channel.latest("one")
        return report is not None and digest in report.loaded

    wait_until(is_loaded_under_load, "the release", 60.0)
    for one in sent:
        wait_until(lambda one=one: one.of(Busy) or one.final(), "a word for every request")
    assert sum(isinstance(one.final(), AnswerMessage) for one in sent) > 5


def test_a_worker_killed_while_it_takes_a_release_takes_it_after_its_next_start(
    make_cloud: MakeCloud, make_channel: Callable[[Cloud], Channel], make_model: MakeModel
) -> None:
    cloud = make_cloud()
    channel = make_channel(cloud)
    folder = cloud.folder / "store"
    settings = channel.settings()
    worker = cloud.worker("one", releases=settings)
    model = make_model(1)
    digest = channel.publish(model)
    wait_until(lambda: (folder / "installed" / digest).is_dir(), "the release on the disk")
    worker.stop()  # kill -9, while its canaries run
    assert (
        digest not in (channel.latest("one") or channel.wait_for("one", cloud.reader.digest)).loaded
    )
    again = cloud.worker("one", releases=settings)
    channel.wait_for("one", digest)
    ask(cloud.edge(), Reader.load(model, precision="fp32"))
    assert again.metric("elma_worker_failures_total", part="releases") == 0


def test_a_worker_without_a_model_gets_both_releases_that_the_channel_keeps(
    make_cloud: MakeCloud, make_channel: Callable[[Cloud], Channel], make_model: MakeModel
) -> None:
    cloud = make_cloud()
    channel = make_channel(cloud)
    before, now = make_model(1), make_model(2)
    digests = [channel.publish(model) for model in (before, now)]
    worker = cloud.worker("two", model="none", releases=channel.settings())
    report = channel.wait_for("two", digests[1])
    assert set(report.loaded) == set(digests)
    edge = cloud.edge()
    for model in (before, now):
        ask(edge, Reader.load(model, precision="fp32"))
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    channel.withdraw()  # from here on there is nothing to fetch
    again = cloud.worker("two", model="none", releases=channel.settings())
    wait_until(
        lambda: (
            {one["release"] for one in again.get("/healthz").json()["releases"]} == set(digests)
        ),
        "both releases from the disk",
    )
    for model in (before, now):
        ask(edge, Reader.load(model, precision="fp32"))


def test_a_release_whose_canaries_fail_is_told_with_its_reason_and_never_loaded(
    make_cloud: MakeCloud, make_channel: Callable[[Cloud], Channel], make_model: MakeModel
) -> None:
    cloud = make_cloud()
    channel = make_channel(cloud)
    worker = cloud.worker("one", releases=channel.settings())
    model = make_model(1)
    digest = channel.publish(model, canaries_of=make_model(2))
    assert "canaries failed" in channel.wait_for_failure("one", digest)
    assert worker.metric("elma_worker_release_failures_total", reason="canaries") == 1
    edge = cloud.edge()
    refused = edge.publish(
        edge.seal([make_window(Reader.load(model, precision="fp32"))], release=digest)
    )
    assert edge.wait_final(refused).code == "unknown_release"
    ask(edge, cloud.reader)


def test_releases_that_living_edges_name_stay_and_others_go(
    make_cloud: MakeCloud, make_channel: Callable[[Cloud], Channel], make_model: MakeModel
) -> None:
    cloud = make_cloud()
    channel = make_channel(cloud)
    folder = cloud.folder / "store"
    worker = cloud.worker("one", releases=channel.settings(idle_seconds=0.5))
    models = [make_model(seed) for seed in (1, 2, 3)]
    first = channel.publish(models[0])
    channel.wait_for("one", first)
    channel.say("kitchen", first)
    channel.say("cellar", "ab" * 32, age_seconds=8 * 24 * 3_600)
    for model in models[1:]:
        last = channel.publish(model)
        channel.wait_for("one", last)
    second = Reader.load(models[1], precision="fp32").digest
    kept = wait_until(
        lambda: (
            report
            if (report := channel.latest("one")) is not None and second not in report.loaded
            else None
        ),
        "the second release to be freed",
    )
    assert {first, last, cloud.reader.digest} == set(kept.loaded)
    assert not (folder / "installed" / second).exists()
    assert (folder / "installed" / first).is_dir()
    assert worker.metric("elma_worker_releases_retired_total", why="idle") == 1
    assert worker.metric("elma_worker_release_info", release=second[:12]) == 0
    channel.say("kitchen", last)
    wait_until(
        lambda: first not in channel.latest("one").loaded,  # type: ignore[union-attr]
        "the first release to be freed, which no edge names any more",
    )
