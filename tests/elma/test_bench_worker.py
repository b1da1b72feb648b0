"""The worker's benchmark: its load, its ceiling, and that a run measures what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloud_worker.releases import Releases
from cloud_worker.scheduler import BatchLimits
from elma.bench.questions import BenchQuestions, load_bench_questions
from elma.bench.worker import OURS, WAYS, WorkerPlan, run_worker_bench
from elma.bench.worker_broker import qps_over_broker
from elma.bench.worker_core import CEILING_TOKENS, ceiling_qps, serve
from elma.bench.worker_load import (
    Arrival,
    arrivals_at,
    leave_passage,
    leave_questions,
    make_one_group_model,
    mean_work,
    saturating,
)
from reader.model import Reader
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("bench") / "tiny", layers=4, groups=4)


@pytest.fixture(scope="module")
def reader(model: Path) -> Reader:
    return Reader.load(model, threads=1, engine="torch", precision="fp32")


@pytest.fixture(scope="module")
def questions() -> BenchQuestions:
    return load_bench_questions(None)


def test_questions_are_left_at_every_depth_with_the_states_of_that_depth(
    reader: Reader, questions: BenchQuestions
) -> None:
    requests = leave_questions(reader, questions, seed=1)
    windows = [window for request in requests for window in request]
    assert {window.layer for window in windows} == {1, 2, 3}
    split = [reader.split(one.question, one.context) for one in questions.questions]
    texts = [window for group in split if len(group) <= 3 for window in group]
    assert [len(window.state) for window in windows] == [len(text) for text in texts]
    for text, window in zip(texts, windows, strict=True):
        alone = reader.engine.states(reader.run(reader.embed([text]), 0, window.layer))[0]
        assert window.state == pytest.approx(alone, abs=1e-4)


def test_a_passage_has_as_many_windows_as_asked_for(
    reader: Reader, questions: BenchQuestions
) -> None:
    passage = leave_passage(reader, questions, 7)
    assert len(passage) == 7
    assert len({len(window.state) for window in passage[:6]}) == 1


def test_arrivals_are_open_loop_and_the_same_for_the_same_seed(
    reader: Reader, questions: BenchQuestions
) -> None:
    requests = leave_questions(reader, questions, seed=1)
    first = arrivals_at(requests, 100.0, 10.0, seed=3)
    assert first == arrivals_at(requests, 100.0, 10.0, seed=3)
    assert 900 < len(first) < 1_100
    assert len([one for one in saturating(requests, 100.0, 1.0, 5, 3) if one.at == 0.0]) == 5


def test_a_model_of_one_group_is_as_large_in_everything_else(model: Path, tmp_path: Path) -> None:
    made = Reader.load(make_one_group_model(model, tmp_path / "one", 0)).config
    like = Reader.load(model).config
    assert (made.groups, made.layers, made.hidden_size) == (1, like.layers, like.hidden_size)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_answers_everything_that_it_has_time_for(
    way: str, reader: Reader, questions: BenchQuestions
) -> None:
    requests = leave_questions(reader, questions, seed=1)
    arrivals = [Arrival(0.0, request) for request in requests * 4]
    served = serve(
        Releases([reader]),
        reader,
        arrivals,
        WAYS[way],
        seconds=0.2,
        held=1_000,
        mean_work=mean_work(requests, 4),
        drain_seconds=20.0,
    )
    assert (len(served.seconds), served.refused, served.unanswered) == (len(arrivals), 0, 0)
    assert (served.batch_windows == 1.0) == (way == "one by one")


def test_what_finds_no_place_is_counted_as_refused(
    reader: Reader, questions: BenchQuestions
) -> None:
    requests = leave_questions(reader, questions, seed=1)
    served = serve(
        Releases([reader]),
        reader,
        [Arrival(0.0, requests[0]) for _ in range(50)],
        BatchLimits(),
        seconds=0.1,
        held=1,
        mean_work=1.0,
        drain_seconds=20.0,
    )
    assert served.refused > 0
    assert served.refused + len(served.seconds) == 50


def test_the_ceiling_runs_every_window_to_its_end(
    reader: Reader, questions: BenchQuestions, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    whole = reader.spans
    monkeypatch.setattr(
        reader, "spans", lambda batch, *more: ran.append(len(batch)) or whole(batch, *more)
    )
    requests = leave_questions(reader, questions, seed=1)
    assert ceiling_qps(reader, requests, 2) > 0
    runs = 2 * len(CEILING_TOKENS)
    assert sum(ran) == runs * sum(len(request) for request in requests)


def test_a_worker_process_is_measured_through_a_broker(
    model: Path, reader: Reader, questions: BenchQuestions, mosquitto_program: Path
) -> None:
    requests = leave_questions(reader, questions, seed=1)
    qps = qps_over_broker(
        model,
        reader.digest,
        requests,
        threads=1,
        engine="torch",
        precision="fp32",
        seconds=1.0,
        held=8,
        mean_work=mean_work(requests, 4),
    )
    assert qps > 0


def test_the_result_has_its_figures_table_and_picture(
    model: Path, questions: BenchQuestions, tmp_path: Path
) -> None:
    plan = WorkerPlan(
        str(model),
        threads=1,
        engine="torch",
        precision="fp32",
        questions=8,
        seconds=0.2,
        loads=(0.5,),
        held=16,
        few_held=4,
        passage_windows=3,
        passage_run_seconds=0.4,
        broker_seconds=0.0,
    )
    result = run_worker_bench(plan, questions, out=tmp_path)
    stored = json.loads((tmp_path / "worker.json").read_text(encoding="utf-8"))
    assert stored["ours_qps"] == result["models"][1]["ours_qps"]
    for key in ("ceiling_qps", "ours_qps", "equal_depth_qps", "one_by_one_qps"):
        assert result[key] > 0, key
    for key in ("p95_ms", "p95_long_passage_ms"):
        assert result[key] > 0, key
    assert [model["groups"] for model in result["models"]] == [4, 1]
    assert OURS in (tmp_path / "worker.md").read_text(encoding="utf-8")
    assert (tmp_path / "worker.png").read_bytes().startswith(b"\x89PNG")
