"""Audits of one agent, with a session in memory: what is compared, sent, kept, and given up."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from broker.errors import NotConnected
from broker.exchange import Delivery, Outcome, Publication, Receipt
from edge_agent.audit import Auditor, is_sampled
from edge_agent.audit_settings import AuditSettings
from edge_agent.audit_store import StoredAudit, read_audits
from edge_agent.audit_windows import audit_codec, provisional_of
from edge_agent.cloud_messages import RequestSealer
from edge_agent.inference import InferenceThread, Job
from edge_agent.local_reading import LocalReading, Reading
from edge_agent.questions import Question
from edge_agent.settings import OffloadSettings
from protocol.keys import EdgeKeyring, EdgeKeys, PoolKeys
from protocol.messages import (
    Accepted,
    AnswerMessage,
    Busy,
    ErrorMessage,
    Provisional,
    SpanScore,
    WindowResult,
    WorkerMessage,
)
from protocol.sealing import OpenedRequest, open_request, seal_answer
from protocol.topics import AnswerTopic, CancelTopic, RequestTopic, parse_topic
from reader.exits import ExitSettings
from reader.model import Reader
from reader.spans import Span, WindowSpans
from reader.walk import walk
from tests.edge_agent.conftest import EDGE, PASSAGE, QUESTION, wait_until
from tests.tiny import make_tiny_model

LAYERS, EDGE_LAYERS = 4, 2
Reply = Callable[["Cloud", OpenedRequest], WorkerMessage | None]


@pytest.fixture(scope="module")
def certain(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """A reader that stops every window at the first exit."""
    folder = tmp_path_factory.mktemp("model") / "certain"
    settings = replace(ExitSettings.uncalibrated(LAYERS), exit_thresholds=(1.0, -1.0, -1.0, -1.0))
    make_tiny_model(folder, layers=LAYERS, settings=settings)
    return Reader.load(folder, threads=1)


def resumes(cloud: Cloud, request: OpenedRequest) -> AnswerMessage:
    """A worker's answer: what full depth finds."""
    reader, results = cloud.reader, []
    for window in request.body.windows:
        state = reader.codecs.decode(
            window.codec, window.from_layer, window.state, window.length_tokens
        )
        batch = reader.engine.pack([state], [window.question_tokens])
        batch = reader.run(batch, window.from_layer, LAYERS)
        (found,) = reader.spans(batch, LAYERS, [window.index])
        spans = tuple(
            SpanScore(span.start_token, span.end_token, span.start_logit, span.end_logit)
            for span in found.spans[: request.body.top_spans]
        )
        results.append(WindowResult(window.index, LAYERS, found.null_score, spans))
    return AnswerMessage(tuple(results), "w", 0.0, 0.0)


@dataclass
class Cloud:
    """A session whose publications a worker answers at once, by `reply`."""

    reader: Reader
    edge: EdgeKeys
    pool: PoolKeys
    reply: Reply = resumes
    is_connected: bool = True
    maximum_packet_bytes: int = 1_000_000
    has_worker: bool = True
    requests: list[OpenedRequest] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    cancelled: int = 0
    acknowledged: int = 0
    on_connection_change: Callable[[bool], None] | None = None
    auditor: Auditor | None = None

    def start(self) -> None:
        """Nothing to connect."""

    def stop(self) -> None:
        """Nothing to disconnect."""

    def receive(self, timeout_seconds: float) -> Delivery | None:  # noqa: ARG002
        """Nothing comes but through `say`."""
        return None

    def acknowledge(self, delivery: Delivery) -> bool:  # noqa: ARG002
        """Count it."""
        self.acknowledged += 1
        return True

    def publish(self, publication: Publication) -> Receipt:
        """Take a request to the worker."""
        if not self.is_connected:
            raise NotConnected("away")
        topic = parse_topic(publication.topic)
        if isinstance(topic, CancelTopic):
            self.cancelled += 1
            return receipt_of(Outcome.ACKNOWLEDGED)
        assert isinstance(topic, RequestTopic)
        self.payloads.append(publication.payload)
        if not self.has_worker:
            return receipt_of(Outcome.NO_SUBSCRIBER)
        edges = EdgeKeyring({EDGE: self.edge.public})
        opened = open_request(publication.payload, self.pool, edges, time.time(), topic)
        self.requests.append(opened)
        word = self.reply(self, opened)
        if word is not None:
            self.say(opened, word)
        return receipt_of(Outcome.ACKNOWLEDGED)

    def say(self, request: OpenedRequest, word: WorkerMessage) -> None:
        """Deliver a worker's word."""
        self.deliver(
            str(AnswerTopic(EDGE, request.header.request)),
            seal_answer(request.header, request.key, word),
        )

    def deliver(self, topic: str, payload: bytes) -> bool:
        """Hand a delivery to the auditor; whether it was its own."""
        assert self.auditor is not None
        return self.auditor.take(Delivery(topic, payload, epoch=1, mid=1))


