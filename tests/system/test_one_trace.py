"""One id and one trace from HTTP through the broker to the worker and back, with real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.run import run_broker
from tests.cloud_worker.harness import Cloud, WorkerProcess, wait_until
from tests.system.collector import Collector, Received, run_collector
from tests.system.conftest import (
    DEADLINE_SECONDS,
    EDGE_LAYERS,
    LAYERS,
    SECRET_WORDS,
    EdgeProcess,
    Plant,
    make_question,
)

ROOT = Path(__file__).resolve().parents[2]
TRACE, ASKER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
INTERNAL, SERVER, PRODUCER, CONSUMER = 1, 2, 4, 5
SHUTDOWN_SECONDS = 30.0


@pytest.fixture(scope="module")
def plant(
    tmp_path_factory: pytest.TempPathFactory, deep_model: Path, mosquitto_program: Path
) -> Iterator[Plant]:
    """A plant of this file's own, whose workers send their spans."""
    folder = tmp_path_factory.mktemp("traced")
    with ExitStack() as stack:
        broker = stack.enter_context(run_broker("mosquitto", folder / "broker"))
        yield Plant(Cloud(folder, broker, deep_model, stack), stack)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Where edges and workers send their spans."""
    with run_collector() as running:
        yield running


def to(collector: Collector, **more: Any) -> dict[str, Any]:
    """The table [tracing]."""
    return {"is_on": True, "endpoint": collector.url, "send_seconds": 0.1, **more}


@pytest.fixture(scope="module")
def north(plant: Plant, collector: Collector) -> WorkerProcess:
    """A worker with traces."""
    return plant.cloud.worker("north", tracing=to(collector))


@pytest.fixture(scope="module")
def edge(plant: Plant, collector: Collector, north: WorkerProcess) -> EdgeProcess:
    """An edge with traces."""
    return plant.edge("kitchen", free_port_of(), tracing=to(collector)).wait_connected()


def free_port_of() -> int:
    """A port that was free a moment ago."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def ask(edge: EdgeProcess, number: int, **headers: str) -> httpx.Response:
    """A question whose body names no id."""
    body = make_question(number)
    del body["request_id"]
    return httpx.post(
        f"{edge.url}/v1/answer", json=body, headers=headers, timeout=90.0, trust_env=False
    )


def lines_with(process: EdgeProcess | WorkerProcess, text: str) -> list[dict[str, Any]]:
    """What a search for `text` in the log of a process finds."""
    return [json.loads(line) for line in process.log.splitlines() if text in line]


def by_name(spans: list[Received]) -> dict[str, Received]:
    """The spans of a simple question, each name once."""
    assert len({span.name for span in spans}) == len(spans), [span.name for span in spans]
    return {span.name: span for span in spans}


def wait_for_trace(collector: Collector, request_id: str) -> list[Received]:
    """The trace of a question, once its parts have all come."""

    def look() -> list[Received] | None:
        spans = collector.of_question(request_id)
        names = {span.name for span in spans}
        return spans if {"POST /v1/answer", "request"} <= names else None

    wait_until(look, f"the trace of {request_id}")
    return collector.of_question(request_id)


@pytest.mark.parametrize("header", ["ticket-4711", None])
def test_the_id_of_the_answer_finds_the_lines_of_edge_and_worker(
    edge: EdgeProcess, north: WorkerProcess, header: str | None
) -> None:
    response = ask(edge, 1, **({} if header is None else {"X-Request-ID": header}))
    assert response.status_code == 200
    answer = response.json()
    shown = answer["request_id"]
    assert shown == response.headers["X-Request-ID"]
    assert header in (None, shown)
    assert answer["resolved_by"] == "cloud"
    at_edge = wait_until(lambda: lines_with(edge, shown), "the edge's line")
    at_worker = wait_until(lambda: lines_with(north, shown), "the worker's line")
    assert [line["event"] for line in at_edge] == ["question"]
    assert [(line["event"], line["outcome"]) for line in at_worker] == [("request", "answered")]
    for line in (*at_edge, *at_worker):
        assert line["request_id"] == shown
        assert line["wire_id"] == at_edge[0]["wire_id"]
        assert line["wire_id"].startswith(f"{shown}-")
        assert line["trace_id"] == at_edge[0]["trace_id"]


def test_an_unanswerable_dead_letter_has_the_id_of_its_question(
    edge: EdgeProcess, plant: Plant, north: WorkerProcess
) -> None:
    folder = plant.cloud.folder / "edges"
    enrolled = folder / "kitchen.json"
    assert enrolled.exists(), list(folder.iterdir())
    kept = enrolled.read_bytes()
    enrolled.unlink()
    try:
        body = {**make_question(2), "request_id": "dead-2", "deadline_seconds": 3.0}
        assert edge.post(body).json()["degraded"] is True
    finally:
        enrolled.write_bytes(kept)
    wait_until(
        lambda: [topic for topic, _ in plant.payloads if topic.startswith("elma/v1/dead/")],
        "a dead letter",
    )
    dead = [topic for topic, _ in plant.payloads if topic.startswith("elma/v1/dead/")]
    assert all(topic.split("/")[-1].startswith("dead-2-") for topic in dead)
    assert {line["request_id"] for line in lines_with(north, "unknown_edge")} == {"dead-2"}


