"""A worker as a real process on real brokers: what it accepts, what it refuses, what it says."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from broker.exchange import Publication, Subscription
from broker.run import run_broker
from broker.session import Session
from protocol.keys import EdgeKeys, PoolKeys
from protocol.messages import Accepted, AnswerMessage, ErrorMessage, RequestWindow
from protocol.topics import new_request_id, parse_topic
from reader.codecs import encode_tokens
from reader.model import Reader
from tests.cloud_worker.conftest import MakeCloud
from tests.cloud_worker.harness import (
    WAIT_SECONDS,
    Cloud,
    FakeEdge,
    Sent,
    WorkerProcess,
    make_state,
    make_window,
    spans_alone,
    wait_until,
)
from tests.tiny import make_tiny_model

QUIET_SECONDS = 0.5


class Stage:
    """One worker and one edge on one broker, shared by the tests of a module."""

    def __init__(self, cloud: Cloud, worker: WorkerProcess, edge: FakeEdge, dead: Session) -> None:
        self.cloud, self.worker, self.edge, self.dead = cloud, worker, edge, dead

    def ask(self, *windows: RequestWindow, **sealing: Any) -> Sent:
        """Seal and publish a request."""
        return self.edge.publish(self.edge.seal(windows or [self.window()], **sealing))

    def window(self, **more: Any) -> RequestWindow:
        """A window of the stage's model."""
        return make_window(self.cloud.reader, **more)

    def answer_to(self, sent: Sent) -> AnswerMessage:
        """The answer to a request that must get one."""
        final = self.edge.wait_final(sent)
        assert isinstance(final, AnswerMessage), final
        return final

    def error_to(self, sent: Sent) -> ErrorMessage:
        """The error to a request that must get one."""
        final = self.edge.wait_final(sent)
        assert isinstance(final, ErrorMessage), final
        return final

    def dead_letter(self, request: str) -> tuple[str, dict[str, Any]]:
        """Reason and document of a request's dead letter."""
        while True:
            delivery = self.dead.receive(WAIT_SECONDS)
            assert delivery is not None, f"no dead letter for {request}"
            topic: Any = parse_topic(delivery.topic)
            if topic.request == request:
                return topic.reason, json.loads(delivery.payload)

    def assert_serves_on(self) -> None:
        """Nothing else was disturbed: the next request is answered."""
        self.answer_to(self.ask())


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, mosquitto_program: Path
) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("stage")
    with ExitStack() as stack:
        broker = stack.enter_context(run_broker("mosquitto", folder / "broker"))
        cloud = Cloud(folder, broker, tiny_model, stack)
        older = make_tiny_model(folder / "older", layers=4, groups=4, seed=7)
        worker = cloud.worker("stage", older_models=[str(older)])
        dead = Session(
            broker.settings(), "undertaker", subscriptions=[Subscription("elma/v1/dead/#")]
        )
        stack.enter_context(dead)
        assert dead.wait_connected(WAIT_SECONDS)
        yield Stage(cloud, worker, cloud.edge(), dead)


@pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
def test_a_request_is_accepted_and_then_answered_as_on_one_machine(
    kind: str, make_cloud: MakeCloud
) -> None:
    if kind == "embedded":
        pytest.importorskip("iotcore")
    cloud = make_cloud(kind)
    cloud.worker("one")
    edge = cloud.edge()
    places = [(1, 24, 1), (3, 40, 2), (5, 17, 3)]
    windows = [
        make_window(cloud.reader, index=number, layer=layer, tokens=tokens, seed=seed)
        for number, (layer, tokens, seed) in enumerate(places)
    ]
    sent = edge.publish(edge.seal(windows))
    answer = edge.wait_final(sent)
    assert isinstance(sent.words[0], Accepted)
    assert answer.worker == "one"
    for result, place in zip(
        sorted(answer.results, key=lambda result: result.index), places, strict=True
    ):
        layer, tokens, seed = place
        state = make_state(cloud.reader, layer, tokens, seed)
        expected = spans_alone(cloud.reader, state, layer)
        assert result.layer == cloud.reader.config.layers
        assert result.null_score == pytest.approx(expected.null_score, abs=1e-4)
        found = [(span.start_token, span.end_token) for span in result.spans]
        assert found == [(span.start_token, span.end_token) for span in expected.spans]