@dataclass
class Bench:
    """An auditor with its cloud and a running inference thread."""

    auditor: Auditor
    cloud: Cloud
    inference: InferenceThread
    local: LocalReading
    registry: CollectorRegistry
    file: Path
    is_busy: threading.Event

    def read(self, request_id: str, passage: str = PASSAGE) -> Reading:
        """What the device itself makes of a question."""
        question = Question(request_id, QUESTION, passage, 1, 10.0, time.time())
        return self.local.read(question)

    def lost(self, reason: str, kind: str = "audit") -> float:
        """How many comparisons were lost so."""
        labels = {"kind": kind, "reason": reason}
        return self.registry.get_sample_value("elma_edge_audits_lost_total", labels) or 0.0

    def kept(self) -> list[StoredAudit]:
        """The rows of the file."""
        return list(read_audits(self.file))

    def wait_for(self, total: int) -> None:
        """Wait until so many comparisons were made or lost."""
        wait_until(
            lambda: self.auditor.health()["recorded"] + self.auditor.health()["lost"] >= total
        )


MakeBench = Callable[..., Bench]


@pytest.fixture
def bench(certain: Reader, tmp_path: Path) -> Iterator[MakeBench]:
    """A function that starts an auditor; keywords are those of `AuditSettings`."""
    started: list[Bench] = []

    def make(
        reader: Reader = certain,
        offload: OffloadSettings | None = None,
        watch: Callable[[Job], Job] = lambda job: job,
        **settings: object,
    ) -> Bench:
        edge, pool = EdgeKeys.make(EDGE), PoolKeys.make("p1")
        cloud = Cloud(reader, edge, pool)
        inference = InferenceThread(queue_bound=8)
        registry, is_busy = CollectorRegistry(), threading.Event()
        file = tmp_path / "audit.sqlite3"
        auditor = Auditor(
            AuditSettings(**{"rate": 1.0, "store_file": file, **settings}),
            cloud,
            RequestSealer(edge, lambda: pool.public),
            offload or OffloadSettings(codec="fp32"),
            run_when_idle=lambda job: inference.read_again(watch(job), float("inf")),
            is_busy=is_busy.is_set,
            registry=registry,
            silence_seconds=0.3,
        )
        cloud.auditor = auditor
        made = Bench(
            auditor,
            cloud,
            inference,
            LocalReading(reader, edge_layers=EDGE_LAYERS),
            registry,
            file,
            is_busy,
        )
        inference.start()
        auditor.start()
        started.append(made)
        return made

    yield make
    for made in started:
        made.auditor.stop()
        made.inference.stop(5.0)


def receipt_of(outcome: Outcome) -> Receipt:
    receipt = Receipt()
    receipt.settle(outcome)
    return receipt


def full_depth(reader: Reader, passage: str = PASSAGE) -> dict[int, WindowSpans]:
    never = replace(reader.settings, exit_thresholds=(-1.0,) * LAYERS)
    return walk(reader, reader.split(QUESTION, passage), settings=never).resolved


def test_about_the_rate_of_ids_is_sampled_and_always_the_same() -> None:
    ids = [f"request-{number}" for number in range(4_000)]
    chosen = [request_id for request_id in ids if is_sampled(request_id, 0.25)]
    assert len(chosen) == pytest.approx(1_000, abs=110)  # four standard deviations
    assert chosen == [request_id for request_id in ids if is_sampled(request_id, 0.25)]
    assert set(chosen) <= {request_id for request_id in ids if is_sampled(request_id, 0.5)}
    assert all(is_sampled(request_id, 1.0) for request_id in ids)
    assert not any(is_sampled(request_id, 0.0) for request_id in ids)


