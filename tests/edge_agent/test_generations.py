"""Releases change under a crowd of questions: each answer is that of the one release it names."""

from __future__ import annotations

import itertools
import math
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.run import RunningBroker
from edge_agent.agent import EdgeAgent
from edge_agent.local_reading import LocalReading
from edge_agent.questions import Question
from protocol.sealing import OpenedRequest
from reader.exits import ExitSettings
from reader.model import Reader
from reader.spans import WindowSpans, choose_answers
from tests.edge_agent.conftest import Keys, RunningEdge, StartEdge, wait_until
from tests.edge_agent.fake_worker import FakeWorker, answers
from tests.tiny import make_tiny_model

EDGE_LAYERS = 2
QUESTIONS = [
    (
        f"when was the tower number {number} built",
        " ".join(
            f"the tower {part} was built in {1500 + number + part} by the king." for part in parts
        ),
    )
    for number, parts in enumerate([range(3)] * 9 + [range(70)] * 3)  # the last ones: many windows
]
CHANGES = 24


@dataclass(frozen=True)
class Expected:
    """What one release answers alone: on the device, or in the cloud, or when that was silent."""

    by: dict[tuple[str, bool], tuple[int, int, int]]
    """(resolved by, degraded) to start, end, exit layer."""


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reader, Reader]:
    """Two readers of different shapes; half of the questions' windows exit on the device."""
    shapes: list[dict[str, Any]] = [
        {"layers": 4, "groups": 2, "hidden_size": 32, "seed": 0},
        {"layers": 6, "groups": 3, "hidden_size": 48, "seed": 1},
    ]
    made = []
    for number, shape in enumerate(shapes):
        folder = make_tiny_model(tmp_path_factory.mktemp("model") / f"release-{number}", **shape)
        reader = Reader.load(folder)
        settings = ExitSettings.uncalibrated(shape["layers"])
        thresholds = list(settings.exit_thresholds)
        thresholds[EDGE_LAYERS - 1] = _median_uncertainty(reader)
        replace(settings, exit_thresholds=tuple(thresholds)).save(folder)
        made.append(Reader.load(folder))
    return made[0], made[1]