def test_no_more_spans_come_back_than_were_asked_for(stage: Stage) -> None:
    answer = stage.answer_to(stage.ask(top_spans=3))
    assert [len(result.spans) for result in answer.results] == [3]


def test_requests_sealed_to_either_live_pool_key_are_answered(stage: Stage) -> None:
    for key_id in stage.cloud.pool.ids:
        stage.answer_to(stage.ask(pool=stage.cloud.pool.public_of(key_id)))


def test_an_edge_that_is_enrolled_later_is_known_without_a_restart(stage: Stage) -> None:
    late = stage.cloud.edge("late")
    sent = late.publish(late.seal([stage.window()]))
    assert isinstance(late.wait_final(sent), AnswerMessage)


def test_an_older_release_is_served_beside_the_current_one(stage: Stage) -> None:
    older = Reader.load(stage.cloud.folder / "older")
    answer = stage.answer_to(stage.ask(make_window(older, layer=2), release=older.digest))
    assert [result.layer for result in answer.results] == [4]


def test_an_unknown_release_is_refused_with_its_name(stage: Stage) -> None:
    error = stage.error_to(stage.ask(release="ab" * 32))
    assert error.code == "unknown_release"
    assert "abababababab" in error.detail
    stage.assert_serves_on()


def test_an_unknown_codec_is_refused_with_its_name(stage: Stage) -> None:
    window = RequestWindow(0, 1, 24, 5, "int3", b"\0" * 100)
    error = stage.error_to(stage.ask(window))
    assert error.code == "unknown_codec"
    assert "int3" in error.detail
    stage.assert_serves_on()


@pytest.mark.parametrize(
    "window",
    [
        pytest.param(RequestWindow(0, 1, 24, 5, "fp16", b"\0" * 99), id="too few bytes"),
        pytest.param(RequestWindow(0, 1, 24, 5, "fp32", b"\xff" * 24 * 32 * 4), id="not numbers"),
        pytest.param(RequestWindow(0, 6, 24, 5, "int8", b"\0" * 24 * 36), id="past the last layer"),
        pytest.param(RequestWindow(0, 1, 24, 5, "int4", b"\xff" * 24 * 18), id="int4 not numbers"),
        pytest.param(RequestWindow(0, 0, 24, 5, "tokens", b"\xff" * 48), id="no such tokens"),
        pytest.param(RequestWindow(0, 0, 24, 5, "tokens", b"\0" * 47), id="half a token"),
        pytest.param(RequestWindow(0, 1, 24, 5, "tokens", b"\0" * 48), id="tokens after a layer"),
        pytest.param(RequestWindow(0, 1, 24, 24, "int8", b"\0" * 24 * 36), id="no passage"),
        pytest.param(RequestWindow(0, 1, 24, 0, "int8", b"\0" * 24 * 36), id="no question"),
        pytest.param(RequestWindow(0, 1, 600, 5, "int8", b"\0" * 600 * 36), id="too many tokens"),
    ],
)
def test_a_state_that_cannot_be_continued_is_refused(stage: Stage, window: RequestWindow) -> None:
    assert stage.error_to(stage.ask(window)).code == "bad_state"
    stage.assert_serves_on()


def test_token_ids_are_answered_like_the_state_of_layer_0(stage: Stage) -> None:
    reader = stage.cloud.reader
    ids = [2, *range(7, 11), 3, *range(5, 22), 3]
    (state,) = reader.engine.states(reader.engine.embed([ids], [6]))
    states = [
        RequestWindow(0, 0, len(ids), 6, "fp32", reader.codecs.encode("fp32", 0, state)),
        RequestWindow(0, 0, len(ids), 6, "tokens", encode_tokens(ids, reader.config.vocab_size)),
    ]
    from_state, from_tokens = (stage.answer_to(stage.ask(window)).results for window in states)
    assert [span.start_token for span in from_tokens[0].spans] == [
        span.start_token for span in from_state[0].spans
    ]
    assert from_tokens[0].null_score == pytest.approx(from_state[0].null_score, abs=1e-3)


