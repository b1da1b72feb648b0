"""An agent, real brokers, and workers that behave well, badly, or not at all."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.run import RunningBroker, run_broker
from broker.settings import BrokerSettings
from edge_agent.audit_windows import provisional_of
from edge_agent.cloud_messages import RequestSealer
from edge_agent.errors import SettingsError
from edge_agent.local_reading import LocalReading
from edge_agent.packing import SEALING_BYTES, WINDOW_BYTES
from edge_agent.questions import Question
from protocol.messages import Accepted, Busy, ErrorMessage
from protocol.sealing import OpenedRequest
from reader.exits import ExitSettings
from reader.model import Reader
from reader.spans import choose_answers
from reader.walk import walk
from tests.edge_agent.conftest import (
    EDGE,
    LAYERS,
    PASSAGE,
    QUESTION,
    Keys,
    RunningEdge,
    StartEdge,
    wait_until,
)
from tests.edge_agent.fake_worker import Behaviour, FakeWorker, answers
from tests.tiny import add_bottleneck, make_tiny_model

QUICK = {"accept_seconds": 0.3, "cloud_wait_seconds": 1.0}


def full_depth(reader: Reader, question: str = QUESTION, passage: str = PASSAGE) -> tuple[int, int]:
    """Start and end of the answer that one machine gives with all layers."""
    windows = reader.split(question, passage)
    whole = walk(reader, windows)
    (answer,) = choose_answers(windows, whole.resolved.values(), passage, reader.settings)
    return answer.start, answer.end


def cloud_edge(start_edge: StartEdge, broker: RunningBroker, **settings: Any) -> RunningEdge:
    """An agent at a broker, connected."""
    edge = start_edge(broker.settings(), **{"offload": QUICK, **settings})
    wait_until(lambda: edge.get("/healthz").json()["cloud"]["connected"])
    return edge


def worker_at(
    broker: RunningBroker, reader: Reader, keys: Keys, behaviour: Behaviour = answers, **fields: Any
) -> FakeWorker:
    return FakeWorker(broker.settings(), reader, keys.pool, keys.edge, behaviour, **fields)


@pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
def test_what_the_device_cannot_settle_is_answered_by_the_cloud(
    kind: Any,
    mosquitto_program: Path,
    start_edge: StartEdge,
    reader: Reader,
    keys: Keys,
) -> None:
    with run_broker(kind) as broker, worker_at(broker, reader, keys) as worker:
        edge = cloud_edge(start_edge, broker)
        answer = edge.ask(request_id="q1")
        assert answer["resolved_by"] == "cloud"
        assert answer["degraded"] is False
        assert answer["exit_layer"] == LAYERS
        assert (answer["start"], answer["end"]) == full_depth(reader)
        assert worker.requests == ["q1"]
        assert answer["bytes_sent"] == len(worker.payloads[0])
        assert QUESTION.encode() not in worker.payloads[0]
        assert PASSAGE.encode() not in worker.payloads[0]


@pytest.mark.parametrize("codec", ["fp16", "int8", "int4", "auto"])
def test_smaller_codecs_send_fewer_bytes(
    codec: str, mosquitto: RunningBroker, start_edge: StartEdge, reader: Reader, keys: Keys
) -> None:
    with worker_at(mosquitto, reader, keys):
        edge = cloud_edge(start_edge, mosquitto, offload={**QUICK, "codec": codec})
        answer = edge.ask()
    tokens = len(reader.split(QUESTION, PASSAGE)[0])
    assert answer["resolved_by"] == "cloud"
    assert answer["bytes_sent"] < tokens * reader.config.hidden_size * 4 * 0.8


def test_a_release_with_a_bottleneck_sends_a_tenth_of_fp16(
    mosquitto: RunningBroker, start_edge: StartEdge, tmp_path: Path, keys: Keys
) -> None:
    folder = make_tiny_model(tmp_path / "narrow", layers=LAYERS)
    add_bottleneck(folder, layer=2, bits=2)
    reader = Reader.load(folder)
    with worker_at(mosquitto, reader, keys) as worker:
        offload = {**QUICK, "codec": "bottleneck"}
        edge = cloud_edge(start_edge, mosquitto, model=str(folder), offload=offload)
        assert edge.ask()["resolved_by"] == "cloud"
        assert edge.metric("elma_edge_requests_packed_total", codec="bottleneck") == 1
        assert len(worker.requests) == 1


def test_a_codec_that_the_release_does_not_have_is_refused_at_the_start(
    mosquitto: RunningBroker, start_edge: StartEdge
) -> None:
    with pytest.raises(SettingsError, match="no bottleneck after layer 2"):
        start_edge(mosquitto.settings(), offload={**QUICK, "codec": "bottleneck"})


def test_a_worker_that_lacks_the_codec_gets_the_request_in_another(
    mosquitto: RunningBroker, start_edge: StartEdge, reader: Reader, keys: Keys
) -> None:
    seen: list[str] = []

    def knows_only_fp32(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        (codec,) = {window.codec for window in request.body.windows}
        seen.append(codec)
        if codec == "fp32":
            answers(worker, request, topic)
        else:
            worker.say(request, topic, ErrorMessage("unknown_codec", codec, worker.name))

    with worker_at(mosquitto, reader, keys, knows_only_fp32):
        edge = cloud_edge(start_edge, mosquitto, offload={**QUICK, "codec": "auto"})
        first, second = edge.ask(), edge.ask()
    assert (first["resolved_by"], first["degraded"]) == ("cloud", False)
    assert (first["start"], first["end"]) == full_depth(reader)
    assert second["resolved_by"] == "cloud"
    assert seen[-2:] == ["fp32", "fp32"]  # it remembers
    assert len(seen) == len(set(seen)) + 1


@pytest.mark.parametrize("privacy", ["states-only", "allow-tokens"])
def test_token_ids_are_sent_only_where_that_is_allowed(
    privacy: str,
    mosquitto: RunningBroker,
    start_edge: StartEdge,
    reader: Reader,
    keys: Keys,
) -> None:
    sent: list[tuple[str, int]] = []

    def notes(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        sent.extend((window.codec, window.from_layer) for window in request.body.windows)
        answers(worker, request, topic)

    tokens = len(reader.split(QUESTION, PASSAGE)[0])
    room = SEALING_BYTES + WINDOW_BYTES + 4 * tokens  # for no state, though for two bytes a token
    with worker_at(mosquitto, reader, keys, notes):
        offload = {**QUICK, "codec": "auto", "privacy": privacy, "max_request_bytes": room}
        edge = cloud_edge(start_edge, mosquitto, offload=offload)
        answer = edge.ask()
    assert (answer["start"], answer["end"]) == full_depth(reader)
    if privacy == "allow-tokens":
        assert sent == [("tokens", 0)]
        assert answer["resolved_by"] == "cloud"
    else:
        assert sent == []
        assert answer["resolved_by"] == "edge"


def test_a_question_that_every_window_settles_early_sends_nothing(
    mosquitto: RunningBroker, start_edge: StartEdge, tmp_path: Path, keys: Keys
) -> None:
    eager = replace(ExitSettings.uncalibrated(LAYERS), exit_thresholds=(1.0,) * LAYERS)
    folder = make_tiny_model(tmp_path / "eager", layers=LAYERS, settings=eager)
    with worker_at(mosquitto, Reader.load(folder), keys) as worker:
        edge = cloud_edge(start_edge, mosquitto, model=str(folder))
        answer = edge.ask()
        assert (answer["resolved_by"], answer["exit_layer"]) == ("edge", 1)
        assert answer["bytes_sent"] == 0
        assert worker.requests == []


def test_a_broker_that_is_down_makes_the_device_finish_by_itself(
    start_edge: StartEdge, reader: Reader, free_port: Any
) -> None:
    nowhere = BrokerSettings(host="127.0.0.1", port=free_port())
    edge = start_edge(nowhere, offload={"cloud_wait_seconds": 0.2})
    answer = edge.ask()
    assert (answer["resolved_by"], answer["degraded"]) == ("edge", True)
    assert answer["bytes_sent"] == 0
    assert (answer["start"], answer["end"]) == full_depth(reader)
    assert edge.metric("elma_edge_degraded_total", reason="broker_away") == 1
    assert edge.metric("elma_edge_broker_connected") == 0


def test_without_any_worker_the_device_finishes_by_itself(
    mosquitto: RunningBroker, start_edge: StartEdge, reader: Reader
) -> None:
    edge = cloud_edge(start_edge, mosquitto)
    first, second = edge.ask(), edge.ask()
    for answer in (first, second):
        assert (answer["resolved_by"], answer["degraded"]) == ("edge", True)
        assert (answer["start"], answer["end"]) == full_depth(reader)
    assert edge.metric("elma_edge_degraded_total", reason="no_worker") == 2
    # The second one is not even tried: nobody has been seen since the first.
    assert first["bytes_sent"] > 0
    assert second["bytes_sent"] == 0


def test_a_worker_that_comes_back_is_used_again(
    mosquitto: RunningBroker, start_edge: StartEdge, reader: Reader, keys: Keys
) -> None:
    edge = cloud_edge(start_edge, mosquitto)
    assert edge.ask()["degraded"] is True
    with worker_at(mosquitto, reader, keys):
        wait_until(lambda: edge.get("/healthz").json()["cloud"]["workers"] != "away")
        assert edge.ask()["resolved_by"] == "cloud"


def test_silence_is_answered_by_sending_the_same_bytes_again(
    mosquitto: RunningBroker, start_edge: StartEdge, reader: Reader, keys: Keys
) -> None:
    def deaf_once(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        if len(worker.requests) > 1:
            answers(worker, request, topic)

    with worker_at(mosquitto, reader, keys, deaf_once) as worker:
        edge = cloud_edge(start_edge, mosquitto)
        answer = edge.ask(request_id="q1")
        assert answer["resolved_by"] == "cloud"
        assert worker.requests == ["q1", "q1"]
        assert worker.payloads[0] == worker.payloads[1]
        assert answer["bytes_sent"] == 2 * len(worker.payloads[0])
        assert edge.metric("elma_edge_retries_total") == 1
        assert edge.metric("elma_edge_lease_expiries_total") == 1
        assert edge.metric("elma_edge_busy_total") == 0


def test_a_busy_worker_is_asked_again_later(
    mosquitto: RunningBroker, start_edge: StartEdge, reader: Reader, keys: Keys
) -> None:
    def busy_twice(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        if len(worker.requests) <= 2:
            worker.say(request, topic, Busy(0.1, worker.name))
        else:
            answers(worker, request, topic)

    with worker_at(mosquitto, reader, keys, busy_twice) as worker:
        edge = cloud_edge(start_edge, mosquitto)
        assert edge.ask()["resolved_by"] == "cloud"
        assert len(worker.requests) == 3
        assert edge.metric("elma_edge_busy_total") == 2
        assert edge.metric("elma_edge_lease_expiries_total") == 0


def test_a_lease_that_runs_out_leads_to_another_attempt(
    mosquitto: RunningBroker, start_edge: StartEdge, reader: Reader, keys: Keys
) -> None:
    def forgetful(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        if len(worker.requests) == 1:
            worker.say(request, topic, Accepted(0.2, worker.name))
        else:
            answers(worker, request, topic)

    with worker_at(mosquitto, reader, keys, forgetful) as worker:
        assert cloud_edge(start_edge, mosquitto).ask()["resolved_by"] == "cloud"
        assert len(worker.requests) == 2


def test_an_answer_after_the_deadline_changes_nothing_and_the_request_is_taken_back(
    mosquitto: RunningBroker, start_edge: StartEdge, reader: Reader, keys: Keys
) -> None:
    held: list[tuple[OpenedRequest, str]] = []

    def slow(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        worker.say(request, topic, Accepted(30.0, worker.name))
        held.append((request, topic))

    with worker_at(mosquitto, reader, keys, slow) as worker:
        edge = cloud_edge(start_edge, mosquitto)
        answer = edge.ask(request_id="q1", deadline_seconds=1.0)
        assert (answer["resolved_by"], answer["degraded"]) == ("edge", True)
        assert edge.metric("elma_edge_degraded_total", reason="deadline") == 1
        wait_until(lambda: worker.cancelled == ["q1"])
        request, topic = held[0]
        worker.say(request, topic, worker.resume(request))
        wait_until(lambda: edge.metric("elma_edge_ignored_messages_total", cause="late") == 1)
        assert edge.get("/v1/answers/q1").json() == answer


def test_while_the_cloud_works_the_provisional_answer_can_be_seen(
    mosquitto: RunningBroker, start_edge: StartEdge, reader: Reader, keys: Keys
) -> None:
    go_on = threading.Event()

    def waiting(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        worker.say(request, topic, Accepted(30.0, worker.name))
        assert go_on.wait(30.0)
        worker.say(request, topic, worker.resume(request))

    with worker_at(mosquitto, reader, keys, waiting) as worker, ThreadPoolExecutor(1) as pool:
        edge = cloud_edge(start_edge, mosquitto)
        asked = pool.submit(edge.ask, request_id="q1")
        wait_until(lambda: worker.requests == ["q1"])
        pending = edge.get("/v1/answers/q1")
        go_on.set()
        assert pending.status_code == 202
        assert pending.json()["provisional"]["exit_layer"] == 2
        assert asked.result()["resolved_by"] == "cloud"


def test_answers_that_come_twice_count_once(
    mosquitto: RunningBroker, start_edge: StartEdge, reader: Reader, keys: Keys
) -> None:
    def eager(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        for _ in range(3):
            worker.say(request, topic, worker.resume(request))

    with worker_at(mosquitto, reader, keys, eager):
        edge = cloud_edge(start_edge, mosquitto)
        edge.ask()
        wait_until(lambda: edge.metric("elma_edge_ignored_messages_total", cause="late") == 2)
        assert edge.metric("elma_edge_questions_total", result="answered", resolved_by="cloud") == 1


def test_forged_and_malformed_words_are_counted_and_change_nothing(
    mosquitto: RunningBroker, start_edge: StartEdge, reader: Reader, keys: Keys
) -> None:
    def attacked(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        good = worker.resume(request)
        sealed = bytearray()
        worker.say_bytes(topic, b"")
        worker.say_bytes(topic, b"ELMA" + bytes(40))
        worker.say_bytes(topic, worker.payloads[-1])  # the edge's own request, sent back
        other = type(good)(good.results[:0] or good.results, "x", 0.0, 0.0)
        sealed += seal(request, other)
        sealed[-1] ^= 1
        worker.say_bytes(topic, bytes(sealed))
        worker.say(request, topic, good)

    def seal(request: OpenedRequest, message: Any) -> bytes:
        from protocol.sealing import seal_answer

        return seal_answer(request.header, request.key, message)

    with worker_at(mosquitto, reader, keys, attacked):
        edge = cloud_edge(start_edge, mosquitto)
        answer = edge.ask()
        assert answer["resolved_by"] == "cloud"
        assert (answer["start"], answer["end"]) == full_depth(reader)
        assert edge.metric("elma_edge_ignored_messages_total", cause="malformed") == 4


def test_spans_outside_the_passage_are_not_believed(
    mosquitto: RunningBroker, start_edge: StartEdge, reader: Reader, keys: Keys
) -> None:
    def wrong(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        good = worker.resume(request)
        (result,) = good.results
        for start, end in ((1, 1), (1000, 1001)):
            span = type(result.spans[0])(start, end, 9.0, 9.0)
            bad = type(result)(result.index, result.layer, 0.0, (span,))
            worker.say(request, topic, type(good)((bad,), worker.name, 0.0, 0.0))
        elsewhere = type(result)(7, result.layer, 0.0, result.spans)
        worker.say(request, topic, type(good)((elsewhere,), worker.name, 0.0, 0.0))
        worker.say(request, topic, good)

    with worker_at(mosquitto, reader, keys, wrong):
        edge = cloud_edge(start_edge, mosquitto)
        answer = edge.ask()
        assert (answer["start"], answer["end"]) == full_depth(reader)
        assert edge.metric("elma_edge_ignored_messages_total", cause="malformed") == 3


@pytest.mark.parametrize(("code", "attempts"), [("bad_state", 1), ("unknown_release", 2)])
def test_a_worker_that_refuses_makes_the_device_finish_by_itself(
    code: str,
    attempts: int,
    mosquitto: RunningBroker,
    start_edge: StartEdge,
    reader: Reader,
    keys: Keys,
) -> None:
    def refuses(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        worker.say(request, topic, ErrorMessage(code, "", worker.name))

    with worker_at(mosquitto, reader, keys, refuses) as worker:
        edge = cloud_edge(start_edge, mosquitto, offload={**QUICK, "max_attempts": 2})
        answer = edge.ask()
        assert (answer["resolved_by"], answer["degraded"]) == ("edge", True)
        assert len(worker.requests) == attempts


def test_a_pool_of_two_releases_degrades_no_answer(
    mosquitto: RunningBroker, start_edge: StartEdge, reader: Reader, keys: Keys
) -> None:
    def other_release(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        worker.say(request, topic, ErrorMessage("unknown_release", "", worker.name))

    with (
        worker_at(mosquitto, reader, keys, other_release, name="old") as old,
        worker_at(mosquitto, reader, keys, name="new"),
        ThreadPoolExecutor(12) as pool,
    ):
        edge = cloud_edge(start_edge, mosquitto, offload={"max_attempts": 1})
        asked = [pool.submit(edge.ask) for _ in range(12)]
        assert {future.result()["resolved_by"] for future in asked} == {"cloud"}
        assert old.requests


@pytest.mark.parametrize("privacy", ["states-only", "allow-tokens"])
def test_every_offloaded_window_names_what_the_device_would_have_answered(
    privacy: str, mosquitto: RunningBroker, start_edge: StartEdge, reader: Reader, keys: Keys
) -> None:
    asked: list[OpenedRequest] = []

    def listens(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        asked.append(request)
        answers(worker, request, topic)

    local = LocalReading(reader, edge_layers=2)
    passage = f"{PASSAGE} " * 40
    reading = local.read(Question("q", QUESTION, passage, 1, 10.0, 1_000.0))
    with worker_at(mosquitto, reader, keys, listens):
        codec = "auto" if privacy == "allow-tokens" else "fp32"
        edge = cloud_edge(start_edge, mosquitto, offload={"privacy": privacy, "codec": codec})
        edge.ask(context=passage)
    (request,) = asked
    assert not request.body.is_audit
    assert len(request.body.windows) == len(reading.windows) > 1
    for window in request.body.windows:
        best = reading.provisional[window.index]
        assert window.provisional == provisional_of(best, reader.settings)
        assert window.provisional.layer == 2


def test_the_wire_id_is_another_one_each_time_the_same_id_is_asked(
    keys: Keys, reader: Reader
) -> None:
    sealer = RequestSealer(keys.edge, lambda: keys.pool.public)
    local = LocalReading(reader, edge_layers=2)
    question = Question("x" * 64, QUESTION, PASSAGE, 1, 10.0, 1_000.0)
    body = local.request(local.read(question), "fp32")
    ids = {sealer.seal(question, body, reader.digest).wire_id for _ in range(3)}
    assert len(ids) == 3
    assert all(len(wire_id) <= 64 and wire_id.startswith("x" * 51) for wire_id in ids)


def test_a_request_over_the_bound_is_finished_on_the_device(
    mosquitto: RunningBroker, start_edge: StartEdge, reader: Reader, keys: Keys
) -> None:
    with worker_at(mosquitto, reader, keys) as worker:
        edge = cloud_edge(start_edge, mosquitto, offload={**QUICK, "max_request_bytes": 1_024})
        answer = edge.ask()
        assert (answer["resolved_by"], answer["degraded"]) == ("edge", True)
        assert worker.requests == []
        assert edge.metric("elma_edge_degraded_total", reason="too_many_bytes") == 1


def test_many_questions_are_in_flight_at_once_and_each_gets_one_answer(
    mosquitto: RunningBroker, start_edge: StartEdge, reader: Reader, keys: Keys
) -> None:
    count = 60
    with (
        worker_at(mosquitto, reader, keys, name="worker-1") as one,
        worker_at(mosquitto, reader, keys, name="worker-2") as two,
        ThreadPoolExecutor(count) as pool,
    ):
        edge = cloud_edge(start_edge, mosquitto, offload={"accept_seconds": 5.0})
        asked = [
            pool.submit(edge.ask, request_id=f"q{number}", deadline_seconds=50.0)
            for number in range(count)
        ]
        found = [future.result() for future in asked]
    assert {answer["resolved_by"] for answer in found} == {"cloud"}
    assert {answer["request_id"] for answer in found} == {f"q{number}" for number in range(count)}
    assert set(one.requests) | set(two.requests) == {f"q{number}" for number in range(count)}
    assert one.requests
    assert two.requests
    assert edge.metric("elma_edge_questions_total", result="answered", resolved_by="cloud") == count


def test_a_broker_that_is_killed_and_restarted_loses_no_question(
    mosquitto: RunningBroker, start_edge: StartEdge, reader: Reader, keys: Keys
) -> None:
    count = 20
    go_on = threading.Event()

    def waiting(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        if go_on.is_set():
            answers(worker, request, topic)
        else:
            worker.say(request, topic, Accepted(30.0, worker.name))

    with worker_at(mosquitto, reader, keys, waiting) as worker, ThreadPoolExecutor(count) as pool:
        edge = cloud_edge(start_edge, mosquitto, offload={"cloud_wait_seconds": 20.0})
        asked = [
            pool.submit(edge.ask, request_id=f"q{number}", deadline_seconds=50.0)
            for number in range(count)
        ]
        wait_until(lambda: len(set(worker.requests)) == count)
        mosquitto.kill()
        wait_until(lambda: not edge.get("/healthz").json()["cloud"]["connected"])
        go_on.set()
        mosquitto.restart()
        found = [future.result() for future in asked]
    assert [answer["request_id"] for answer in found] == [f"q{number}" for number in range(count)]
    assert all((answer["start"], answer["end"]) == full_depth(reader) for answer in found)
    assert {answer["resolved_by"] for answer in found} == {"cloud"}
    total = sum(
        edge.metric("elma_edge_questions_total", result="answered", resolved_by=who)
        for who in ("edge", "cloud")
    )
    assert total == count
    for request in set(worker.requests):
        copies = {
            payload
            for wire_id, payload in zip(worker.requests, worker.payloads, strict=True)
            if wire_id == request
        }
        assert len(copies) == 1


def test_the_edge_says_that_it_is_there_and_that_it_left(
    mosquitto: RunningBroker, start_edge: StartEdge, keys: Keys
) -> None:
    from broker.exchange import Subscription
    from broker.session import Session
    from protocol.messages import Presence, decode_message
    from protocol.topics import PresenceTopic
    from protocol.wire import Kind

    topic = str(PresenceTopic("edge", EDGE))
    with Session(mosquitto.settings(), "watcher", subscriptions=[Subscription(topic)]) as watcher:

        def said() -> bool:
            delivery = watcher.receive(30.0)
            assert delivery is not None
            watcher.acknowledge(delivery)
            message = decode_message(delivery.payload, {Kind.PRESENCE})
            assert isinstance(message, Presence)
            return message.online

        edge = cloud_edge(start_edge, mosquitto)
        assert said() is True
        edge.agent.stop()
        assert said() is False


@pytest.fixture
def written(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """All that was written, every log record of every library included, in small letters."""
    root, records = logging.getLogger(), io.StringIO()
    level, handler = root.level, logging.StreamHandler(records)
    root.setLevel(logging.DEBUG)
    root.addHandler(handler)
    yield lambda: "".join((*capfd.readouterr(), records.getvalue())).lower()
    root.removeHandler(handler)
    root.setLevel(level)


def test_no_text_and_no_key_reaches_a_log_line(
    mosquitto: RunningBroker,
    start_edge: StartEdge,
    reader: Reader,
    keys: Keys,
    written: Callable[[], str],
) -> None:
    secret_passage = "zanzibar was built by quetzalcoatl in the year of the xylophone"
    secret_question = "who built zanzibar"
    seen_keys: list[bytes] = []

    def noting(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        seen_keys.append(request.key.secret)
        worker.say_bytes(topic, b"forged")
        answers(worker, request, topic)

    with worker_at(mosquitto, reader, keys, noting):
        edge = cloud_edge(start_edge, mosquitto)
        body = {"question": secret_question, "context": secret_passage}
        edge.post(body)
        edge.post({**body, "question": secret_question * 100})
        edge.post({**body, "quetzalcoatl": 1})
        edge.post(json.dumps(body).encode()[:-9])
    httpx.get(f"{edge.url}/v1/answers/quiet-unknown")
    edge.agent.stop()
    text = written()
    assert "edge_listening" in text
    assert "resolved_by" in text
    assert "connect_tcp.started" in text, "the records of libraries are not among it"
    for word in ("zanzibar", "quetzalcoatl", "xylophone"):
        assert word not in text
    assert seen_keys
    for key in (*seen_keys, keys.edge.secret, keys.pool.secret_of("p1")):
        assert key.hex() not in text
        assert repr(key).lower() not in text
