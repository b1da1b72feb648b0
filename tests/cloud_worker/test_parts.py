"""Intake, queue, computing and replies with an injected network and clock, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.exchange import Delivery, Outcome
from cloud_worker.agreement import AgreementCounter
from cloud_worker.dead_letters import LARGEST_SEALED_BYTES
from cloud_worker.held import Asker
from cloud_worker.metrics import WorkerMetrics
from cloud_worker.receive import Intake
from cloud_worker.releases import Releases
from cloud_worker.reply import DEAD_LETTERS_PER_SECOND, Replies
from cloud_worker.request_queue import RequestQueue
from cloud_worker.resume import Resumer
from cloud_worker.scheduler import BatchLimits
from protocol.duplicates import DuplicateGuard
from protocol.keys import EdgeKeyring, EdgeKeys, PoolKeys
from protocol.messages import (
    Accepted,
    AnswerMessage,
    Busy,
    ErrorMessage,
    Provisional,
    RequestWindow,
    ResumeRequest,
    WorkerMessage,
)
from protocol.sealing import (
    CLOCK_SKEW_SECONDS,
    RequestHeader,
    RequestKey,
    open_answer,
    seal_cancel,
    seal_request,
)
from protocol.topics import AnswerTopic, CancelTopic, RequestTopic
from reader.model import Reader
from reader.states import StateBatch
from tests.cloud_worker.fakes import FakeClock, FakeSession
from tests.cloud_worker.harness import make_state, make_window, spans_alone, wait_until

LEASE_SECONDS = 5.0


class Parts:
    """The parts of one worker; only the reply thread runs, unless a test starts the computing."""

    def __init__(self, reader: Reader, *, bound: int = 8) -> None:
        self.clock, self.session, self.metrics = FakeClock(), FakeSession(), WorkerMetrics()
        self.keys, self.pool = EdgeKeys.make("kitchen"), PoolKeys.make("pool-1")
        self.reader = reader
        self.guard = DuplicateGuard(clock=self.clock)
        self.releases, self.coming = Releases([reader]), set[str]()
        self.heard: list[Delivery] = []
        self.agreement = AgreementCounter(self.metrics.agreement)
        releases = self.releases
        self.queue = RequestQueue(
            BatchLimits(),
            releases.pace,
            bound=bound,
            bound_bytes=10_000_000,
            clock=self.clock,
        )
        self.replies = Replies(self.session, self.metrics, name="one", bound=4, clock=self.clock)
        self.resumer = Resumer(
            self.queue,
            self.replies,
            self.guard,
            self.metrics,
            self.agreement,
            name="one",
            lease_seconds=LEASE_SECONDS,
            clock=self.clock,
        )
        self.intake = Intake(
            self.session,
            self.queue,
            self.replies,
            releases,
            self.guard,
            self.metrics,
            pool_keys=lambda: self.pool,
            edges=EdgeKeyring({"kitchen": self.keys.public}),
            priorities=("high", "normal"),
            lease_seconds=LEASE_SECONDS,
            state_bytes_bound=100_000,
            pace=lambda: 3.0,
            listeners=[self.listen],
            is_coming=self.coming.__contains__,
            clock=self.clock,
            wall_clock=self.clock,
        )
        self.sent: dict[str, tuple[RequestHeader, RequestKey]] = {}
        self.replies.start()

    def listen(self, delivery: Delivery) -> bool:
        """The part that hears of releases."""
        if not delivery.topic.startswith("elma/v1/model/"):
            return False
        self.heard.append(delivery)
        return True

    def request(
        self,
        name: str,
        *windows: RequestWindow,
        deadline_seconds: float = 30.0,
        priority: str = "normal",
        is_audit: bool = False,
    ) -> Delivery:
        """A sealed request as the broker delivers it."""
        header = RequestHeader(
            1,
            "pool-1",
            "kitchen",
            name,
            self.clock(),
            self.clock() + deadline_seconds,
            self.reader.digest,
        )
        body = ResumeRequest(windows or (make_window(self.reader),), 20, is_audit)
        payload, key = seal_request(header, body, self.keys, self.pool.public)
        self.sent[name] = header, key
        topic = str(RequestTopic(priority, "kitchen", name))
        return Delivery(topic, payload, epoch=1, mid=len(self.sent))

    def take(self, delivery: Delivery) -> None:
        """Let the intake have a delivery, and wait until the replies are out."""
        self.intake.take(delivery)
        assert self.replies.flush(10.0)

    def words(self, name: str) -> list[WorkerMessage]:
        """What was said to a request, in order."""
        header, key = self.sent[name]
        topic = str(AnswerTopic("kitchen", name))
        return [
            open_answer(one.payload, header, key)
            for one in self.session.published
            if one.topic == topic
        ]

    def stop(self) -> None:
        self.resumer.stop(10.0)
        self.replies.stop()


@pytest.fixture
def parts(tiny_reader: Reader) -> Iterator[Parts]:
    made = Parts(tiny_reader)
    yield made
    made.stop()


def outcome_count(parts: Parts, outcome: str) -> float:
    value = parts.metrics.registry.get_sample_value(
        "elma_worker_requests_total", {"outcome": outcome}
    )
    assert value is not None
    return value


def dropped_windows(parts: Parts, why: str) -> float:
    value = parts.metrics.registry.get_sample_value(
        "elma_worker_dropped_windows_total", {"why": why}
    )
    assert value is not None
    return value


def test_a_delivery_is_acknowledged_after_accepted_was_published(parts: Parts) -> None:
    delivery = parts.request("r1")
    parts.take(delivery)
    assert parts.words("r1") == [Accepted(LEASE_SECONDS, "one")]
    assert parts.session.done == [
        "published elma/v1/ans/kitchen/r1",
        f"acknowledged {delivery.topic}",
    ]


def test_a_reply_goes_to_the_edge_in_the_sealed_header_whatever_the_delivery_asks(
    parts: Parts,
) -> None:
    delivery = replace(parts.request("r1"), response_topic="elma/v1/ans/thief/r1")
    parts.take(delivery)
    assert [one.topic for one in parts.session.published] == ["elma/v1/ans/kitchen/r1"]


def test_a_request_for_a_release_that_is_coming_is_told_busy_and_for_others_refused(
    parts: Parts,
) -> None:
    parts.releases.retire(parts.reader.digest)
    parts.coming.add(parts.reader.digest)
    delivery = parts.request("r1")
    parts.take(delivery)
    assert [type(word) for word in parts.words("r1")] == [Busy]
    parts.coming.clear()
    parts.take(delivery)
    assert parts.words("r1")[1].code == "unknown_release"  # type: ignore[union-attr]
    parts.releases.add(parts.reader)
    parts.take(delivery)
    assert isinstance(parts.words("r1")[2], Accepted)


def test_what_is_no_request_goes_to_the_listener_that_takes_it_and_else_is_acknowledged(
    parts: Parts,
) -> None:
    ours = Delivery("elma/v1/model/stable/manifest", b"?", epoch=1, mid=1)
    nobodys = Delivery("elma/v1/metrics/kitchen", b"?", epoch=1, mid=2)
    parts.intake.take(ours)
    parts.intake.take(nobodys)
    assert parts.heard == [ours]
    assert parts.session.acknowledged == [nobodys]


def test_an_answered_request_is_compared_with_what_its_edge_had_found(parts: Parts) -> None:
    window = make_window(parts.reader)
    state = make_state(parts.reader, 1, 24, 0)
    best = spans_alone(parts.reader, state, 1).spans[0]
    mine = Provisional(1, best.start_token, best.end_token)
    other = Provisional(1, best.start_token + 1, best.end_token + 1)
    parts.resumer.start()
    parts.take(parts.request("r1", replace(window, provisional=other)))
    parts.take(parts.request("r2", replace(window, provisional=other), is_audit=True))
    parts.take(parts.request("r3", replace(window, provisional=mine), is_audit=True))
    parts.take(parts.request("r4", window))
    wait_until(
        lambda: sum(one.total for one in parts.agreement.snapshot()) == 3, "all to be compared"
    )
    counts = {one.kind: (one.layer, one.total) for one in parts.agreement.snapshot()}
    assert counts == {"offload": (1, 1), "audit": (1, 2)}
    assert {one.release for one in parts.agreement.snapshot()} == {parts.reader.digest}


def test_requests_past_the_bound_are_told_busy_and_leave_no_trace(tiny_reader: Reader) -> None:
    parts = Parts(tiny_reader, bound=1)
    first, second = parts.request("r1"), parts.request("r2")
    parts.take(first)
    parts.take(second)
    assert parts.words("r2") == [Busy(1.5, "one")]
    request = parts.queue.find("kitchen", "r1")
    assert request is not None
    parts.queue.remove(request)
    parts.take(second)
    assert parts.words("r2")[1:] == [Accepted(LEASE_SECONDS, "one")]
    parts.stop()


def test_a_request_larger_than_the_whole_queue_is_refused_for_good(parts: Parts) -> None:
    windows = [make_window(parts.reader, index=number, tokens=200) for number in range(8)]
    parts.take(parts.request("r1", *windows))
    word = parts.words("r1")[0]
    assert isinstance(word, ErrorMessage)
    assert word.code == "too_large"


def test_an_expired_request_is_dropped_and_no_layer_is_run_for_it(parts: Parts) -> None:
    parts.take(parts.request("late", deadline_seconds=2.0))
    parts.take(parts.request("good", deadline_seconds=60.0))
    parts.clock.now += 2.0 + CLOCK_SKEW_SECONDS + 0.1
    parts.resumer.start()
    wait_until(lambda: AnswerMessage in map(type, parts.words("good")), "the good one's answer")
    assert outcome_count(parts, "expired") == 1
    assert all(isinstance(word, Accepted) for word in parts.words("late"))
    run = parts.metrics.registry.get_sample_value("elma_worker_windows_total", {"layer": "6"})
    assert run == 1
    assert dropped_windows(parts, "expired") == 1


def test_a_request_of_a_higher_priority_is_computed_first(parts: Parts) -> None:
    parts.take(parts.request("low", make_window(parts.reader, layer=4)))
    parts.take(parts.request("high", make_window(parts.reader, layer=1), priority="high"))
    order = [batch[0].request.key[1] for batch in iter(lambda: parts.queue.take_batch(0.0), [])]
    assert order == ["high", "low"]


def test_a_cancelled_request_is_taken_out_before_it_is_computed(parts: Parts) -> None:
    windows = [make_window(parts.reader, index=number) for number in range(3)]
    parts.take(parts.request("gone", *windows))
    parts.take(parts.request("kept", make_window(parts.reader, index=7)))
    topic = str(CancelTopic("kitchen", "gone"))
    parts.take(Delivery(topic, seal_cancel(*parts.sent["gone"]), epoch=1, mid=9))
    assert dropped_windows(parts, "cancelled") == 3
    assert [one.index for one in parts.queue.take_batch(0.0)] == [7]


def test_a_cancellation_during_a_step_ends_the_request_after_it(parts: Parts) -> None:
    parts.take(parts.request("r1"))
    batch = parts.queue.take_batch(0.0)
    request = batch[0].request
    assert parts.queue.remove(request)
    parts.queue.enter([batch[0].moved_on(None, 0)])
    assert parts.queue.waiting_windows == 0


def test_a_request_that_was_cancelled_is_taken_anew_when_it_comes_again(parts: Parts) -> None:
    delivery = parts.request("r1")
    parts.take(delivery)
    topic = str(CancelTopic("kitchen", "r1"))
    cancel = Delivery(topic, seal_cancel(*parts.sent["r1"]), epoch=1, mid=9)
    parts.take(cancel)
    assert len(parts.queue) == 0
    assert parts.queue.waiting_windows == 0
    parts.take(delivery)
    assert len(parts.queue) == 1


def test_only_its_own_edge_can_cancel_a_request(parts: Parts) -> None:
    parts.take(parts.request("r1"))
    header, _ = parts.sent["r1"]
    forged = seal_cancel(header, RequestKey.make())
    parts.take(Delivery(str(CancelTopic("kitchen", "r1")), forged, epoch=1, mid=9))
    assert len(parts.queue) == 1
    assert parts.session.acknowledged[-1].mid == 9


def test_while_draining_new_requests_are_busy_and_known_ones_keep_their_promise(
    parts: Parts,
) -> None:
    known, new = parts.request("known"), parts.request("new")
    parts.take(known)
    parts.intake.is_draining = True
    parts.take(new)
    parts.take(known)
    assert [type(word) for word in parts.words("new")] == [Busy]
    assert [type(word) for word in parts.words("known")] == [Accepted, Accepted]


def test_a_failing_batch_costs_only_the_window_that_makes_it_fail(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Reader.run_mixed

    def run_mixed(self: Reader, batch: StateBatch, layers: Sequence[int]) -> StateBatch:
        if 31 in batch.lengths:
            raise RuntimeError("out of memory")
        return whole(self, batch, layers)

    monkeypatch.setattr(Reader, "run_mixed", run_mixed)
    parts.take(parts.request("bad", make_window(parts.reader, tokens=31)))
    parts.take(parts.request("good", make_window(parts.reader, tokens=30)))
    parts.resumer.start()
    wait_until(lambda: len(parts.words("bad")) > 1 and len(parts.words("good")) > 1, "both ends")
    assert isinstance(parts.words("good")[-1], AnswerMessage)
    word = parts.words("bad")[-1]
    assert isinstance(word, ErrorMessage)
    assert (word.code, "memory" in word.detail) == ("internal", False)


def test_leases_are_renewed_between_two_steps_while_others_are_computed(parts: Parts) -> None:
    parts.take(parts.request("r1"))
    parts.clock.now += 0.6 * LEASE_SECONDS
    parts.resumer.start()
    wait_until(lambda: isinstance(parts.words("r1")[-1], AnswerMessage), "the answer")
    assert [type(word) for word in parts.words("r1")] == [Accepted, Accepted, AnswerMessage]


def test_leases_are_renewed_before_they_end(parts: Parts) -> None:
    parts.take(parts.request("r1"))
    assert parts.queue.leases_to_renew(LEASE_SECONDS / 2) == []
    parts.clock.now += 0.6 * LEASE_SECONDS
    assert [held.key for held in parts.queue.leases_to_renew(LEASE_SECONDS / 2)] == [
        ("kitchen", "r1")
    ]


def test_an_answer_waits_for_a_connection_and_accepted_does_not(parts: Parts) -> None:
    parts.take(parts.request("r1"))
    parts.session.is_connected = False
    parts.intake.take(parts.request("r2"))
    parts.replies.flush(1.0)
    assert parts.words("r2") == []
    parts.resumer.start()
    wait_until(lambda: len(parts.queue) == 0, "both computed")
    assert not parts.replies.flush(0.2)
    parts.session.is_connected = True
    assert parts.replies.flush(10.0)
    assert [type(word) for word in parts.words("r1")] == [Accepted, AnswerMessage]
    assert [type(word) for word in parts.words("r2")] == [AnswerMessage]


def test_an_answer_whose_connection_ended_first_is_published_again(parts: Parts) -> None:
    parts.take(parts.request("r1"))
    parts.session.settles_receipts = False
    parts.resumer.start()
    wait_until(lambda: len(parts.words("r1")) == 2, "the answer")
    parts.session.settles_receipts = True
    parts.session.receipts[-1].settle(Outcome.LOST, "connection ended")
    wait_until(lambda: len(parts.words("r1")) == 3, "the answer again")
    assert parts.words("r1")[1] == parts.words("r1")[2]


def test_replies_wait_their_turn_when_the_broker_allows_no_more(parts: Parts) -> None:
    parts.session.in_flight_limit = 1
    parts.session.settles_receipts = False
    for name in ("r1", "r2"):
        parts.intake.take(parts.request(name))
    wait_until(lambda: parts.words("r1"), "the first reply")
    assert parts.words("r2") == []
    parts.session.receipts[0].settle(Outcome.ACKNOWLEDGED)
    wait_until(lambda: parts.words("r2"), "the second reply")


def test_an_answer_that_the_broker_would_not_take_becomes_an_error(parts: Parts) -> None:
    parts.take(parts.request("r1"))
    parts.session.maximum_packet_bytes = 1_100
    parts.resumer.start()
    wait_until(lambda: len(parts.words("r1")) == 2, "the last word")
    word = parts.words("r1")[1]
    assert isinstance(word, ErrorMessage)
    assert word.code == "too_large"


def test_replies_past_their_bound_are_dropped_and_their_deliveries_acknowledged(
    parts: Parts,
) -> None:
    header_key = Asker(*_sealed(parts))
    parts.session.in_flight_limit = 0
    for mid in range(7):  # one is being published, four wait
        delivery = Delivery("elma/v1/req/normal/kitchen/r1", b"", epoch=1, mid=mid)
        parts.replies.busy(header_key, 1.0, delivery)
    dropped = [one.mid for one in parts.session.acknowledged]
    assert dropped[-1] == 6
    assert len(dropped) in (2, 3)


def test_a_large_dead_letter_tells_its_header_and_size_and_carries_no_payload(
    parts: Parts,
) -> None:
    sealed = parts.request("r1")
    large = replace(sealed, payload=sealed.payload + bytes(LARGEST_SEALED_BYTES))
    parts.take(large)
    [letter] = [one for one in parts.session.published if "/dead/" in one.topic]
    document = json.loads(letter.payload)
    assert document["bytes"] == len(large.payload)
    assert document["header"] is None or document["header"]["request"] == "r1"
    assert document["sealed"] is None
    assert len(letter.payload) < 1_000


def test_dead_letters_and_their_log_lines_are_few_and_their_counts_exact(parts: Parts) -> None:
    with capture_logs() as lines:
        for number in range(100):
            forged = replace(parts.request(f"r{number}"), payload=b"forged")
            parts.take(forged)
        parts.clock.now += 1.0
        parts.take(replace(parts.request("later"), payload=b"forged"))
    letters = [one.topic for one in parts.session.published if "/dead/" in one.topic]
    assert len(letters) == DEAD_LETTERS_PER_SECOND + 1
    assert letters[-1].endswith("/later")
    assert outcome_count(parts, "malformed") == 101
    assert len([line for line in lines if line["event"] == "request"]) < 100
    assert len(parts.session.acknowledged) == 101


def test_dead_letters_leave_the_reply_line_to_replies(parts: Parts) -> None:
    parts.session.in_flight_limit = 0
    for number in range(6):
        parts.intake.take(replace(parts.request(f"r{number}"), payload=b"forged"))
        parts.clock.now += 1.0
    parts.session.in_flight_limit = 100
    parts.take(parts.request("good"))
    assert parts.words("good") == [Accepted(LEASE_SECONDS, "one")]
    letters = [one for one in parts.session.published if "/dead/" in one.topic]
    assert 1 <= len(letters) <= 2  # one at the broker's door, one in the line


def test_no_thread_dies_when_every_log_line_raises(
    parts: Parts, broken_log: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliveries = [
        replace(parts.request("forged"), payload=b"forged"),
        Delivery("elma/v1/no/topic", b"", epoch=1, mid=9),
        parts.request("good"),
    ]
    monkeypatch.setattr(
        parts.session, "receive", lambda _seconds: deliveries.pop(0) if deliveries else None
    )
    monkeypatch.setattr(parts.queue, "past_due", fails_once(parts.queue.past_due))
    monkeypatch.setattr(parts.session, "publish", fails_once(parts.session.publish))
    monkeypatch.setattr(parts.intake, "take", fails_once(parts.intake.take))
    parts.resumer.start()
    parts.intake.start()
    wait_until(
        lambda: any(isinstance(word, AnswerMessage) for word in parts.words("good")), "the answer"
    )
    assert parts.intake.is_alive
    assert parts.resumer.is_alive
    assert parts.replies.is_alive
    parts.intake.stop()


def fails_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, after a first call that raises."""
    calls = []

    def call(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("a fault of ours")
        return function(*arguments)

    return call


def _sealed(parts: Parts) -> tuple[RequestHeader, RequestKey]:
    parts.request("r1")
    return parts.sent["r1"]
