"""A full disk, a broken log, a long passage, a question that kills: nobody else may suffer."""

from __future__ import annotations

import gc
import math
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from edge_agent import agent as agent_module
from edge_agent import ending as ending_module
from edge_agent import inference as inference_module
from edge_agent import path as path_module
from edge_agent.agent import EdgeAgent
from edge_agent.ending import Ending
from edge_agent.errors import OutboxError
from edge_agent.inference import InferenceThread, Job
from edge_agent.local_reading import WINDOWS_PER_BATCH, LocalReading
from edge_agent.outbox import Outbox
from edge_agent.path import MAX_GENERATIONS
from edge_agent.questions import Question
from reader.model import Reader
from tests.edge_agent.conftest import LAYERS, PASSAGE, QUESTION, StartEdge, wait_until
from tests.edge_agent.test_http import Gate

LONG_PASSAGE = " ".join(f"{number} the king built a tower." for number in range(800))


class BrokenLog:
    """A logger that nobody can write with."""

    def bind(self, **_fields: Any) -> BrokenLog:
        return self

    def info(self, _event: str, **_fields: Any) -> None:
        raise BrokenPipeError("nobody reads this log")

    error = warning = info


class FullDisk:
    """Lets writes of an agent's outcomes fail until it is freed; lookups too, if told so."""

    def __init__(self, agent: EdgeAgent, *, lookups: bool = False) -> None:
        self.is_full = threading.Event()
        self.failures = 0
        outbox = agent.outbox
        names = ("pending_question",) if lookups else ("conclude",)
        for name in names:
            setattr(outbox, name, self._failing(getattr(outbox, name)))

    def _failing(self, method: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if self.is_full.is_set():
                self.failures += 1
                raise OutboxError("no room")
            return method(*arguments)

        return call


def test_an_asker_gets_the_answer_although_the_log_is_broken(
    start_edge: StartEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = start_edge()
    for module in (agent_module, ending_module, inference_module, path_module):
        monkeypatch.setattr(module._log, "_logger", BrokenLog())
    assert edge.ask()["answer"]
    edge.agent._inference.read_again(job_that_raises(), 0.0)
    assert edge.ask()["answer"]
    assert edge.get("/healthz").status_code == 200


def test_health_tells_of_a_thread_that_has_ended(start_edge: StartEdge) -> None:
    edge = start_edge()
    assert edge.agent._inference.stop(timeout_seconds=10.0)
    health = edge.get("/healthz")
    assert health.status_code == 503
    assert health.json()["status"] == "failing"
    assert "inference thread" in health.json()["problems"][0]


def test_an_outcome_that_could_not_be_stored_is_the_outcome_all_the_same(
    start_edge: StartEdge,
) -> None:
    disks: list[FullDisk] = []
    edge = start_edge(before_start=lambda agent: disks.append(FullDisk(agent)))
    disks[0].is_full.set()
    first = edge.ask(request_id="q1")
    assert edge.agent.outbox.pending_count == 1
    assert edge.get("/v1/answers/q1").json() == first
    assert edge.ask(request_id="q1") == first
    assert edge.get("/healthz").json()["queues"]["unstored"] == 1
    disks[0].is_full.clear()
    wait_until(lambda: edge.agent.outbox.pending_count == 0)
    wait_until(lambda: edge.get("/healthz").json()["queues"]["unstored"] == 0)
    assert edge.get("/v1/answers/q1").json() == first


def test_a_stop_stores_what_could_not_be_stored_before(
    start_edge: StartEdge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.housekeeping.INTERVAL_SECONDS", 3_600.0)
    disks: list[FullDisk] = []
    edge = start_edge(before_start=lambda agent: disks.append(FullDisk(agent)))
    disks[0].is_full.set()
    first = edge.ask(request_id="q1")
    disks[0].is_full.clear()
    edge.agent.stop()
    entry = Outbox(tmp_path / "outbox.sqlite3").find("q1")
    assert entry is not None
    assert entry.outcome is not None
    assert entry.outcome.as_json() == first


def test_a_question_whose_lookup_failed_is_read_later(start_edge: StartEdge) -> None:
    disks: list[FullDisk] = []
    edge = start_edge(before_start=lambda agent: disks.append(FullDisk(agent, lookups=True)))
    disks[0].is_full.set()
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(edge.ask(request_id="q1")))
    asking.start()
    wait_until(lambda: disks[0].failures > 0)
    disks[0].is_full.clear()
    asking.join(30.0)
    assert answers[0]["answer"]


def test_a_second_outcome_of_an_unstored_question_is_late(tmp_path: Path) -> None:
    from edge_agent.answers import AnswerBoard
    from edge_agent.metrics import EdgeMetrics
    from edge_agent.questions import Failure

    outbox = Outbox(tmp_path / "outbox.sqlite3")
    question = Question("q1", QUESTION, PASSAGE, 1, 1.0, 0.0)
    outbox.accept(question)
    ending = Ending(outbox, AnswerBoard(), EdgeMetrics(), lambda: 0.0)
    outbox._connection.execute("PRAGMA query_only = ON")
    ending.conclude(question, Failure("q1", "first"))
    outbox._connection.execute("PRAGMA query_only = OFF")
    ending.conclude(question, Failure("q1", "second"))
    assert outbox.fault is not None
    ending.store_again()
    entry = outbox.find("q1")
    assert entry is not None
    assert entry.outcome == Failure("q1", "first")
    assert outbox.fault is None


def test_restarts_do_not_fail_a_question_that_was_not_being_read(
    start_edge: StartEdge, tmp_path: Path
) -> None:
    path = tmp_path / "outbox.sqlite3"
    for _ in range(MAX_GENERATIONS + 2):  # starts that end before they read anything
        outbox = Outbox(path)
        outbox.accept(Question("innocent", QUESTION, PASSAGE, 1, 1.0, 5.0))
        outbox.accept(Question("poison", QUESTION, PASSAGE, 1, 1.0, 4.0))
        outbox.close()
    outbox = Outbox(path)
    for _ in range(MAX_GENERATIONS):  # starts that died while they read this one
        outbox.count_begun("poison")
    assert [request_id for request_id, _, _ in outbox.pending()] == ["innocent", "poison"]
    outbox.close()
    edge = start_edge()
    wait_until(lambda: edge.get("/v1/answers/innocent").status_code == 200)
    wait_until(lambda: edge.get("/v1/answers/poison").status_code == 500)
    assert "given up" in edge.get("/v1/answers/poison").json()["reason"]


def test_a_reading_is_counted_before_it_begins_and_forgotten_by_a_clean_stop(
    start_edge: StartEdge, tmp_path: Path
) -> None:
    path = tmp_path / "outbox.sqlite3"
    outbox = Outbox(path)
    outbox.accept(Question("q1", QUESTION, PASSAGE, 1, 1.0, 5.0))
    outbox.accept(Question("q2", QUESTION, PASSAGE, 1, 1.0, 6.0))
    outbox.close()
    begun, go_on = threading.Event(), threading.Event()

    def hold(agent: EdgeAgent) -> None:
        read = agent.local.read_in_steps

        def held(question: Question, answer_by: float = math.inf, *more: Any) -> Any:
            if question.request_id == "q1":
                begun.set()
                go_on.wait(30.0)
                yield
            return (yield from read(question, answer_by, *more))

        agent.local.read_in_steps = held  # type: ignore[method-assign]

    edge = start_edge(before_start=hold, shutdown_seconds=0.3)
    assert begun.wait(30.0)
    generations = {name: number for name, number, _ in edge.agent.outbox.pending()}
    assert generations == {"q1": 1, "q2": 0}
    threading.Timer(0.5, go_on.set).start()
    edge.agent.stop()
    assert {number for _, number, _ in Outbox(path).pending()} == {0}


def test_the_job_with_the_nearest_deadline_goes_on_first() -> None:
    order: list[str] = []
    done = threading.Event()
    thread = InferenceThread(queue_bound=4)

    def job(name: str, pieces: int) -> Job:
        for piece in range(pieces):
            order.append(name)
            if name == "long" and piece == 0:
                thread.read_again(job("short", 2), answer_by=1.0)
            yield
        if name == "long":
            done.set()

    thread.read_again(job("long", 3), answer_by=2.0)
    thread.start()
    assert done.wait(10.0)
    assert thread.stop(10.0)
    assert order == ["long", "short", "short", "long", "long"]


def test_reading_in_steps_changes_no_result_and_past_the_deadline_ends_early(
    reader: Reader,
) -> None:
    local = LocalReading(reader, edge_layers=LAYERS, clock=lambda: 10.0)
    question = Question("q1", QUESTION, LONG_PASSAGE, 1, 1.0, 0.0)
    whole = local.read(question)
    assert whole.is_complete
    assert len(whole.walks) > 2
    steps = local.read_in_steps(question, answer_by=9.0)
    next(steps)
    with pytest.raises(StopIteration) as end:
        next(steps)
    part = end.value.value
    assert not part.is_complete
    assert len(part.provisional) == WINDOWS_PER_BATCH
    for index, spans in part.provisional.items():
        assert spans == whole.resolved[index]


def test_past_its_deadline_a_long_question_gets_the_best_of_what_is_read(
    start_edge: StartEdge,
) -> None:
    edge = start_edge()
    answer = edge.ask(context=LONG_PASSAGE, deadline_seconds=0.001)
    assert (answer["resolved_by"], answer["degraded"]) == ("edge", True)
    assert answer["answer"]
    assert edge.metric("elma_edge_degraded_total", reason="deadline") == 1
    assert edge.ask(context=LONG_PASSAGE)["degraded"] is False


def test_the_text_leaves_the_log_file_soon_after_the_answer(
    start_edge: StartEdge, tmp_path: Path
) -> None:
    edge = start_edge()
    edge.ask()

    def is_gone() -> bool:
        files = tmp_path.glob("outbox.sqlite3*")
        return not any(PASSAGE.encode() in file.read_bytes() for file in files)

    wait_until(is_gone, 10.0)


def test_health_tells_of_a_database_that_cannot_be_written(start_edge: StartEdge) -> None:
    edge = start_edge()
    connection = edge.agent.outbox._connection
    connection.execute("PRAGMA query_only = ON")
    assert edge.post({"question": QUESTION, "context": PASSAGE}).status_code == 503
    health = edge.get("/healthz")
    assert health.status_code == 503
    assert "outbox" in health.json()["problems"][0]
    connection.execute("PRAGMA query_only = OFF")
    wait_until(lambda: edge.get("/healthz").status_code == 200)
    assert edge.ask()["answer"]


def test_a_damaged_database_stays_a_problem(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.sqlite3")
    with pytest.raises(OutboxError, match="move it away"), outbox._watched():
        raise sqlite3.DatabaseError("database disk image is malformed")
    outbox.try_writing()
    assert outbox.fault is not None


def test_a_stop_leaves_no_error_that_nobody_looked_at(
    start_edge: StartEdge, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    edge = start_edge(before_start=gate.install, answer_grace_seconds=0.1, shutdown_seconds=0.2)
    body = {"question": QUESTION, "context": PASSAGE, "deadline_seconds": 0.1}
    assert edge.post(body).status_code == 202
    edge.agent.stop()
    gate.opened.set()
    edge.get("/healthz")  # one more turn of the event loop
    gc.collect()
    assert "never retrieved" not in caplog.text


def job_that_raises() -> Job:
    """A job that does not handle its own error."""
    raise RuntimeError("unforeseen")
    yield
