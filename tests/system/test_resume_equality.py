"""For every layer and codec: an edge that stopped there, plus a worker, equals full depth."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker.exchange import Subscription
from broker.session import Session
from protocol.messages import AnswerMessage, RequestWindow, WindowResult
from protocol.topics import answer_subscription
from reader.model import Reader
from reader.spans import WindowSpans
from reader.state_codecs import codec_tolerance, encode_state
from reader.walk import Walk, walk
from reader.windows import Window
from tests.cloud_worker.harness import FakeEdge, WorkerProcess
from tests.system.conftest import LAYERS, Plant, make_question

CODECS = ("fp32", "fp16", "int8")


@pytest.fixture(scope="module")
def reader(plant: Plant) -> Reader:
    return plant.cloud.reader


@pytest.fixture(scope="module")
def windows(reader: Reader) -> list[Window]:
    """A passage of several windows, of different lengths."""
    asked = make_question(5, words=160)
    split = reader.split(asked["question"], asked["context"])
    assert len(split) >= 2
    return split


@pytest.fixture(scope="module")
def protocol_edge(plant: Plant) -> Iterator[FakeEdge]:
    session = Session(
        plant.cloud.broker.settings(),
        "edge-hall",
        subscriptions=[Subscription(answer_subscription("hall"))],
    )
    keys = plant.cloud.enrol("hall")
    edge = FakeEdge(keys, plant.cloud.pool.public, plant.cloud.reader.digest, session)
    yield edge
    edge.stop()


@pytest.mark.parametrize("layer", range(1, LAYERS))
def test_the_edge_up_to_a_layer_and_a_worker_from_there_equal_one_machine(
    layer: int,
    two_workers: dict[str, WorkerProcess],
    protocol_edge: FakeEdge,
    reader: Reader,
    windows: list[Window],
) -> None:
    stopped = walk(reader, windows, last_layer=layer)
    assert stopped.unresolved_indexes == tuple(window.index for window in windows)
    asked = {
        codec: protocol_edge.publish(protocol_edge.seal(pack(stopped, windows, codec)))
        for codec in CODECS
    }
    alone = walk(reader, windows).resolved
    for codec, sent in asked.items():
        answer = protocol_edge.wait_final(sent)
        assert isinstance(answer, AnswerMessage), answer
        assert {result.index for result in answer.results} == set(alone)
        for result in answer.results:
            assert_equal(result, alone[result.index], codec)


def pack(stopped: Walk, windows: list[Window], codec: str) -> list[RequestWindow]:
    """The states of all windows, as an edge sends them."""
    assert stopped.unresolved is not None
    return [
        RequestWindow(
            index,
            stopped.last_layer,
            len(windows[index]),
            windows[index].question_tokens,
            codec,
            encode_state(codec, stopped.unresolved.state(row)),
        )
        for row, index in enumerate(stopped.unresolved_indexes)
    ]


def assert_equal(result: WindowResult, alone: WindowSpans, codec: str) -> None:
    """The same spans, all of them in order without loss and the best one with it; close logits."""
    tolerance = codec_tolerance(codec)
    assert result.layer == alone.layer == LAYERS
    assert result.null_score == pytest.approx(alone.null_score, abs=2 * tolerance)
    places = [(span.start_token, span.end_token) for span in result.spans]
    expected = [(span.start_token, span.end_token) for span in alone.spans]
    assert places[0] == expected[0]
    if codec == "fp32":
        assert places == expected
    logits = {(span.start_token, span.end_token): span for span in alone.spans}
    shared = [place for place in places if place in logits]
    assert shared, "no span in common"
    for span in result.spans:
        mine = logits.get((span.start_token, span.end_token))
        if mine is not None:
            assert span.start_logit == pytest.approx(mine.start_logit, abs=tolerance)
            assert span.end_logit == pytest.approx(mine.end_logit, abs=tolerance)