def test_a_confident_answer_is_compared_with_full_depth(bench: MakeBench) -> None:
    made = bench()
    reading = made.read("q1")
    assert reading.is_settled
    made.auditor.answered_here(reading)
    made.wait_for(1)
    (stored,) = made.kept()
    (final,) = full_depth(made.local.reader).values()
    record, (window,) = stored.record, stored.record.windows
    assert (record.kind, record.release) == ("audit", made.local.reader.digest)
    assert record.exit_layer == 1
    assert record.depth == EDGE_LAYERS
    assert window.final.layer == LAYERS
    assert window.final.null_score == pytest.approx(final.null_score, abs=1e-4)
    agrees = "yes" if record.agreed else "no"
    labels = {"kind": "audit", "agrees": agrees}
    assert made.registry.get_sample_value("elma_edge_audits_total", labels) == 1.0
    assert stored.text is None


def test_what_is_sent_is_an_audit_of_all_windows_with_the_devices_spans(bench: MakeBench) -> None:
    made = bench()
    passage = PASSAGE * 30
    reading = made.read("q1", passage)
    assert len(reading.windows) > 1
    made.auditor.answered_here(reading)
    made.wait_for(1)
    (request,) = made.cloud.requests
    assert request.body.is_audit
    assert request.body.top_spans == 1
    assert [window.index for window in request.body.windows] == list(reading.resolved)
    for window in request.body.windows:
        assert window.from_layer == EDGE_LAYERS
        mine = provisional_of(reading.resolved[window.index], made.local.reader.settings)
        assert window.provisional == mine
        assert mine.layer == 1
    sent = made.registry.get_sample_value("elma_edge_audit_sent_bytes_total")
    assert sent == len(made.cloud.payloads[0])


def test_no_text_leaves_the_device_or_reaches_the_file(bench: MakeBench) -> None:
    made = bench(offload=OffloadSettings(codec="auto", privacy="allow-tokens"))
    made.auditor.answered_here(made.read("q1"))
    made.wait_for(1)
    (request,) = made.cloud.requests
    assert {window.codec for window in request.body.windows} == {"int8"}, "states, never tokens"
    for content in (*made.cloud.payloads, *(f.read_bytes() for f in made.file.parent.iterdir())):
        assert b"lighthouse" not in content
    assert QUESTION not in repr(made.kept())


def test_text_is_kept_on_the_device_only_when_that_is_asked_for(bench: MakeBench) -> None:
    made = bench(keep_text=True)
    made.auditor.answered_here(made.read("q1"))
    made.wait_for(1)
    (stored,) = made.kept()
    assert stored.text is not None
    assert (stored.text.question, stored.text.passage) == (QUESTION, PASSAGE)
    assert b"lighthouse" not in made.cloud.payloads[0]
    assert "lighthouse" not in repr(stored)


def test_an_offloaded_question_is_compared_without_asking_again(bench: MakeBench) -> None:
    made = bench()
    reading = made.read("q1")
    made.auditor.answered_by_cloud(reading, full_depth(made.local.reader))
    made.wait_for(1)
    (stored,) = made.kept()
    assert (stored.record.kind, stored.record.weight) == ("offload", 1.0)
    assert made.cloud.requests == []


def test_a_record_weighs_what_the_rate_says_and_stands_for_lost_ones(bench: MakeBench) -> None:
    made = bench(rate=0.5)
    sampled = [name for name in map(str, range(20)) if is_sampled(name, 0.5)][:3]
    made.cloud.has_worker = False
    made.auditor.answered_here(made.read(sampled[0]))
    made.wait_for(1)
    made.cloud.has_worker = True
    for number, request_id in enumerate(sampled[1:], start=2):
        made.auditor.answered_here(made.read(request_id))
        made.wait_for(number)
    assert made.lost("no_worker") == 1
    assert [stored.record.weight for stored in made.kept()] == [3.0, 3.0]


def test_what_is_not_sampled_is_not_compared(bench: MakeBench) -> None:
    made = bench(rate=0.5)
    for name in map(str, range(12)):
        made.auditor.answered_here(made.read(name))
    expected = sum(is_sampled(name, 0.5) for name in map(str, range(12)))
    made.wait_for(expected)
    assert len(made.kept()) == expected
    assert len(made.cloud.requests) == expected