def test_a_state_out_of_all_range_fails_alone(stage: Stage) -> None:
    huge = b"\xff\xff\x7f\x7f" * 24 * 32  # the largest finite float32, everywhere
    poisoned = stage.edge.seal([RequestWindow(0, 1, 24, 5, "fp32", huge)])
    good = [stage.edge.seal([stage.window(seed=seed)]) for seed in range(4)]
    for sent in (poisoned, *good):
        stage.edge.publish(sent)
    for sent in good:
        stage.answer_to(sent)
    final = stage.edge.wait_final(poisoned)
    assert isinstance(final, ErrorMessage)
    assert final.code == "bad_state"


def test_a_request_past_its_deadline_is_refused_with_the_reason(stage: Stage) -> None:
    error = stage.error_to(stage.ask(age_seconds=100.0, deadline_seconds=30.0))
    assert error.code == "expired"
    assert "70" in error.detail
    stage.assert_serves_on()


def test_a_second_copy_gets_the_same_answer_and_is_not_computed_again(stage: Stage) -> None:
    sent = stage.ask()
    first = stage.answer_to(sent)
    computed = stage.worker.metric("elma_worker_windows_total", layer="6")
    stage.edge.publish(sent)
    stage.edge.wait_for(sent, AnswerMessage, count=2)
    assert sent.of(AnswerMessage) == [first, first]
    assert stage.worker.metric("elma_worker_windows_total", layer="6") == computed


def test_a_conflicting_copy_is_refused_and_the_first_keeps_its_answer(stage: Stage) -> None:
    sent = stage.ask()
    first = stage.answer_to(sent)
    other = stage.edge.seal([stage.window(seed=9)], request=sent.header.request)
    stage.edge.sent[sent.header.request] = other
    stage.edge.publish(other)
    assert stage.error_to(other).code == "duplicate"
    stage.edge.sent[sent.header.request] = sent
    stage.edge.publish(sent)
    stage.edge.wait_for(sent, AnswerMessage, count=2)
    assert sent.of(AnswerMessage)[1] == first


class Forgery:
    """Messages that prove nothing, each with the reason of its dead letter."""

    @staticmethod
    def truncated(stage: Stage) -> tuple[Sent, bytes]:
        sent = stage.edge.seal([stage.window()])
        return sent, sent.payload[:-100]

    @staticmethod
    def changed_on_the_way(stage: Stage) -> tuple[Sent, bytes]:
        sent = stage.edge.seal([stage.window()])
        return sent, sent.payload[:-1] + bytes([sent.payload[-1] ^ 1])

    @staticmethod
    def sealed_by_another_edge(stage: Stage) -> tuple[Sent, bytes]:
        stranger = EdgeKeys(stage.edge.keys.edge, EdgeKeys.make("stranger").secret)
        sent = stage.edge.seal([stage.window()], keys=stranger)
        return sent, sent.payload

    @staticmethod
    def sealed_to_a_retired_pool_key(stage: Stage) -> tuple[Sent, bytes]:
        sent = stage.edge.seal([stage.window()], pool=PoolKeys.make("pool-0").public)
        return sent, sent.payload

    @staticmethod
    def moved_to_another_id(stage: Stage) -> tuple[Sent, bytes]:
        other = stage.edge.seal([stage.window()])
        return stage.edge.seal([stage.window()]), other.payload

    @staticmethod
    def clear_text(stage: Stage) -> tuple[Sent, bytes]:
        return stage.edge.seal([stage.window()]), b"who keeps the secret lighthouse?"


