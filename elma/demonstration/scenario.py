"""The demonstration itself: three real processes, questions with the worker, questions without it.

Inputs: a model, an empty folder for keys, settings and logs. Output: a `Report`. Neighbours:
`setup` writes keys and settings, `processes` runs the children, `report` judges the answers.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import httpcore  # noqa: F401  # httpx loads it late, and an interrupt then would not end in 130
import httpx

from elma.demonstration.passages import Question, load_questions
from elma.demonstration.processes import Child
from elma.demonstration.report import Report, Row, find_failures
from elma.demonstration.setup import Setup, prepare
from elma.output import CommandError, print_status

START_SECONDS = 60.0
DEADLINE_SECONDS = 20.0
DEADLINE_WITHOUT_WORKER_SECONDS = 5.0


class Stage:
    """The three processes; `worker` is another one after it was stopped and started again."""

    def __init__(self, setup: Setup, stack: ExitStack) -> None:
        """Nothing runs yet; the children are stopped when `stack` is left, the broker last."""
        self.setup = setup
        self._stack = stack
        self._children: list[Child] = []

    def start_broker(self) -> None:
        """Start the broker and wait until it takes connections."""
        broker = self._start("broker", self.setup.broker_arguments)
        broker.wait_until(lambda: is_listening(self.setup.broker_port), wait_seconds=START_SECONDS)

    def start_worker_and_edge(self) -> None:
        """Start both at once, since each loads its model for a while, and wait for both."""
        self.worker = self._start("worker", self.setup.worker_arguments)
        edge = self._start("edge", self.setup.edge_arguments)
        self._wait_for_worker()
        edge.wait_until(
            lambda: has_broker(f"{self.setup.edge_url}/healthz"), wait_seconds=START_SECONDS
        )

    def restart_worker(self) -> None:
        """Start another worker after the first was stopped, and wait for it."""
        self.worker = self._start("worker", self.setup.worker_arguments)
        self._wait_for_worker()

    def print_logs(self) -> None:
        """The end of every child's log on stderr."""
        for child in self._children:
            print_status(child.log_tail())

    def _start(self, name: str, arguments: Sequence[str]) -> Child:
        child = Child(name, arguments, self.setup.folder / f"{name}.log")
        self._stack.callback(child.stop)
        self._children.append(child)
        return child

    def _wait_for_worker(self) -> None:
        self.worker.wait_until(
            lambda: is_ready(f"{self.setup.worker_url}/readyz"), wait_seconds=START_SECONDS
        )


@contextmanager
def running_stage(
    model: str,
    folder: Path,
    broker_kind: Literal["auto", "mosquitto", "embedded"] = "auto",
    max_edge_layers: int | None = None,
) -> Iterator[Stage]:
    """Broker, worker and edge as processes of their own, ready for questions.

    `folder` is an empty one for keys, settings and logs. All children have ended when this is left,
    whatever happened. Raises CommandError when one does not start; on any error within, the end of
    every log goes to stderr first.
    """
    setup = prepare(folder, model, broker_kind, max_edge_layers)
    with ExitStack() as stack:
        stage = Stage(setup, stack)
        try:
            print_status(f"starting the broker ({setup.broker_kind})")
            stage.start_broker()
            print_status(f"starting a worker and an edge with the model {model}")
            stage.start_worker_and_edge()
            yield stage
        except CommandError:
            stage.print_logs()
            raise


def demonstrate(stage: Stage) -> Report:
    """Ask with the worker, stop it, ask again; the worker is not running afterwards.

    Raises CommandError when a question gets no answer at all.
    """
    questions = load_questions()
    print_status(f"asking {len(questions)} questions")
    with_worker = ask_all(stage, questions, deadline_seconds=DEADLINE_SECONDS)
    print_status("stopping the worker and asking again")
    worker_exit_status = stage.worker.stop()
    without_worker = ask_all(stage, questions, deadline_seconds=DEADLINE_WITHOUT_WORKER_SECONDS)
    failures = find_failures(
        questions, with_worker, without_worker, worker_exit_status=worker_exit_status
    )
    if failures:
        stage.print_logs()
    return Report(
        model=stage.setup.model,
        broker=stage.setup.broker_kind,
        with_worker=tuple(with_worker),
        without_worker=tuple(without_worker),
        failures=tuple(failures),
    )


def ask_all(stage: Stage, questions: Sequence[Question], *, deadline_seconds: float) -> list[Row]:
    """Ask one question after another; raises CommandError when one gets no answer."""
    rows = []
    # Beyond the deadline the edge finishes the question itself: the answer is a little later.
    timeout = httpx.Timeout(deadline_seconds + 30.0)
    # trust_env: a proxy of the environment has no business between processes of this machine.
    with httpx.Client(base_url=stage.setup.edge_url, timeout=timeout, trust_env=False) as client:
        for question in questions:
            answer = _ask(client, question, deadline_seconds)
            rows.append(Row.of(question, answer))
    return rows


def is_listening(port: int) -> bool:
    """Whether somebody accepts TCP connections on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_ready(url: str) -> bool:
    """Whether a GET of this address answers with 200."""
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def has_broker(health_url: str) -> bool:
    """Whether an edge says at its health address that it is connected to its broker."""
    try:
        health = httpx.get(health_url, timeout=2.0, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        return False
    return bool((health.get("cloud") or {}).get("connected"))


def _ask(client: httpx.Client, question: Question, deadline_seconds: float) -> dict[str, Any]:
    body = {
        "question": question.text,
        "context": question.passage,
        "deadline_seconds": deadline_seconds,
    }
    begin = time.monotonic()
    try:
        response = client.post("/v1/answer", json=body)
    except httpx.HTTPError as error:
        raise CommandError(
            f"question {question.id} got no answer in {time.monotonic() - begin:.0f} seconds "
            f"({type(error).__name__}); the end of the logs is above"
        ) from error
    if response.status_code != 200:
        raise CommandError(
            f"question {question.id} was refused with HTTP status {response.status_code}; "
            "the end of the logs is above"
        )
    answer: dict[str, Any] = response.json()
    return answer
