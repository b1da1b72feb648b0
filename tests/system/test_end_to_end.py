"""Broker, two workers and an edge as processes: every accepted question gets exactly one answer."""

from __future__ import annotations

import signal
from collections.abc import Callable

from edge_agent.local_reading import LocalReading
from tests.cloud_worker.harness import WorkerProcess, wait_until
from tests.system.conftest import (
    LAYERS,
    SECRET_WORDS,
    Crowd,
    EdgeProcess,
    Plant,
    full_depth_answer,
    make_question,
)

CROWD = 50


def questions(first: int, count: int = CROWD) -> list[dict[str, object]]:
    return [make_question(number) for number in range(first, first + count)]


def assert_right(crowd: Crowd, one_machine: LocalReading) -> list[dict[str, object]]:
    """Every question has its own answer, and it is that of one machine at full depth."""
    answers = crowd.answers()
    for asked, answer in zip(crowd.questions, answers, strict=True):
        assert answer["request_id"] == asked["request_id"]
        assert answer["exit_layer"] == LAYERS
        found = (answer["answer"], answer["start"], answer["end"])
        assert found == full_depth_answer(one_machine, asked)
    return answers


def answered_by(worker: WorkerProcess) -> int:
    return worker.outcomes().count("answered")


def test_questions_asked_at_once_are_each_answered_once_and_both_workers_get_some(
    two_workers: dict[str, WorkerProcess], shared_edge: EdgeProcess, one_machine: LocalReading
) -> None:
    before = {name: answered_by(worker) for name, worker in two_workers.items()}
    answers = assert_right(Crowd(shared_edge, questions(0)), one_machine)
    assert {answer["resolved_by"] for answer in answers} == {"cloud"}
    assert not any(answer["degraded"] for answer in answers)
    shares = {name: answered_by(worker) - before[name] for name, worker in two_workers.items()}
    assert sum(shares.values()) >= CROWD
    assert min(shares.values()) > 0, shares


def test_the_broker_killed_and_started_again_costs_no_question(
    plant: Plant,
    two_workers: dict[str, WorkerProcess],
    shared_edge: EdgeProcess,
    one_machine: LocalReading,
) -> None:
    crowd = Crowd(shared_edge, questions(100))
    wait_until(crowd.done_count, "the first answer")
    plant.cloud.broker.kill()
    done_before = crowd.done_count()
    assert done_before < CROWD, "nothing was in flight"
    plant.cloud.broker.restart()
    answers = assert_right(crowd, one_machine)
    stored = [shared_edge.get(f"/v1/answers/{answer['request_id']}").json() for answer in answers]
    assert stored == answers
    lines = [line["request_id"] for line in shared_edge.events("question")]
    assert all(lines.count(answer["request_id"]) == 1 for answer in answers)


def test_a_worker_killed_in_the_middle_costs_no_question(
    two_workers: dict[str, WorkerProcess], shared_edge: EdgeProcess, one_machine: LocalReading
) -> None:
    shared_edge.wait_connected()
    victim = two_workers["north"]
    before = answered_by(victim)
    crowd = Crowd(shared_edge, questions(200))
    wait_until(lambda: answered_by(victim) > before, "the victim at work")
    victim.signal(signal.SIGKILL)
    assert crowd.done_count() < CROWD, "nothing was in flight"
    assert_right(crowd, one_machine)


def test_an_edge_killed_and_started_again_answers_what_it_had_accepted(
    plant: Plant,
    two_workers: dict[str, WorkerProcess],
    free_port: Callable[[], int],
    one_machine: LocalReading,
) -> None:
    port = free_port()
    for worker in two_workers.values():  # frozen: accepted questions stay without an answer
        worker.signal(signal.SIGSTOP)
    try:
        edge = plant.edge("cellar", port, accept_seconds=30.0).wait_connected()
        crowd = Crowd(edge, questions(300, 12))
        wait_until(lambda: edge.health()["queues"]["pending"] == 12, "all accepted")
        edge.signal(signal.SIGKILL)
        edge.wait()
        crowd.let_go()
    finally:
        for worker in two_workers.values():
            worker.signal(signal.SIGCONT)
    again = plant.edge("cellar", port).wait_connected()
    for asked in crowd.questions:
        path = f"/v1/answers/{asked['request_id']}"
        wait_until(lambda path=path: again.get(path).status_code == 200, f"{path} answered")
        answer = again.get(path).json()
        found = (answer["answer"], answer["start"], answer["end"])
        assert found == full_depth_answer(one_machine, asked)


def test_the_logs_tell_each_question_by_its_id_and_never_by_its_words(
    plant: Plant, two_workers: dict[str, WorkerProcess], shared_edge: EdgeProcess
) -> None:
    asked = make_question(400)
    assert any(word in asked["question"] for word in SECRET_WORDS)
    assert shared_edge.post(asked).status_code == 200
    for broken in (
        {**asked, "request_id": "q-401", "question": ""},
        {**asked, "request_id": "q-402", "context": asked["context"] * 2_000},
        {**asked, "request_id": "q-403", SECRET_WORDS[1]: SECRET_WORDS[2]},
    ):
        response = shared_edge.post(broken)
        assert response.status_code == 422
        assert not any(word in response.text for word in SECRET_WORDS)
    wait_until(lambda: "q-400" in plant.logs(), "the question's log line")
    assert plant.payloads, "the tap heard nothing"
