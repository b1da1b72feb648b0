"""`elma bench limit`: what the processor can do at most, and the reader's share of that.

In: a model folder, questions, threads. Out: for each precision the peak of a large matrix product,
and the reader's own rate: the arithmetic that its layers need for the tokens that are there,
divided by the time they take. Neighbour: `reader.engines` computes.

A multiplication with an addition counts as two operations. Of a layer are counted: its four matrix
products, and attention's two over the keys that each query sees; not counted are normalisation,
activation, softmax and copying, whose time therefore lowers the share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from elma.bench.machine import describe_machine
from elma.bench.questions import BenchQuestions
from elma.bench.results import COLOURS, Table, new_figure, percentile, save_figure, write_results
from reader.config import ReaderConfig
from reader.errors import EngineError
from reader.model import Reader
from reader.windows import Window

PRECISIONS = ("fp32", "bf16", "int8")
AIMS = {"fp32": 0.70, "bf16": 0.50, "int8": None}
PEAK_SIZE = 2048
PEAK_SECONDS = 1.5


@dataclass(frozen=True)
class LimitPlan:
    """What is measured."""

    model: str
    threads: int = 1
    questions: int = 60
    repeats: int = 3
    batch_windows: int = 16


def run_limit_bench(
    plan: LimitPlan,
    questions: BenchQuestions,
    *,
    out: Path | None,
    progress: Callable[[str], None] = lambda _text: None,
    peak_seconds: float = PEAK_SECONDS,
) -> dict[str, Any]:
    """Measure every precision that this machine and this installation have.

    Raises `ModelFolderError`.
    """
    rows: list[dict[str, Any]] = []
    release = ""
    for precision in PRECISIONS:
        progress(f"the peak of a matrix product in {precision}")
        peak = measure_peak(precision, plan.threads, peak_seconds=peak_seconds)
        try:
            reader = Reader.load(
                plan.model, threads=plan.threads, engine="torch", precision=precision
            )
        except EngineError as error:
            rows.append(_empty_row(precision, peak, str(error)))
            continue
        release = reader.digest
        windows = [
            reader.split(question.question, question.context)[0]
            for question in questions.spread(plan.questions).questions
        ]
        progress(f"the reader in {precision}")
        alone = measure_reader(reader, [[window] for window in windows], plan.repeats)
        batches = _batches(windows, plan.batch_windows)
        together = measure_reader(reader, batches, plan.repeats)
        rows.append(
            {
                "precision": precision,
                "peak_gflops": None if peak is None else round(peak, 1),
                "reader_gflops": round(alone, 1),
                "share": None if peak is None else round(alone / peak, 3),
                "batch_gflops": round(together, 1),
                "batch_share": None if peak is None else round(together / peak, 3),
                "aim": AIMS[precision],
                "why": "",
            }
        )
    result = {
        "model": Path(plan.model).name,
        "release": release,
        "data": questions.source,
        "questions": plan.questions,
        "batch_windows": plan.batch_windows,
        "peak_size": PEAK_SIZE,
        "machine": describe_machine(plan.threads),
        "rows": rows,
    }
    if out is not None:
        name = f"limit-{plan.threads}"
        write_results(out, name, result, markdown_of(result))
        draw(result, out / f"{name}.png")
    return result


def measure_peak(
    precision: str, threads: int, *, size: int = PEAK_SIZE, peak_seconds: float = PEAK_SECONDS
) -> float | None:
    """GFLOP/s (int8: GOP/s) of the best of many products of two square matrices, by whichever
    library here is the fastest; None where none has such a product."""
    best: float | None = None
    for multiply in _products(precision, threads, size):
        try:
            seconds = _best_seconds(multiply, peak_seconds)
        except RuntimeError:  # this build or this processor lacks it
            continue
        best = max(best or 0.0, 2 * size**3 / seconds / 1e9)
    return best


def _products(precision: str, threads: int, size: int) -> list[Callable[[], Any]]:
    """The ways to multiply two square matrices: torch's own, oneDNN with the right one laid out
    in advance, and numpy's."""
    import torch

    torch.set_num_threads(threads)
    if precision == "int8":
        left = torch.randint(-127, 127, (size, size), dtype=torch.int8)
        right = torch.randint(-127, 127, (size, size), dtype=torch.int8)
        return [lambda: torch._int_mm(left, right)]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    ways: list[Callable[[], Any]] = [lambda: torch.mm(a, b)]
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        packed = torch.ops.mkldnn._reorder_linear_weight(b)
        linear = torch.ops.mkldnn._linear_pointwise
        ways.append(lambda: linear(a, packed, None, "none", [], ""))
    if precision == "fp32":
        x, y = a.numpy(), b.numpy()
        ways.append(lambda: x @ y)
    return ways