def test_offline_nothing_is_sampled_and_nothing_is_made_up_for_later(bench: MakeBench) -> None:
    made = bench()
    made.cloud.is_connected = False
    made.auditor.answered_here(made.read("q1"))
    made.auditor.answered_by_cloud(made.read("q2"), full_depth(made.local.reader))
    made.cloud.is_connected = True
    made.auditor.answered_here(made.read("q3"))
    made.wait_for(1)
    assert [request.header.request[:3] for request in made.cloud.requests] == ["q3-"]
    assert [stored.record.weight for stored in made.kept()] == [1.0]
    assert made.auditor.health()["lost"] == 0


def test_a_question_that_needs_the_cloud_goes_first(bench: MakeBench) -> None:
    made = bench()
    made.is_busy.set()
    made.auditor.answered_here(made.read("q1"))
    made.wait_for(1)
    assert made.lost("questions_first") == 1
    assert made.cloud.payloads == []


def busy(_cloud: Cloud, _request: OpenedRequest) -> WorkerMessage:
    return Busy(0.1, "w")


def refuses(_cloud: Cloud, _request: OpenedRequest) -> WorkerMessage:
    return ErrorMessage("unknown_release", "not loaded", "w")


def says_nothing(_cloud: Cloud, _request: OpenedRequest) -> None:
    return None


def answers_nonsense(_cloud: Cloud, request: OpenedRequest) -> WorkerMessage:
    """Spans outside the window."""
    index = request.body.windows[0].index
    result = WindowResult(index, LAYERS, 0.0, (SpanScore(1000, 1001, 1.0, 1.0),))
    return AnswerMessage((result,), "w", 0.0, 0.0)


@pytest.mark.parametrize(
    ("reply", "reason", "publications"),
    [
        (busy, "workers_busy", 1),
        (refuses, "refused", 1),
        (says_nothing, "silence", 2),
        (answers_nonsense, "refused", 1),
    ],
)
def test_an_audit_is_given_up_at_the_first_trouble(
    bench: MakeBench, reply: Reply, reason: str, publications: int
) -> None:
    made = bench()
    made.cloud.reply = reply
    made.auditor.answered_here(made.read("q1"))
    made.wait_for(1)
    assert made.lost(reason) == 1
    assert len(made.cloud.payloads) == publications
    assert len(set(made.cloud.payloads)) == 1, "a repetition has the same bytes"
    made.cloud.reply = resumes  # and the next one is compared as if nothing had been
    made.auditor.answered_here(made.read("q2"))
    made.wait_for(2)
    assert len(made.kept()) == 1


def test_silence_once_is_forgiven_and_forged_words_are_silence(bench: MakeBench) -> None:
    made = bench()

    def answers_the_second_time(cloud: Cloud, request: OpenedRequest) -> WorkerMessage | None:
        cloud.deliver(str(AnswerTopic(EDGE, request.header.request)), b"forged")
        return resumes(cloud, request) if len(cloud.payloads) == 2 else None

    made.cloud.reply = answers_the_second_time
    made.auditor.answered_here(made.read("q1"))
    made.wait_for(1)
    assert len(made.kept()) == 1


def test_a_lease_is_waited_for(bench: MakeBench) -> None:
    made = bench()

    def accepts_first(cloud: Cloud, request: OpenedRequest) -> WorkerMessage:
        cloud.say(request, Accepted(5.0, "w"))
        cloud.say(request, Accepted(5.0, "w"))
        return resumes(cloud, request)

    made.cloud.reply = accepts_first
    made.auditor.answered_here(made.read("q1"))
    made.wait_for(1)
    assert len(made.kept()) == 1
    assert made.cloud.acknowledged == 3


def test_only_an_audits_own_deliveries_are_taken(bench: MakeBench) -> None:
    made = bench()
    made.auditor.answered_here(made.read("q1"))
    made.wait_for(1)
    wire_id = made.cloud.requests[0].header.request
    acknowledged = made.cloud.acknowledged
    assert made.cloud.deliver(str(AnswerTopic(EDGE, wire_id)), b"late word")
    assert made.cloud.acknowledged == acknowledged + 1
    assert not made.cloud.deliver(str(AnswerTopic(EDGE, "a-question")), b"not ours")
    assert not made.cloud.deliver("elma/v1/presence/worker/w", b"")
    assert not made.cloud.deliver("no/topic/of/ours", b"")