def test_one_trace_leads_from_the_asker_through_the_worker_and_back(
    edge: EdgeProcess, north: WorkerProcess, collector: Collector
) -> None:
    response = ask(edge, 3, traceparent=f"00-{TRACE}-{ASKER}-01")
    request_id = response.json()["request_id"]
    spans = by_name(wait_for_trace(collector, request_id))
    assert {span.trace for span in spans.values()} == {TRACE}
    above = {
        "POST /v1/answer": "",
        "question": "POST /v1/answer",
        **dict.fromkeys(("tokenize", "store", "read", "offload", "settle"), "question"),
        "layers": "read",
        "publish": "offload",
        "request": "offload",
        **dict.fromkeys(("queue", "compute", "reply"), "request"),
    }
    assert set(spans) == set(above)
    assert spans["POST /v1/answer"].parent == ASKER
    for name, parent in above.items():
        if parent:
            assert spans[name].parent == spans[parent].id, name
    at_worker = {"request", "queue", "compute", "reply"}
    for name, span in spans.items():
        expected = ("elma-worker", "north") if name in at_worker else ("elma-edge", "kitchen")
        assert (span.service, span.instance) == expected
        assert span.start <= span.end
    kinds = {"POST /v1/answer": SERVER, "publish": PRODUCER, "request": CONSUMER}
    assert {name: span.kind for name, span in spans.items()} == {
        name: kinds.get(name, INTERNAL) for name in spans
    }


def test_the_spans_tell_what_happened(edge: EdgeProcess, collector: Collector) -> None:
    answer = ask(edge, 4).json()
    spans = by_name(wait_for_trace(collector, answer["request_id"]))
    question, request = spans["question"].attributes, spans["request"].attributes
    assert spans["POST /v1/answer"].parent == ""
    assert spans["POST /v1/answer"].attributes["http.response.status_code"] == 200
    assert question["elma.resolved_by"] == "cloud"
    assert question["elma.exit_layer"] == LAYERS
    assert question["elma.bytes_sent"] == answer["bytes_sent"] == request["elma.bytes"]
    assert question["elma.worker"] == "north"
    assert spans["layers"].attributes["elma.last_layer"] == EDGE_LAYERS
    assert spans["layers"].attributes["elma.exited"] == 0
    assert request["elma.request_id"] == answer["request_id"]
    assert request["elma.outcome"] == "answered"
    assert spans["compute"].events == ("batch",) * (LAYERS - EDGE_LAYERS)
    assert spans["offload"].events == ("packed", "accepted", "answer")


def test_no_span_holds_a_word_of_question_passage_or_answer(
    edge: EdgeProcess, collector: Collector
) -> None:
    answer = ask(edge, 5).json()
    wait_for_trace(collector, answer["request_id"])
    content = b"\n".join(collector.bodies)
    asked = make_question(5)
    words = {*asked["question"].split(), *asked["context"].split(), *answer["answer"].split()}
    long_ones = {word.strip(".") for word in words if len(word) > 5}
    assert set(SECRET_WORDS) & long_ones
    assert answer["request_id"].encode() in content
    for word in long_ones | set(SECRET_WORDS):
        assert word.encode() not in content, word


def test_a_question_sent_again_shows_both_workers_below_its_one_way_to_the_cloud(
    plant: Plant, collector: Collector, north: WorkerProcess
) -> None:
    south = plant.cloud.worker("south", tracing=to(collector))
    edge = plant.edge(
        "cellar", free_port_of(), tracing=to(collector), accept_seconds=0.3
    ).wait_connected()
    south.signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(4) as pool:  # the broker gives every second one to each
            answers = [one.json() for one in pool.map(lambda n: ask(edge, n), range(10, 14))]
    finally:
        south.signal(signal.SIGCONT)
    assert {answer["resolved_by"] for answer in answers} == {"cloud"}

    def seen_by_both() -> list[Received]:
        found = []
        for answer in answers:
            spans = collector.of_question(answer["request_id"])
            requests = [span for span in spans if span.name == "request"]
            if {span.instance for span in requests} == {"north", "south"}:
                found += spans
        return found

    spans = wait_until(seen_by_both, "a question that both workers had")
    south.stop()
    request = next(span for span in spans if span.instance == "south" and span.name == "request")
    together = [span for span in spans if span.trace == request.trace]
    offload = next(span for span in together if span.name == "offload")
    assert {span.parent for span in together if span.name == "request"} == {offload.id}
    publications = [span for span in together if span.name == "publish"]
    assert [span.parent for span in publications] == [offload.id] * len(publications)
    assert sorted(span.attributes["elma.attempt"] for span in publications) == list(
        range(1, len(publications) + 1)
    )
    assert len(publications) > 1


