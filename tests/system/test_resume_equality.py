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
from reader.walk import Walk, walk
from reader.windows import Window
from tests.cloud_worker.harness import FakeEdge, WorkerProcess
from tests.system.conftest import LAYERS, Plant, make_question

FAITHFUL = ("fp32", "fp16", "int8")  # the best span stays what it is, even of a random network


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
    packed = {codec: pack(reader, stopped, windows, codec) for codec in reader.codecs.names(layer)}
    assert {"fp32", "fp16", "int8", "int4", "bottleneck"} == set(packed)
    asked = {
        codec: protocol_edge.publish(protocol_edge.seal(body)) for codec, body in packed.items()
    }
    alone = walk(reader, windows).resolved
    for codec, sent in asked.items():
        answer = protocol_edge.wait_final(sent)
        assert isinstance(answer, AnswerMessage), answer
        assert {result.index for result in answer.results} == set(alone)
        from_bytes = resume_here(reader, packed[codec])
        for result in answer.results:
            assert_equal(result, alone[result.index], codec, reader.codecs.tolerance(codec))
            assert_equal(result, from_bytes[result.index], "fp32", 1e-4)


def resume_here(reader: Reader, packed: list[RequestWindow]) -> dict[int, WindowSpans]:
    """What this machine makes of the very bytes that the worker gets."""
    layer = packed[0].from_layer
    states = [
        reader.codecs.decode(window.codec, layer, window.state, window.length_tokens)
        for window in packed
    ]
    batch = reader.engine.pack(states, [window.question_tokens for window in packed])
    after = reader.run(batch, layer, LAYERS)
    return {
        spans.window_index: spans
        for spans in reader.spans(after, LAYERS, [window.index for window in packed])
    }


def pack(reader: Reader, stopped: Walk, windows: list[Window], codec: str) -> list[RequestWindow]:
    """The states of all windows, as an edge sends them."""
    assert stopped.unresolved is not None
    states = reader.engine.states(stopped.unresolved)
    return [
        RequestWindow(
            index,
            stopped.last_layer,
            len(windows[index]),
            windows[index].question_tokens,
            codec,
            reader.codecs.encode(codec, stopped.last_layer, state),
        )
        for index, state in zip(stopped.unresolved_indexes, states, strict=True)
    ]


def assert_equal(result: WindowResult, alone: WindowSpans, codec: str, tolerance: float) -> None:
    """The same spans, all of them in order without loss, the best one with little; close logits."""
    assert result.layer == alone.layer == LAYERS
    assert result.null_score == pytest.approx(alone.null_score, abs=2 * tolerance)
    places = [(span.start_token, span.end_token) for span in result.spans]
    expected = [(span.start_token, span.end_token) for span in alone.spans]
    if codec in FAITHFUL:
        assert places[0] == expected[0]
    if codec == "fp32":
        assert places == expected
    logits = {(span.start_token, span.end_token): span for span in alone.spans}
    shared = [place for place in places if place in logits]
    assert shared or codec not in FAITHFUL, "no span in common"
    for span in result.spans:
        mine = logits.get((span.start_token, span.end_token))
        if mine is not None:
            assert span.start_logit == pytest.approx(mine.start_logit, abs=tolerance)
            assert span.end_logit == pytest.approx(mine.end_logit, abs=tolerance)