def test_too_many_at_once_are_dropped_and_counted(bench: MakeBench) -> None:
    made = bench()
    gate, reading = threading.Event(), made.read("q")

    def hold() -> Iterator[None]:
        gate.wait(20.0)
        yield from ()

    made.inference.read_again(hold(), 0.0)
    for _ in range(60):
        made.auditor.answered_here(reading)
    assert made.lost("queue_full") >= 60 - 33
    gate.set()
    made.wait_for(60)
    assert len(made.kept()) + made.auditor.health()["lost"] == 60
    assert sum(stored.record.weight for stored in made.kept()) == pytest.approx(60)


def test_a_trace_gives_way_to_a_question_between_two_layers(bench: MakeBench) -> None:
    order: list[str] = []

    def question() -> Job:
        order.append("question")
        yield from ()

    def watched(trace: Job) -> Job:
        for _ in trace:
            order.append("layer")
            if len(order) == 1:
                made.inference.read_again(question(), time.monotonic() + 10.0)
            yield

    made = bench(watch=watched)
    reading = made.read("q1", PASSAGE * 30)
    made.auditor.answered_here(reading)
    made.wait_for(1)
    assert order[:3] == ["layer", "question", "layer"]
    assert order.count("layer") == len(reading.windows) * EDGE_LAYERS


def test_a_passage_too_long_for_one_request_is_no_part_of_either_kind(bench: MakeBench) -> None:
    made = bench(offload=OffloadSettings(codec="fp32", max_request_bytes=20_000))
    passage = PASSAGE * 30
    reading = made.read("q1", passage)
    made.auditor.answered_here(reading)
    made.auditor.answered_by_cloud(reading, full_depth(made.local.reader, passage))
    made.auditor.answered_here(made.read("q2"))
    made.wait_for(1)
    assert (made.lost("too_large"), made.lost("too_large", "offload")) == (1, 1)
    assert [stored.record.weight for stored in made.kept()] == [1.0]


def test_a_file_that_cannot_be_used_stops_audits_before_anything_is_sent(
    bench: MakeBench, tmp_path: Path
) -> None:
    made = bench(store_file=tmp_path / "missing" / "audit.sqlite3")
    made.auditor.answered_here(made.read("q1"))
    made.wait_for(1)
    assert made.lost("not_stored") == 1
    assert "missing" in made.auditor.health()["fault"]
    made.auditor.answered_here(made.read("q2"))  # it rests for a minute
    assert made.auditor.health()["lost"] == 1
    assert made.cloud.payloads == []


def test_a_stop_does_not_wait_for_an_answer_and_takes_the_request_back(bench: MakeBench) -> None:
    made = bench()

    def accepts_only(cloud: Cloud, request: OpenedRequest) -> WorkerMessage:
        return Accepted(60.0, "w")

    made.cloud.reply = accepts_only
    made.auditor.answered_here(made.read("q1"))
    wait_until(lambda: bool(made.cloud.payloads))
    made.auditor.stop()
    assert not made.auditor._thread.is_alive()
    assert made.cloud.cancelled == 1
    made.auditor.answered_here(made.read("q2"))
    assert len(made.cloud.payloads) == 1


@pytest.mark.parametrize(("null_score", "span"), [(3.0, (4, 6)), (3.6, (0, 0))])
def test_the_provisional_span_knows_the_layers_threshold(
    null_score: float, span: tuple[int, int]
) -> None:
    settings = replace(ExitSettings.uncalibrated(4), no_answer_thresholds=(0.0, 0.5, 0.0, 0.0))
    spans = WindowSpans(0, 2, null_score, (Span(4, 6, 1.0, 2.0),))
    assert provisional_of(spans, settings) == Provisional(2, *span)


@pytest.mark.parametrize(("wanted", "codec"), [("auto", "int8"), ("fp16", "fp16")])
def test_audits_do_not_take_the_smallest_codec_by_themselves(wanted: str, codec: str) -> None:
    assert audit_codec(wanted) == codec


def test_an_idle_auditor_keeps_no_reader_in_memory(bench: MakeBench, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "old", layers=LAYERS)
    made = bench()
    old = Reader.load(folder, threads=1)
    local = LocalReading(old, edge_layers=EDGE_LAYERS)
    reading = local.read(Question("q1", QUESTION, PASSAGE, 1, 10.0, time.time()))
    made.auditor.answered_by_cloud(reading, full_depth(old))
    made.wait_for(1)
    reference = weakref.ref(old)
    del old, local, reading

    def is_gone() -> bool:
        gc.collect()
        return reference() is None

    wait_until(is_gone, seconds=5.0)
