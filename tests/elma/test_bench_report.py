"""The pages show what the stored results hold, and acceptance is judged by these alone."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import report
from elma.bench.edge import ONNX_INT8, OURS, PADDED

MACHINE = {
    "cpu": "a processor",
    "threads": 1,
    "isa": "native",
    "commit": "abc",
    "python": "3.11",
    "versions": {"torch": "2.0", "onnxruntime": None},
}


def edge_result(*, ratio: float = 16.0, f1: float = 63.5, isa: str = "native") -> dict[str, Any]:
    """What `elma bench edge` stores, as far as a page shows it."""
    rows = [
        {
            "name": name,
            "p50_ms": 10.0,
            "p95_ms": 20.0,
            "f1": found,
            "has_answer_f1": 60.0,
            "rss_mb": 300.0,
            "engine": "torch",
            "precision": "fp32",
        }
        for name, found in ((PADDED, 64.2), (ONNX_INT8, 64.0), (OURS, f1))
    ]
    return {
        "model": "elma-small",
        "data": "questions.json",
        "questions": 3,
        "f1_questions": 4,
        "machine": MACHINE | {"isa": isa},
        "rows": rows,
        "ratios": {"padded_fp32": ratio, "onnx_int8": 1.6},
        "notes": [],
        "compressed": None,
    }


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.parent.name)
def test_no_page_is_behind_its_results(page: Any) -> None:
    text = page.read_text(encoding="utf-8")
    results = report.load_results(report.RESULTS)
    assert report.render(text, results, figures=report._figures_of(page)) == text, (
        "run `python benchmarks/report.py`"
    )


def test_a_block_is_filled_and_filling_again_changes_nothing() -> None:
    page = "before\n<!-- result edge-1 -->\nold\n<!-- end -->\nafter\n"
    results = {"edge-1": edge_result()}
    once = report.render(page, results, figures="figures")
    assert "16.0 times as fast as" in once
    assert "figures/bench-edge-1.png" in once
    assert "old" not in once
    assert "torch 2.0" in once
    assert "onnxruntime None" not in once
    assert report.render(once, results, figures="figures") == once


def test_a_block_without_a_result_says_so() -> None:
    page = "<!-- result wire -->\n<!-- end -->\n"
    assert "not measured yet: wire" in report.render(page, {}, figures="figures")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"ratio": 14.9}, False),
        ({"f1": 63.1}, False),
        ({"ratio": 7.0, "isa": "avx2"}, True),
        ({"ratio": 5.9, "isa": "avx2"}, False),
    ],
)
def test_the_edge_must_be_fast_enough_and_right_enough(
    changed: dict[str, Any], expected: bool
) -> None:
    lines = list(report.acceptance({"edge-1": edge_result(**changed)}))
    assert lines[0].is_met is expected
    assert ("missed" in lines[0].markdown()) is not expected


def test_onnx_runtime_is_compared_only_where_it_can_be_held_to_the_same_instructions() -> None:
    assert len(list(report.acceptance({"edge-1": edge_result()}))) == 2
    assert len(list(report.acceptance({"edge-1-avx2": edge_result(isa="avx2")}))) == 1


def test_the_wire_is_judged_by_the_round_trip_and_by_what_is_ours_of_it() -> None:
    result = {
        "round_trip_p50_ms": 3.3,
        "sealing_and_codec_ms": 1.2,
        "round_trip_codec": "int8",
        "tokens": 180,
    }
    assert [line.is_met for line in report.acceptance({"wire": result})] == [True, False]


def test_memory_is_judged_by_engine() -> None:
    row = {
        "engine": "onnx",
        "aim_mb": 200.0,
        "rss_mb": 190.0,
        "peak_mb": 240.0,
        "torch_loaded": False,
    }
    (line,) = report.acceptance({"memory": {"rows": [row]}})
    assert line.is_met
    assert "no torch" in line.measured
