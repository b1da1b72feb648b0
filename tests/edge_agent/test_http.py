"""The HTTP interface on a real socket, of an agent without a cloud."""

from __future__ import annotations

import http.client
import math
import socket
import threading
from collections.abc import Generator
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from edge_agent.agent import EdgeAgent
from edge_agent.local_reading import Reading
from edge_agent.questions import Question
from reader.model import Reader
from reader.spans import choose_answers
from reader.walk import walk
from tests.edge_agent.conftest import LAYERS, PASSAGE, QUESTION, StartEdge, wait_until

Steps = Generator[None, None, Reading]
FIELDS = {
    "request_id",
    "answer",
    "start",
    "end",
    "score",
    "no_answer_score",
    "exit_layer",
    "resolved_by",
    "degraded",
    "latency_ms",
    "bytes_sent",
    "model",
    "release",
    "engine",
    "precision",
}
HEAD = b"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


class Gate:
    """Holds every reading of an agent until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()

    def install(self, agent: EdgeAgent) -> None:
        read = agent.local.read_in_steps

        def gated(question: Question, answer_by: float = math.inf, *more: Any) -> Steps:
            if question.request_id != "warm-up":
                self.entered.set()
                assert self.opened.wait(60.0)
            return (yield from read(question, answer_by, *more))

        agent.local.read_in_steps = gated  # type: ignore[method-assign]


def test_without_a_broker_the_device_gives_the_answer_of_full_depth(
    start_edge: StartEdge, reader: Reader
) -> None:
    edge = start_edge()
    answer = edge.ask()
    windows = reader.split(QUESTION, PASSAGE)
    whole = walk(reader, windows)
    (expected,) = choose_answers(windows, whole.resolved.values(), PASSAGE, reader.settings)
    assert set(answer) == FIELDS
    assert (answer["answer"], answer["start"], answer["end"]) == (
        expected.text,
        expected.start,
        expected.end,
    )
    assert answer["score"] == pytest.approx(expected.score, abs=1e-5)
    assert answer["resolved_by"] == "edge"
    assert answer["degraded"] is False
    assert answer["exit_layer"] == LAYERS
    assert answer["bytes_sent"] == 0
    assert answer["model"] == f"{reader.name}@{reader.digest[:12]}"
    choice = edge.agent.local.reader.engine.choice
    assert (answer["engine"], answer["precision"]) == (choice.name, choice.precision)
    assert edge.metric("elma_edge_questions_total", result="answered", resolved_by="edge") == 1


def test_a_passage_of_many_windows_is_read_whole(start_edge: StartEdge, reader: Reader) -> None:
    passage = " ".join(f"{number} the king built a tower." for number in range(800))
    edge = start_edge()
    answer = edge.ask(context=passage)
    windows = reader.split(QUESTION, passage)
    assert len(windows) > 16
    whole = walk(reader, windows)
    (expected,) = choose_answers(windows, whole.resolved.values(), passage, reader.settings)
    assert (answer["start"], answer["end"]) == (expected.start, expected.end)


def test_several_answers_come_best_first_and_the_first_is_the_answer(start_edge: StartEdge) -> None:
    answer = start_edge().ask(top_k=3)
    assert set(answer) == FIELDS | {"answers"}
    assert len(answer["answers"]) == 3
    assert answer["answers"][0] == {key: answer[key] for key in ("answer", "start", "end", "score")}
    scores = [found["score"] for found in answer["answers"]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"question": ""}, "question"),
        ({"question": "  \t "}, "question is empty"),
        ({"question": "who " * 65}, "tokens"),
        ({"question": 7}, "question"),
        ({"question": None}, "question"),
        ({"context": ""}, "context"),
        ({"context": " \n "}, "passage"),
        ({"context": "x" * 200_000}, "at most 100000 characters"),
        ({"context": ["x"]}, "context"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"top_k": 21}, "top_k"),
        ({"deadline_seconds": 0}, "deadline_seconds"),
        ({"deadline_seconds": "5"}, "deadline_seconds"),
        ({"deadline_seconds": 1e9}, "deadline_seconds"),
        ({"request_id": "no spaces"}, "request_id"),
        ({"request_id": "../etc"}, "request_id"),
        ({"request_id": "x" * 65}, "request_id"),
        ({"contexts": "x"}, "not one of question, context"),
    ],
)
def test_bad_input_is_refused_with_a_reason_and_disturbs_nothing(
    shared_edge: Any, fields: dict[str, Any], reason: str
) -> None:
    response = shared_edge.post({"question": QUESTION, "context": PASSAGE, **fields})
    assert response.status_code == 422
    assert response.json()["error"] == "invalid_question"
    assert reason in response.json()["reason"]
    assert shared_edge.ask()["answer"]
    assert shared_edge.agent.outbox.pending_count == 0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"question": "\xff", "context": "a"}', "not valid UTF-8 (at byte 14)"),
        (b'{"question": "\\ud800", "context": "a"}', "not valid JSON"),
        (b'{"question": "a", "context": "b"', "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[]", "object"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"question": "a", "context": "b", "deadline_seconds": NaN}', "deadline_seconds"),
    ],
)
def test_a_body_that_is_no_question_is_refused_with_a_reason(
    shared_edge: Any, body: bytes, reason: str
) -> None:
    response = shared_edge.post(body)
    assert response.status_code == 422
    assert reason in response.json()["reason"]


def test_a_reason_never_quotes_what_was_sent(shared_edge: Any) -> None:
    for fields in (
        {"question": 123454321},
        {"secret-word": "secret-word"},
        {"top_k": "secret-word"},
    ):
        response = shared_edge.post({"question": QUESTION, "context": PASSAGE, **fields})
        assert response.status_code == 422
        assert "123454321" not in response.text
        assert "secret-word" not in response.text


def test_unicode_offsets_are_characters_of_the_passage(shared_edge: Any) -> None:
    passage = "\U0001f642 Ünïcödé — the king built the lighthouse 北京 \U0001f600"
    answer = shared_edge.ask(context=passage)
    assert passage[answer["start"] : answer["end"]] == answer["answer"]


def test_a_body_that_declares_too_many_bytes_is_refused_before_it_is_sent(
    start_edge: StartEdge,
) -> None:
    edge = start_edge()
    address = urlsplit(edge.url)
    with socket.create_connection((str(address.hostname), int(address.port or 0)), 30.0) as raw:
        raw.sendall(HEAD + b"Content-Length: 900000000\r\n\r\n")
        response = http.client.HTTPResponse(raw)
        response.begin()
        assert response.status == 413
        assert b"body_too_large" in response.read()


def test_a_body_that_grows_past_the_bound_is_refused_while_it_is_sent(
    start_edge: StartEdge,
) -> None:
    edge = start_edge(http={"max_body_bytes": 4_096})

    def pieces() -> Any:
        for _ in range(100):
            yield b"x" * 1_024

    response = httpx.post(
        f"{edge.url}/v1/answer",
        content=pieces(),
        headers={"Content-Type": "application/json"},
        timeout=30.0,
    )
    assert response.status_code == 413


def test_a_body_that_does_not_arrive_is_given_up(start_edge: StartEdge) -> None:
    edge = start_edge(http={"body_seconds": 0.2})
    address = urlsplit(edge.url)
    with socket.create_connection((str(address.hostname), int(address.port or 0)), 30.0) as raw:
        raw.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        response = http.client.HTTPResponse(raw)
        response.begin()
        assert response.status == 408
    assert edge.ask()["answer"]


def test_a_full_queue_refuses_with_a_time_to_come_back_and_then_recovers(
    start_edge: StartEdge,
) -> None:
    gate = Gate()
    edge = start_edge(queue_bound=2, before_start=gate.install)
    answers: list[httpx.Response] = []

    def post(number: int) -> None:
        answers.append(
            edge.post({"question": QUESTION, "context": PASSAGE, "request_id": f"q{number}"})
        )

    threads = [threading.Thread(target=post, args=(number,)) for number in range(3)]
    threads[0].start()
    assert gate.entered.wait(30.0)  # the first is being read; two more may wait
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: edge.get("/healthz").json()["queues"]["waiting"] == 2)
    refused = edge.post({"question": QUESTION, "context": PASSAGE, "request_id": "q3"})
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert edge.get("/v1/answers/q3").status_code == 404
    pending = edge.get("/v1/answers/q1")
    assert pending.status_code == 202
    assert pending.json()["status"] == "pending"
    gate.opened.set()
    for thread in threads:
        thread.join(30.0)
    assert [response.status_code for response in answers] == [200, 200, 200]
    assert edge.ask(request_id="q3")["answer"]


def test_a_repeated_request_gets_the_same_answer_and_is_read_once(start_edge: StartEdge) -> None:
    edge = start_edge()
    first = edge.ask(request_id="same")
    assert edge.ask(request_id="same") == first
    assert edge.get("/v1/answers/same").json() == first
    assert edge.metric("elma_edge_questions_total", result="answered", resolved_by="edge") == 1


def test_a_request_repeated_while_it_is_pending_waits_for_the_same_answer(
    start_edge: StartEdge,
) -> None:
    gate = Gate()
    edge = start_edge(before_start=gate.install)
    answers: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(edge.ask(request_id="twice")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    assert gate.entered.wait(30.0)
    gate.opened.set()
    for thread in threads:
        thread.join(30.0)
    assert len(answers) == 4
    assert all(answer == answers[0] for answer in answers)
    assert edge.metric("elma_edge_questions_total", result="answered", resolved_by="edge") == 1


def test_the_same_id_with_another_question_is_a_conflict(start_edge: StartEdge) -> None:
    edge = start_edge()
    first = edge.ask(request_id="mine")
    body = {"question": "who was the keeper", "context": PASSAGE, "request_id": "mine"}
    assert edge.post(body).status_code == 409
    assert edge.get("/v1/answers/mine").json() == first


def test_an_unknown_id_is_not_found(shared_edge: Any) -> None:
    response = shared_edge.get("/v1/answers/never-asked")
    assert response.status_code == 404
    assert response.json()["error"] == "unknown_request"


def test_an_answer_is_forgotten_after_its_retention(start_edge: StartEdge) -> None:
    edge = start_edge(retention_seconds=0.2)
    edge.ask(request_id="short-lived")
    wait_until(lambda: edge.get("/v1/answers/short-lived").status_code == 404)


def test_one_who_waited_past_the_deadline_is_told_that_it_is_pending(start_edge: StartEdge) -> None:
    gate = Gate()
    edge = start_edge(before_start=gate.install, answer_grace_seconds=0.1)
    body = {"question": QUESTION, "context": PASSAGE, "deadline_seconds": 0.1, "request_id": "late"}
    response = edge.post(body)
    assert response.status_code == 202
    assert response.headers["Location"] == "/v1/answers/late"
    gate.opened.set()
    wait_until(lambda: edge.get("/v1/answers/late").status_code == 200)


def test_a_fault_in_the_reader_fails_that_question_only(start_edge: StartEdge) -> None:
    def break_one(agent: EdgeAgent) -> None:
        read = agent.local.read_in_steps

        def faulty(question: Question, answer_by: float = math.inf, *more: Any) -> Steps:
            if question.request_id == "poison":
                raise ValueError(question.passage)
            return (yield from read(question, answer_by, *more))

        agent.local.read_in_steps = faulty  # type: ignore[method-assign]

    edge = start_edge(before_start=break_one)
    response = edge.post({"question": QUESTION, "context": PASSAGE, "request_id": "poison"})
    assert response.status_code == 500
    assert "ValueError" in response.json()["reason"]
    assert PASSAGE not in response.text
    assert edge.ask()["answer"]


def test_a_stopping_agent_accepts_nothing_and_says_so(start_edge: StartEdge) -> None:
    edge = start_edge()
    edge.agent.begin_stop()
    response = edge.post({"question": QUESTION, "context": PASSAGE})
    assert response.status_code == 503
    assert edge.get("/healthz").status_code == 503


def test_health_and_documentation_need_nothing_from_elsewhere(
    shared_edge: Any, reader: Reader
) -> None:
    health = shared_edge.get("/healthz").json()
    assert health["status"] == "ok"
    assert health["releases"] is None
    assert health["model"] == {"name": reader.name, "digest": reader.digest}
    assert health["cloud"] is None
    choice = shared_edge.agent.local.reader.engine.choice
    assert health["engine"] == asdict(choice)
    document = shared_edge.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/answer",
        "/v1/answers/{request_id}",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    answer_fields = set(document["components"]["schemas"]["AnswerBody"]["properties"])
    assert answer_fields == FIELDS | {"answers"}
    page = shared_edge.get("/docs").text
    assert "/v1/answers/{request_id}" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page


def test_an_agent_is_ready_once_it_has_read_its_first_words_and_until_it_stops(
    start_edge: StartEdge,
) -> None:
    may_warm_up = threading.Event()

    def hold_back(agent: EdgeAgent) -> None:
        warm_up = agent.local.warm_up_in_steps

        def held() -> Generator[None, None, None]:
            assert may_warm_up.wait(30.0)
            yield from warm_up()

        agent.local.warm_up_in_steps = held  # type: ignore[assignment]

    edge = start_edge(before_start=hold_back)
    assert edge.get("/healthz").status_code == 200
    assert edge.get("/readyz").status_code == 503
    may_warm_up.set()
    wait_until(lambda: edge.get("/readyz").status_code == 200)
    assert edge.get("/readyz").json() == {"is_ready": True}
    edge.agent.begin_stop()
    assert edge.get("/readyz").status_code == 503


def test_metrics_are_prometheus_text_with_our_prefix(shared_edge: Any) -> None:
    shared_edge.ask()
    lines = shared_edge.get("/metrics").text.splitlines()
    names = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert names
    assert all(name.startswith("elma_edge_") for name in names)
    assert any(line.startswith("elma_edge_exit_layer_bucket") for line in lines)
    choice = shared_edge.agent.local.reader.engine.choice
    info = f'elma_edge_engine_info{{engine="{choice.name}",precision="{choice.precision}"}} 1.0'
    assert info in lines


def test_a_fault_in_the_interface_itself_is_a_plain_500(start_edge: StartEdge) -> None:
    edge = start_edge()

    def broken() -> dict[str, Any]:
        raise RuntimeError(PASSAGE)

    edge.agent.health = broken  # type: ignore[method-assign]
    response = edge.get("/healthz")
    assert response.status_code == 500
    assert response.json()["error"] == "internal"


def ask_with(edge: Any, given: str | None, **fields: Any) -> httpx.Response:
    """A question with this `X-Request-ID`."""
    headers = {} if given is None else {"X-Request-ID": given}
    body = {"question": QUESTION, "context": PASSAGE, **fields}
    return httpx.post(f"{edge.url}/v1/answer", json=body, headers=headers, timeout=60.0)


@pytest.mark.parametrize(
    ("given", "in_body", "shown"),
    [("ticket-1", None, "ticket-1"), ("ticket-2", "mine-2", "mine-2"), (None, "mine-3", "mine-3")],
)
def test_the_id_of_the_body_counts_then_that_of_the_header_and_the_answer_shows_it(
    shared_edge: Any, given: str | None, in_body: str | None, shown: str
) -> None:
    fields = {} if in_body is None else {"request_id": in_body}
    response = ask_with(shared_edge, given, **fields)
    assert response.json()["request_id"] == response.headers["X-Request-ID"] == shown
    stored = shared_edge.get(f"/v1/answers/{shown}")
    assert stored.headers["X-Request-ID"] == shown


@pytest.mark.parametrize("given", ["", "two words", "a" * 65, "x/y", "ü"])
def test_a_header_that_is_no_id_is_passed_over(shared_edge: Any, given: str) -> None:
    headers = {b"X-Request-ID": given.encode("latin-1")}
    body = {"question": QUESTION, "context": PASSAGE}
    response = httpx.post(f"{shared_edge.url}/v1/answer", json=body, headers=headers, timeout=60.0)
    shown = response.json()["request_id"]
    assert shown == response.headers["X-Request-ID"] != given
    assert len(shown) == 32


def test_one_header_for_many_questions_is_no_conflict_and_every_id_begins_with_it(
    shared_edge: Any,
) -> None:
    first = ask_with(shared_edge, "whole-job").json()
    again = ask_with(shared_edge, "whole-job").json()
    other = ask_with(shared_edge, "whole-job", question="who built the other one").json()
    assert first == again
    assert first["request_id"] == "whole-job"
    assert other["request_id"].startswith("whole-job-")
    named = ask_with(shared_edge, None, question="who else", request_id="whole-job")
    assert named.status_code == 409, "an id in the body is a promise of the same content"


def test_a_refusal_shows_the_id_of_what_it_refused(shared_edge: Any) -> None:
    response = ask_with(shared_edge, "refused-1", question="")
    assert response.status_code == 422
    assert response.headers["X-Request-ID"] == "refused-1"
