"""`elma bench limit` and `memory`: what is counted, and what a real process uses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from elma.bench.limit import LimitPlan, measure_peak, operations_of, run_limit_bench
from elma.bench.memory import MemoryPlan, run_memory_bench
from elma.bench.questions import load_bench_questions
from elma.output import CommandError
from reader.config import ReaderConfig
from reader.windows import Window
from tests.tiny import make_tiny_model

CONFIG = ReaderConfig(
    vocab_size=50,
    embedding_size=8,
    hidden_size=16,
    layers=2,
    groups=2,
    heads=4,
    intermediate_size=32,
)
WINDOW = Window(0, tuple(range(20)), 5, ((0, 0),) * 20)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def test_a_layer_is_its_four_products_and_the_two_of_attention() -> None:
    tokens = 20
    products = 2 * tokens * (4 * 16 * 16 + 2 * 16 * 32)
    attention = 2 * 2 * tokens * tokens * 16
    assert operations_of(CONFIG, tokens, WINDOW) == 2 * (products + attention)


def test_what_was_pruned_is_not_counted() -> None:
    pruned = replace(CONFIG, kept_heads=((0, 2), ()), inner_sizes=(8, 0))
    first = 2 * 20 * (4 * 16 * 8 + 2 * 16 * 8) + 2 * 2 * 20 * 20 * 8
    assert operations_of(pruned, 20, WINDOW) == first


def test_of_a_limited_span_only_the_keys_within_it_are_counted() -> None:
    spans = replace(CONFIG, spans=((3, 0, 100, 1), (0, 0, 0, 0)))
    question = WINDOW.question_tokens

    def pairs(span: int) -> int:
        return sum(
            span > 0 and (abs(query - key) <= span or query < question or key < question)
            for query in range(20)
            for key in range(20)
        )

    attention = sum(4 * 4 * pairs(span) for span in (3, 0, 100, 1))
    full = operations_of(CONFIG, 20, WINDOW) - 2 * (2 * 2 * 20 * 20 * 16)
    assert operations_of(spans, 20, WINDOW) == full + attention


def test_the_result_has_a_share_of_the_peak_for_every_precision(tiny: Path, tmp_path: Path) -> None:
    plan = LimitPlan(str(tiny), questions=3, repeats=1, batch_windows=2)
    result = run_limit_bench(plan, load_bench_questions(None), out=tmp_path, peak_seconds=0.01)
    rows = {row["precision"]: row for row in result["rows"]}
    assert list(rows) == ["fp32", "bf16", "int8"]
    fp32 = rows["fp32"]
    assert fp32["share"] == pytest.approx(fp32["reader_gflops"] / fp32["peak_gflops"], abs=0.01)
    for row in rows.values():
        assert row["reader_gflops"] is not None or row["why"]
    assert {"limit-1.json", "limit-1.md", "limit-1.png"} <= {p.name for p in tmp_path.iterdir()}


def test_a_precision_without_any_product_has_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise RuntimeError("not on this processor")

    monkeypatch.setattr("torch._int_mm", refuse)
    assert measure_peak("int8", 1, size=32, peak_seconds=0.01) is None


def test_the_memory_is_that_of_a_real_edge(tiny: Path, tmp_path: Path) -> None:
    plan = MemoryPlan(str(tiny), engines=("torch",), questions=2)
    result = run_memory_bench(plan, load_bench_questions(None), out=tmp_path)
    row = result["rows"][0]
    assert row["peak_mb"] >= row["rss_mb"] > 50
    assert row["torch_loaded"] is True
    assert (tmp_path / "memory.md").is_file()


def test_an_edge_that_does_not_start_is_an_error_with_its_last_words(tiny: Path) -> None:
    plan = MemoryPlan(str(tiny), engines=("steam",), questions=1)
    with pytest.raises(CommandError, match="did not start"):
        run_memory_bench(plan, load_bench_questions(None), out=None)