def measure_reader(reader: Reader, batches: Sequence[Sequence[Window]], repeats: int) -> float:
    """GFLOP/s of all layers over batches of windows: the median of the batches, each at its best
    of `repeats`."""
    rates = []
    for windows in batches:
        state = reader.embed(windows)
        operations = sum(operations_of(reader.config, len(window), window) for window in windows)
        best = min(
            _seconds(partial(reader.run, state, 0, reader.config.layers))
            for _ in range(repeats + 1)
        )
        rates.append(operations / best / 1e9)
    return percentile(rates, 50)


def operations_of(config: ReaderConfig, tokens: int, window: Window | None = None) -> float:
    """Operations of all layers over one window of `tokens` tokens.

    Of a pruned network those that are left; of a limited span the keys within it, and the
    question's.
    """
    total = 0.0
    question = 0 if window is None else window.question_tokens
    for layer in range(1, config.layers + 1):
        group = config.group_of(layer)
        width = len(config.heads_of(group)) * config.head_size
        inner, hidden = config.inner_of(group), config.hidden_size
        total += 2 * tokens * (4 * hidden * width + 2 * hidden * inner)
        for span in config.spans_of(layer):
            total += 4 * config.head_size * _visible_keys(tokens, question, span)
    return total


def _visible_keys(tokens: int, question: int, span: int) -> int:
    """Pairs of a query and a key that it sees."""
    if span <= 0:
        return 0
    if span >= tokens:
        return tokens * tokens
    pairs = question * tokens  # question tokens see everything
    for query in range(question, tokens):
        first = max(question, query - span)
        pairs += question + min(tokens - 1, query + span) - first + 1
    return pairs


def markdown_of(result: Mapping[str, Any]) -> str:
    """The table as a person reads it."""
    table = Table(
        ("", "peak GFLOP/s", "reader GFLOP/s", "share %", "aim %", "batch GFLOP/s", "share %"),
        [
            (
                row["precision"],
                row["peak_gflops"],
                row["reader_gflops"],
                _percent(row["share"]),
                _percent(row["aim"]),
                row["batch_gflops"],
                _percent(row["batch_share"]),
            )
            for row in result["rows"]
        ],
    )
    missing = [f"{row['precision']}: {row['why']}" for row in result["rows"] if row["why"]]
    return "\n".join(
        [
            f"{result['model']}, all layers over one unpadded window at a time, and over "
            f"{result['batch_windows']} together; {result['machine']['threads']} thread(s), "
            f"{result['machine']['cpu']}. Peak: two square matrices of {result['peak_size']}.",
            "",
            table.markdown(),
            *missing,
        ]
    )


def draw(result: Mapping[str, Any], png_path: Path) -> None:
    """Peak and reader side by side."""
    figure = new_figure(f"{result['model']}: the reader and the processor's limit")
    axes = figure.add_subplot()
    rows = result["rows"]
    columns = (
        ("peak_gflops", "peak of a matrix product"),
        ("reader_gflops", "reader, one window"),
        ("batch_gflops", f"reader, {result['batch_windows']} windows"),
    )
    for number, (column, label) in enumerate(columns):
        places = [place + 0.27 * (number - 1) for place in range(len(rows))]
        heights = [row[column] or 0.0 for row in rows]
        axes.bar(places, heights, width=0.25, color=COLOURS[number], label=label)
    axes.set_xticks(range(len(rows)), [row["precision"] for row in rows])
    axes.set(ylabel="GFLOP/s")
    axes.grid(alpha=0.3, axis="y")
    axes.legend()
    save_figure(figure, png_path)


def _batches(windows: Sequence[Window], size: int) -> list[list[Window]]:
    """Windows of like length together, as a worker batches them."""
    ordered = sorted(windows, key=len)
    return [ordered[first : first + size] for first in range(0, len(ordered), size)]


def _best_seconds(work: Callable[[], Any], budget_seconds: float) -> float:
    end = time.perf_counter() + budget_seconds
    best = min(_seconds(work) for _ in range(3))
    while time.perf_counter() < end:
        best = min(best, _seconds(work))
    return best


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)


def _empty_row(precision: str, peak: float | None, why: str) -> dict[str, Any]:
    return {
        "precision": precision,
        "peak_gflops": None if peak is None else round(peak, 1),
        "reader_gflops": None,
        "share": None,
        "batch_gflops": None,
        "batch_share": None,
        "aim": AIMS[precision],
        "why": why,
    }