def test_a_question_of_an_earlier_process_has_a_trace_of_its_own_under_its_id(
    plant: Plant, collector: Collector, north: WorkerProcess
) -> None:
    port = free_port_of()
    north.signal(signal.SIGSTOP)
    try:
        edge = plant.edge(
            "attic", port, tracing=to(collector), accept_seconds=30.0
        ).wait_connected()
        body = {**make_question(20), "request_id": "kept-20"}
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(edge.post, body)
            wait_until(lambda: edge.health()["queues"]["in_flight"] == 1, "the question under way")
            edge.signal(signal.SIGKILL)
            edge.wait()
            assert isinstance(asked.exception(DEADLINE_SECONDS), httpx.HTTPError)
    finally:
        north.signal(signal.SIGCONT)
    again = plant.edge("attic", port, tracing=to(collector)).wait_connected()
    wait_until(lambda: again.get("/v1/answers/kept-20").status_code == 200, "the answer")

    def ended() -> list[Received]:
        spans = collector.of_question("kept-20")
        return [span for span in spans if span.attributes.get("elma.taken_over")]

    (question,) = wait_until(ended, "the trace after the restart")
    assert question.parent == ""
    assert question.attributes["elma.resolved_by"] == "cloud"
    line = again.events("question")[0]
    assert (line["request_id"], line["trace_id"]) == ("kept-20", question.trace)


def test_a_hanging_collector_costs_no_answer_and_no_stop_and_lost_spans_are_counted(
    plant: Plant, north: WorkerProcess, free_port: Callable[[], int]
) -> None:
    with run_collector() as deaf:
        deaf.answers.clear()
        edge = plant.edge(
            "garden", free_port(), tracing=to(deaf, queue_bound=4, timeout_seconds=60.0)
        ).wait_connected()
        answers = [ask(edge, number) for number in range(30, 36)]
        assert [answer.status_code for answer in answers] == [200] * 6
        assert {answer.json()["resolved_by"] for answer in answers} == {"cloud"}
        wait_until(lambda: deaf.asked_count, "a first batch at the collector")
        lost = 'elma_edge_spans_dropped_total{cause="queue_full"} '
        lines = edge.get("/metrics").text.splitlines()
        count = next(float(line.removeprefix(lost)) for line in lines if line.startswith(lost))
        assert count > 0
        edge.signal(signal.SIGTERM)
        assert edge.wait(SHUTDOWN_SECONDS) == 0


def test_a_collector_that_is_not_there_costs_no_answer_and_its_spans_are_counted(
    plant: Plant, north: WorkerProcess, free_port: Callable[[], int]
) -> None:
    nowhere = {
        "is_on": True,
        "endpoint": f"http://127.0.0.1:{free_port()}/v1/traces",
        "send_seconds": 0.1,
        "timeout_seconds": 0.5,
    }
    edge = plant.edge("shed", free_port(), tracing=nowhere).wait_connected()
    assert ask(edge, 40).json()["resolved_by"] == "cloud"
    lost = 'elma_edge_spans_dropped_total{cause="not_sent"} '

    def count() -> float:
        lines = edge.get("/metrics").text.splitlines()
        return next(float(line.removeprefix(lost)) for line in lines if line.startswith(lost))

    wait_until(count, "the spans counted as lost")
    before = count()
    assert ask(edge, 41).json()["resolved_by"] == "cloud"
    wait_until(lambda: count() > before, "a second batch that was lost")
    (line,) = edge.events("spans_not_sent")
    assert "spans batch" in line["reason"]
    assert "opentelemetry" not in edge.log


def test_nothing_is_sent_while_traces_are_off_whatever_the_environment_says(
    plant: Plant,
    north: WorkerProcess,
    free_port: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with run_collector() as unasked:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", unasked.url)
        monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
        edge = plant.edge("porch", free_port()).wait_connected()
        response = ask(edge, 50, traceparent=f"00-{TRACE}-{ASKER}-01")
        assert response.json()["resolved_by"] == "cloud"
        edge.signal(signal.SIGTERM)
        assert edge.wait(SHUTDOWN_SECONDS) == 0
        assert unasked.asked_count == 0
    assert "trace_id" not in edge.events("question")[0]


def test_without_traces_nothing_that_makes_or_sends_spans_is_loaded() -> None:
    """FastAPI itself brings and imports `opentelemetry.trace`, the interface without the engine."""
    code = (
        "import sys\n"
        "import cloud_worker.agent, edge_agent.service\n"
        "from broker.tracing import TracingSettings, open_tracing\n"
        "assert open_tracing(TracingSettings(), service='x', name='y') is None\n"
        "engine = ('opentelemetry.sdk', 'opentelemetry.exporter', 'opentelemetry.proto')\n"
        "ours = ('broker.span_queue', 'requests')\n"
        "print([name for name in sys.modules if name.startswith((*engine, *ours))])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0)
