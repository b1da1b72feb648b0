"""What the broker retains stays what the store has, whoever spoils it; and nobody makes us toil."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from broker.run import RunningBroker
from protocol.manifest import Manifest
from protocol.topics import BlobTopic, ManifestTopic
from publisher.errors import UploadFailed
from publisher.fleet import Fleet
from publisher.keeping import (
    ASSERT_AGAIN_SECONDS,
    ASSERTION_SECONDS,
    ASSERTIONS_AT_ONCE,
    Allowance,
    complaints,
)
from publisher.line import Line
from publisher.making import blobs_of
from publisher.rollout import Wish, give_order
from publisher.sending import send_release
from publisher.store import PublisherStore
from publisher.upload import RENEW_SECONDS, chunks_of
from tests.publisher.conftest import (
    WAIT_SECONDS,
    Members,
    Publisher,
    edge_state,
    worker_report,
)
from tests.publisher.test_watching import HOLD_SECONDS, Rollout

OpenLine = Callable[..., Line]
REPAIR_SECONDS = 600.0


@pytest.fixture
def rollout(publisher: Publisher, open_line: OpenLine, mosquitto: RunningBroker) -> Rollout:
    """A release at 5 % that a service has brought to the broker."""
    return Rollout(publisher, open_line(name="main"), mosquitto, repair_seconds=REPAIR_SECONDS)


class Chunks:
    """The chunks of a release at the broker, as a visitor sees them."""

    def __init__(self, rollout: Rollout, line: Line, members: Members) -> None:
        self._line, self._members = line, members
        store = rollout.publisher.store
        self.blobs = chunks_of(blobs_of(store, rollout.manifest))
        self.names = list(self.blobs)

    def spoil(self, place: int, payload: bytes = b"other bytes") -> None:
        """Put something else where a chunk was; nothing takes it away."""
        self._members.say(BlobTopic(*self.names[place]), payload)

    def wrong(self) -> int:
        """How many of them the broker has not, or otherwise than was signed."""
        had = self._line.retained_chunks(self.names, WAIT_SECONDS)
        lengths = {name: blob.chunk_length(name[1]) for name, blob in self.blobs.items()}
        return sum(len(had[name] or b"") != lengths[name] for name in self.names)


@pytest.fixture
def chunks(rollout: Rollout, open_line: OpenLine, members: Members) -> Chunks:
    """What the release has at the broker."""
    return Chunks(rollout, open_line(), members)


def complaint(manifest: Manifest, code: str, **fields: Any) -> Any:
    """An edge that could not have a chunk."""
    return edge_state("failed", None, target=manifest.release, reason_code=code, **fields)


@pytest.mark.parametrize("code", ["chunk_corrupt", "chunk_missing"])
def test_chunks_that_a_device_says_are_spoilt_are_sent_again(
    rollout: Rollout, members: Members, chunks: Chunks, code: str
) -> None:
    watcher = rollout.watcher()
    watcher.step()
    middle = len(chunks.names) // 2  # not one of the samples
    chunks.spoil(middle, b"other bytes" if code == "chunk_corrupt" else b"")
    watcher.step()
    assert chunks.wrong() == 1
    members.edge("kitchen", complaint(rollout.manifest, code))
    rollout.sees(lambda fleet: "kitchen" in fleet.edges)
    watcher.step()
    assert chunks.wrong() == 0
    assert rollout.metrics.chunks_repaired._value.get() == 1


def test_a_worker_that_cannot_load_the_release_is_a_complaint_too(
    rollout: Rollout, members: Members, chunks: Chunks
) -> None:
    watcher = rollout.watcher()
    watcher.step()
    chunks.spoil(len(chunks.names) // 2)
    members.worker("one", failed=((rollout.manifest.release, "chunk 0 came with other bytes"),))
    rollout.sees(lambda fleet: "one" in fleet.workers)
    watcher.step()
    assert chunks.wrong() == 0


def test_complaints_one_after_the_other_cost_no_more_than_one_look_in_a_while(
    rollout: Rollout, members: Members, chunks: Chunks
) -> None:
    watcher = rollout.watcher()
    watcher.step()
    for number in range(2):
        chunks.spoil(len(chunks.names) // 2)
        state = complaint(rollout.manifest, "chunk_corrupt", updated=time.time() + number)
        members.edge("kitchen", state)
        rollout.sees(lambda fleet, state=state: fleet.edges.get("kitchen") == state)
        watcher.step()
    assert chunks.wrong() == 1
    rollout.clock.now += REPAIR_SECONDS + 1
    watcher.step()
    assert chunks.wrong() == 0


def test_a_complaint_that_was_heard_is_not_looked_into_again(
    rollout: Rollout, members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = rollout.watcher()
    watcher.step()
    members.edge("kitchen", complaint(rollout.manifest, "chunk_corrupt"))
    rollout.sees(lambda fleet: "kitchen" in fleet.edges)
    looks = []
    monkeypatch.setattr("publisher.keeping.forget_wrong", lambda *_, **__: looks.append(1) or 0)
    for _ in range(3):
        watcher.step()
        rollout.clock.now += REPAIR_SECONDS + 1
    assert len(looks) == 1


def test_a_complaint_that_was_withdrawn_and_comes_again_is_looked_into(
    rollout: Rollout, members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = rollout.watcher()
    watcher.step()
    looks = []
    monkeypatch.setattr("publisher.keeping.forget_wrong", lambda *_, **__: looks.append(1) or 0)
    broken = {"failed": ((rollout.manifest.release, "chunk 0 came with other bytes"),)}
    for expected in (broken, {}, broken):
        members.worker("one", **expected)
        failed = expected.get("failed", ())
        rollout.sees(
            lambda fleet, failed=failed: (
                "one" in fleet.workers and fleet.workers["one"].failed == failed
            )
        )
        watcher.step()
        rollout.clock.now += REPAIR_SECONDS + 1
    assert len(looks) == 2


def test_a_look_that_failed_is_made_again_later(
    rollout: Rollout, members: Members, chunks: Chunks, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = rollout.watcher()
    watcher.step()
    chunks.spoil(len(chunks.names) // 2)
    members.edge("kitchen", complaint(rollout.manifest, "chunk_corrupt"))
    rollout.sees(lambda fleet: "kitchen" in fleet.edges)

    def breaks(*_: object, **__: object) -> int:
        raise UploadFailed("the connection broke")

    with monkeypatch.context() as broken:
        broken.setattr("publisher.keeping.forget_wrong", breaks)
        watcher.step()
    assert rollout.metrics.failures._value.get() == 1
    rollout.clock.now += REPAIR_SECONDS + 1
    watcher.step()
    assert chunks.wrong() == 0


def test_only_what_speaks_of_our_chunks_is_a_complaint() -> None:
    ours, other = "1" * 64, "2" * 64
    edges = {
        "missing": edge_state("failed", None, target=ours, reason_code="chunk_missing"),
        "canaries": edge_state("failed", None, target=ours, reason_code="canaries"),
        "fetching": edge_state("downloading", None, target=ours),
        "elsewhere": edge_state("failed", None, target=other, reason_code="chunk_missing"),
    }
    workers = {
        "has it": worker_report("has it".replace(" ", "-"), ours, failed=((ours, "before"),)),
        "lacks": worker_report("lacks", failed=((ours, "chunk missing"), (other, "old"))),
    }
    found = complaints(Fleet(edges=edges, workers=workers), {ours})
    assert sorted(one[:2] for one in found) == [("edge", "missing"), ("worker", "lacks")]


def test_who_overwrites_the_manifest_again_and_again_makes_us_write_at_a_bounded_rate(
    rollout: Rollout, members: Members
) -> None:
    watcher = rollout.watcher()

    def fight() -> None:
        members.say(ManifestTopic("stable"), b"garbage")
        rollout.sees(lambda fleet: fleet.manifest is None)
        watcher.step()

    for _ in range(2 * ASSERTIONS_AT_ONCE):
        fight()
    assert rollout.metrics.assertions._value.get() == ASSERTIONS_AT_ONCE
    rollout.clock.now += ASSERTION_SECONDS + 1
    watcher.step()
    assert rollout.metrics.assertions._value.get() == ASSERTIONS_AT_ONCE + 1
    rollout.sees(lambda fleet: fleet.manifest is not None)


def test_an_order_of_our_own_is_shown_however_often_others_made_us_write(
    rollout: Rollout, members: Members
) -> None:
    watcher = rollout.watcher()
    for _ in range(2 * ASSERTIONS_AT_ONCE):
        members.say(ManifestTopic("stable"), b"garbage")
        rollout.sees(lambda fleet: fleet.manifest is None)
        watcher.step()
    store, fleet = rollout.publisher.store, rollout.line.view.picture()
    _, signed = give_order(store, "stable", Wish(paused=True), fleet, rollout.clock.now)
    watcher.step()
    rollout.sees(lambda fleet: fleet.order is not None and fleet.order.encode() == signed.encode())


def test_a_channel_that_another_store_has_taken_is_left_alone(
    rollout: Rollout, open_line: OpenLine
) -> None:
    watcher = rollout.watcher()
    watcher.step()
    rollout.sees(lambda fleet: fleet.manifest is not None)
    publisher, ours = rollout.publisher, rollout.publisher.store
    publisher.store = PublisherStore(publisher.folder / "another")
    line = open_line()
    record = publisher.sign(publisher.draft(publisher.model("c", 2), line.view.picture()))
    send_release(line, publisher.store, "stable", record, publisher.trust)
    foreign = publisher.store.signed("stable", record)
    publisher.store = ours
    rollout.sees(
        lambda fleet: fleet.manifest is not None and fleet.manifest.payload == foreign.payload
    )
    steps = 2 * ASSERTIONS_AT_ONCE
    for _ in range(steps):
        rollout.clock.now += 1.0
        watcher.step()
    rollout.clock.now += 10 * HOLD_SECONDS
    watcher.step()
    assert rollout.order().share == 0.05
    assert rollout.metrics.failures._value.get() == steps + 1


def test_a_connection_that_lasts_renews_chunks_before_they_expire(rollout: Rollout) -> None:
    watcher = rollout.watcher()
    watcher.step()
    sent = rollout.metrics.chunks_sent._value.get()
    rollout.clock.now += ASSERT_AGAIN_SECONDS + 1
    watcher.step()
    assert rollout.metrics.chunks_sent._value.get() == sent
    rollout.clock.now += RENEW_SECONDS
    watcher.step()
    assert rollout.metrics.chunks_sent._value.get() == 2 * sent


def test_an_allowance_fills_up_and_no_further() -> None:
    allowance, now = Allowance(2, 10.0), 1_000.0
    for _ in range(2):
        allowance.take(now)
    assert not allowance.is_open(now)
    assert not allowance.is_open(now - 500.0)
    assert not allowance.is_open(now - 495.0)
    assert allowance.is_open(now - 489.0)
    allowance.take(now + 1e6)
    allowance.take(now + 1e6)
    assert not allowance.is_open(now + 1e6)