@pytest.mark.parametrize(
    ("forge", "reason", "passes_bytes_on"),
    [
        (Forgery.truncated, "truncated_message", False),
        (Forgery.changed_on_the_way, "tampered_message", True),
        (Forgery.sealed_by_another_edge, "wrong_key", True),
        (Forgery.sealed_to_a_retired_pool_key, "unknown_key_id", True),
        (Forgery.moved_to_another_id, "tampered_message", True),
        (Forgery.clear_text, "malformed_message", False),
    ],
)
def test_what_proves_nothing_is_set_aside_and_never_answered(
    stage: Stage, forge: Any, reason: str, passes_bytes_on: bool
) -> None:
    sent, payload = forge(stage)
    stage.edge.publish(sent, payload)
    sealed = base64.b64encode(payload).decode() if passes_bytes_on else None
    told_reason, document = stage.dead_letter(sent.header.request)
    assert (told_reason, document["sealed"]) == (reason, sealed)
    assert document["bytes"] == len(payload)
    assert document["sha256"] == hashlib.sha256(payload).hexdigest()
    assert (document["header"] is not None) == passes_bytes_on
    stage.assert_serves_on()
    assert sent.words == []
    assert "secret lighthouse" not in stage.worker.log


def test_topics_that_are_not_ours_are_ignored(stage: Stage) -> None:
    name = "x" * 65
    for topic in (f"elma/v1/req/normal/{name}/1", f"elma/v1/cancel/kitchen/{new_request_id()}"):
        stage.edge.session.publish(Publication(topic, b"?")).wait(WAIT_SECONDS)
    stage.assert_serves_on()


def test_what_was_refused_leaves_nothing_unacknowledged(
    make_cloud: MakeCloud,
) -> None:
    cloud = make_cloud()
    cloud.worker("small", queue_bound=2)  # and so is its Receive Maximum
    edge = cloud.edge()
    window = make_window(cloud.reader)
    for number in range(6):
        edge.publish(edge.seal([window]), b"garbage")
        sent = edge.publish(edge.seal([window], release="cd" * 32))
        assert edge.wait_final(sent).code == "unknown_release", number
    assert isinstance(edge.wait_final(edge.publish(edge.seal([window]))), AnswerMessage)


def test_health_and_metrics_tell_what_happened(stage: Stage) -> None:
    stage.assert_serves_on()
    health = stage.worker.get("/healthz")
    assert health.status_code == 200
    assert health.json()["status"] == "ok"
    assert health.json()["connected"] is True
    assert len(health.json()["releases"]) == 2
    assert stage.worker.get("/readyz").status_code == 200
    assert stage.worker.metric("elma_worker_broker_connected") == 1
    assert stage.worker.metric("elma_worker_requests_total", outcome="answered") >= 1
    assert stage.worker.metric("elma_worker_batch_windows_count", group="0") >= 2
    assert stage.worker.metric("elma_worker_tokens_total", group="2") >= 24
    text = stage.worker.get("/metrics").text
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")}
    assert all(name.startswith("elma_worker_") for name in names)
    for ending in (
        "queue_requests",
        "deliveries_dropped",
        "queue_seconds",
        "busy",
        "expired",
        "duplicates",
    ):
        assert any(ending in name for name in names), ending


def test_each_request_has_one_log_line_with_its_outcome(stage: Stage) -> None:
    sent = stage.ask()
    stage.answer_to(sent)
    lines = wait_until(
        lambda: [
            line
            for line in stage.worker.events("request")
            if line["wire_id"] == sent.header.request
        ],
        "the request's log line",
    )
    assert [line["outcome"] for line in lines] == ["answered"]
    assert lines[0]["windows"] == 1
    assert lines[0]["compute_seconds"] > 0


def test_no_key_is_in_the_log_at_debug(stage: Stage) -> None:
    import base64

    sent = stage.ask()
    stage.answer_to(sent)
    stage.edge.publish(stage.edge.seal([stage.window()]), b"garbage")
    stage.assert_serves_on()
    time.sleep(QUIET_SECONDS)
    secrets = [stage.cloud.pool.secret_of(key_id) for key_id in stage.cloud.pool.ids]
    secrets += [stage.edge.keys.secret, sent.key.secret]
    log = stage.worker.log
    assert sent.header.request in log
    for secret in secrets:
        for spelled in (secret.hex(), base64.b64encode(secret).decode(), repr(secret)[2:-1]):
            assert spelled not in log