def test_each_answer_is_that_of_the_release_it_names_and_none_is_lost(
    releases: tuple[Reader, Reader],
    mosquitto: RunningBroker,
    start_edge: StartEdge,
    keys: Keys,
    tmp_path: Path,
) -> None:
    expected = {reader.digest: _expectations(reader) for reader in releases}
    is_over = threading.Event()
    numbers = itertools.count()
    seen: list[dict[str, Any]] = []

    def slow_and_sometimes_silent(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        if int(request.header.request.split("-")[0].removeprefix("q")) % 7:
            time.sleep(0.01)
            answers(worker, request, topic)

    def ask_on(edge: RunningEdge) -> None:
        while not is_over.is_set():
            number = next(numbers)
            question, passage = QUESTIONS[number % len(QUESTIONS)]
            seen.append(
                edge.ask(
                    request_id=f"q{number}",
                    question=question,
                    context=passage,
                    deadline_seconds=30.0,
                )
                | {"asked": number % len(QUESTIONS)}
            )

    with FakeWorker(
        mosquitto.settings(),
        releases[0],
        keys.pool,
        keys.edge,
        slow_and_sometimes_silent,
        others=releases[1:],
    ):
        edge = start_edge(
            mosquitto.settings(),
            offload={"accept_seconds": 0.3, "max_attempts": 1},
            max_edge_layers=EDGE_LAYERS,
            model=str(_folder_of(releases[0], tmp_path)),
        )
        wait_until(lambda: edge.get("/healthz").json()["cloud"]["connected"])
        with ThreadPoolExecutor(6) as pool:
            asking = [pool.submit(ask_on, edge) for _ in range(6)]
            for change in range(1, CHANGES + 1):
                edge.agent._change.change(releases[change % 2], 30.0)
                count = len(seen)
                wait_until(lambda at_least=count + 4: len(seen) >= at_least)
            is_over.set()
            for future in asking:
                future.result()

    for answer in seen:
        one = expected[answer["release"]][answer["asked"]]
        given = answer["start"], answer["end"], answer["exit_layer"]
        assert given == one.by[answer["resolved_by"], answer["degraded"]], answer
        assert answer["model"].endswith(f"@{answer['release'][:12]}")
    assert {answer["request_id"] for answer in seen} == {f"q{n}" for n in range(len(seen))}
    ways = {(answer["release"], answer["resolved_by"], answer["degraded"]) for answer in seen}
    assert ways == {
        (reader.digest, *way)
        for reader in releases
        for way in (("edge", False), ("edge", True), ("cloud", False))
    }


def test_a_reading_that_has_begun_keeps_its_reader_which_is_dropped_with_it(
    releases: tuple[Reader, Reader], start_edge: StartEdge, tmp_path: Path
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hold(agent: EdgeAgent) -> None:
        read = agent.local.read_in_steps

        def held(question: Question, answer_by: float = math.inf, *more: Any) -> Any:
            if question.request_id == "old":
                begun.set()
                while not go_on.is_set():
                    yield
            return (yield from read(question, answer_by, *more))

        agent.local.read_in_steps = held  # type: ignore[assignment]

    edge = start_edge(before_start=hold, model=str(_folder_of(releases[0], tmp_path)))
    first = weakref.ref(edge.agent.local.reader)
    question, passage = QUESTIONS[0]
    with ThreadPoolExecutor(1) as pool:
        asked = {"question": question, "context": passage}
        old = pool.submit(edge.ask, request_id="old", deadline_seconds=50.0, **asked)
        assert begun.wait(30.0)
        edge.agent._change.change(releases[1], 30.0)
        new = edge.ask(request_id="new", deadline_seconds=20.0, **asked)
        assert new["release"] == releases[1].digest
        assert edge.metric("elma_edge_readers_held") == 2
        go_on.set()
        assert old.result()["release"] == releases[0].digest
    wait_until(lambda: first() is None)
    wait_until(lambda: edge.metric("elma_edge_readers_held") == 1)


def test_a_reader_whose_warm_up_fails_never_comes_into_use(
    releases: tuple[Reader, Reader],
    start_edge: StartEdge,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edge = start_edge(model=str(_folder_of(releases[0], tmp_path)))

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(releases[1].engine, "embed", broken)
    with pytest.raises(ZeroDivisionError):
        edge.agent._change.change(releases[1], 30.0)
    question, passage = QUESTIONS[0]
    assert edge.ask(question=question, context=passage)["release"] == releases[0].digest


def _expectations(reader: Reader) -> list[Expected]:
    """For each question what this release must answer, each way that it can go."""
    local = LocalReading(reader, edge_layers=EDGE_LAYERS)
    layers = reader.config.layers
    expected = []
    for question, passage in QUESTIONS:
        reading = local.read(Question("q", question, passage, 1, 30.0, 0.0))
        if reading.is_settled:
            expected.append(Expected({("edge", False): _place(local, reading, reading.resolved)}))
            continue
        cloud = dict(reading.resolved)
        for window in reading.windows:
            if window.index not in cloud:
                batch = reader.run(reader.embed([window]), 0, layers)
                (cloud[window.index],) = reader.spans(batch, layers, [window.index])
        expected.append(
            Expected(
                {
                    ("cloud", False): _place(local, reading, cloud),
                    ("edge", True): _place(local, reading, local.finish(reading)),
                }
            )
        )
    assert any(("edge", False) in one.by for one in expected)
    assert any(("cloud", False) in one.by for one in expected)
    return expected


def _place(
    local: LocalReading, reading: Any, results: dict[int, WindowSpans]
) -> tuple[int, int, int]:
    (best,) = choose_answers(
        reading.windows,
        [results[window.index] for window in reading.windows],
        reading.question.passage,
        local.reader.settings,
    )
    return best.start, best.end, max(spans.layer for spans in results.values())


def _median_uncertainty(reader: Reader) -> float:
    """Of the questions' most uncertain windows at the device's last layer, the median."""
    found = []
    for question, passage in QUESTIONS:
        windows = reader.split(question, passage)
        batch = reader.run(reader.embed(windows), 0, EDGE_LAYERS)
        history = np.zeros((len(windows), 0, 2), dtype=np.int64)
        found.append(reader.uncertainty(reader.view(batch, EDGE_LAYERS, history)).max())
    return float(np.median(found))


def _folder_of(reader: Reader, tmp_path: Path) -> Path:
    """Where a release of the fixture lies."""
    base = tmp_path.parent
    return next(path for path in base.glob(f"model*/{reader.name}"))
