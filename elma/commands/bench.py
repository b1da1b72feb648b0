"""`elma bench`: time, bytes and F1, measured beside what a user would pick instead.

Input: a model, a SQuAD file (or the packaged passages), a number of threads. Output: a Markdown
table or JSON on stdout; with `--out` also NAME.md, NAME.json and NAME.png in a folder.
Neighbours: `elma.bench` measures, one module a verb; `benchmarks/README.md` has the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elma.extras import require_extra
from elma.options import EdgeLayersOption, ModelOption
from elma.output import CommandError, JsonOption, print_json, print_status

if TYPE_CHECKING:
    from elma.bench.questions import BenchQuestions

app = typer.Typer(
    help="Measure ELMA beside its peers, all in turn on the same questions.", no_args_is_help=True
)

DataOption = Annotated[
    Path | None,
    typer.Option(help="SQuAD JSON, plain or gzipped; its report half. Default: packaged passages."),
]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder for the table, the JSON and the picture.")
]
ThreadsOption = Annotated[
    int, typer.Option(min=1, envvar="ELMA_THREADS", help="Threads of every process that computes.")
]


class Isa(StrEnum):
    """The instruction set that the libraries are held to."""

    NATIVE = "native"
    AVX2 = "avx2"


@app.command()
def edge(
    model: ModelOption = "elma-small",
    data: DataOption = None,
    out: OutOption = None,
    threads: ThreadsOption = 1,
    compressed: Annotated[
        str | None,
        typer.Option(help="The model with every step of `elma compress`: the row 'all together'."),
    ] = None,
    step: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER: a model with one step more, as a row; repeatable."),
    ] = None,
    isa: Annotated[
        Isa, typer.Option(help="avx2 stands for a small device. ONNX Runtime has no such switch.")
    ] = Isa.NATIVE,
    questions: Annotated[int, typer.Option(min=1, help="Questions that are timed.")] = 150,
    f1_questions: Annotated[int, typer.Option(min=1, help="Questions that F1 is of.")] = 300,
    repeats: Annotated[
        int, typer.Option(min=1, help="Times a question is asked; its smallest counts.")
    ] = 1,
    without_onnx: Annotated[
        bool, typer.Option("--without-onnx", help="Leave out ONNX Runtime and our onnx engine.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """One question on the device: transformers, ONNX Runtime, and ours step by step.

    F1 figures are kept in OUT/f1-store.json under everything that decides them.
    """
    require_extra("torch", "elma bench edge")
    from elma.bench.edge import EdgePlan, markdown_of, run_edge_bench

    plan = EdgePlan(
        model=model,
        compressed=compressed,
        steps=_steps(step or []),
        threads=threads,
        isa=isa.value,
        questions=questions,
        f1_questions=f1_questions,
        repeats=repeats,
        with_onnx=not without_onnx,
    )
    result = run_edge_bench(plan, _load(data), out=out, progress=print_status)
    _print(result, markdown_of, as_json)


@app.command()
def wire(
    model: ModelOption = "elma-small",
    data: DataOption = None,
    out: OutOption = None,
    threads: ThreadsOption = 1,
    tokens: Annotated[int, typer.Option(min=8, max=384, help="Tokens of the window.")] = 180,
    repeats: Annotated[int, typer.Option(min=1, help="Times each step is timed.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Round trips a codec.")] = 100,
    f1_questions: Annotated[
        int, typer.Option(min=0, help="Questions to measure F1 of the sent ones on; 0 leaves it.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """One state on its way: bytes, encoding, sealing, and the trip through a real broker."""
    from elma.bench.wire import WirePlan, markdown_of, run_wire_bench

    plan = WirePlan(
        model=model,
        tokens=tokens,
        repeats=repeats,
        rounds=rounds,
        threads=threads,
        f1_questions=f1_questions,
    )
    result = run_wire_bench(plan, _load(data), out=out, progress=print_status)
    _print(result, markdown_of, as_json)


@app.command()
def worker(
    model: ModelOption = "elma-small",
    data: DataOption = None,
    out: OutOption = None,
    threads: ThreadsOption = 1,
    seconds: Annotated[float, typer.Option(min=0.1, help="What each run lasts.")] = 4.0,
    questions: Annotated[int, typer.Option(min=1, help="Questions that the load is of.")] = 48,
    as_json: JsonOption = False,
) -> None:
    """Questions a second against arrival rate: one by one, equal depth, ours, and the ceiling."""
    from elma.bench.worker import WorkerPlan, run_worker_bench
    from elma.bench.worker_report import markdown_of

    plan = WorkerPlan(model=model, threads=threads, seconds=seconds, questions=questions)
    result = run_worker_bench(plan, _load(data), out=out, progress=print_status)
    _print(result, markdown_of, as_json)


@app.command()
def frontier(
    model: ModelOption = "elma-small",
    data: DataOption = None,
    out: OutOption = None,
    threads: ThreadsOption = 1,
    cloud_threads: Annotated[int, typer.Option(min=1, help="Threads of the worker.")] = 2,
    max_edge_layers: EdgeLayersOption = None,
    codec: Annotated[
        list[str] | None, typer.Option(help="A codec to send with. Default: all but fp32.")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="Questions that are timed.")] = 60,
    f1_questions: Annotated[int, typer.Option(min=1, help="Questions that F1 is of.")] = 500,
    check_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds of real questions through each slow link.")
    ] = 8.0,
    device_share: Annotated[
        float,
        typer.Option(
            min=0.01, max=1.0, help="Share of time that device processes run: 0.1 for a slow one."
        ),
    ] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Edge, cloud and both, under several links: F1, time, bytes."""
    from elma.bench.frontier import FrontierPlan, run_frontier_bench
    from elma.bench.frontier_report import markdown_of
    from elma.demonstration.processes import signals_raise

    plan = FrontierPlan(
        model=model,
        edge_layers=max_edge_layers,
        codecs=tuple(codec) if codec else None,
        threads=threads,
        cloud_threads=cloud_threads,
        questions=questions,
        f1_questions=f1_questions,
        check_seconds=check_seconds,
        device_share=device_share,
    )
    with signals_raise():
        result = run_frontier_bench(plan, _load(data), out=out, progress=print_status)
    _print(result, markdown_of, as_json)


@app.command()
def limit(
    model: ModelOption = "elma-small",
    data: DataOption = None,
    out: OutOption = None,
    threads: ThreadsOption = 1,
    questions: Annotated[int, typer.Option(min=1, help="Windows that are timed.")] = 60,
    repeats: Annotated[int, typer.Option(min=1, help="Times a window is run; best counts.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """The processor's peak, and the share of it that the reader reaches."""
    require_extra("torch", "elma bench limit")
    from elma.bench.limit import LimitPlan, markdown_of, run_limit_bench

    plan = LimitPlan(model=model, threads=threads, questions=questions, repeats=repeats)
    result = run_limit_bench(plan, _load(data), out=out, progress=print_status)
    _print(result, markdown_of, as_json)


@app.command()
def memory(
    model: ModelOption = "elma-small",
    data: DataOption = None,
    out: OutOption = None,
    threads: ThreadsOption = 1,
    engine: Annotated[list[str] | None, typer.Option(help="torch or onnx. Default: both.")] = None,
    python: Annotated[
        str | None,
        typer.Option(help="The device's interpreter, such as one of an environment without torch."),
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="Questions that are asked.")] = 40,
    as_json: JsonOption = False,
) -> None:
    """Resident memory of a real `elma edge run` while it answers."""
    import sys

    from elma.bench.memory import AIMS_MB, MemoryPlan, markdown_of, run_memory_bench

    engines = tuple(engine or AIMS_MB)
    if unknown := set(engines) - set(AIMS_MB):
        raise CommandError(
            f"unknown engine {sorted(unknown)[0]!r}; use {' or '.join(AIMS_MB)}", exit_status=2
        )
    plan = MemoryPlan(
        model=model,
        engines=engines,
        threads=threads,
        questions=questions,
        python=python or sys.executable,
    )
    result = run_memory_bench(plan, _load(data), out=out, progress=print_status)
    _print(result, markdown_of, as_json)


def _load(data: Path | None) -> BenchQuestions:
    from cloud_worker.training.measuring_errors import SquadFileError
    from elma.bench.questions import load_bench_questions

    try:
        return load_bench_questions(data)
    except SquadFileError as error:
        raise CommandError(str(error), exit_status=2) from error


def _print(
    result: dict[str, Any], markdown_of: Callable[[dict[str, Any]], str], as_json: bool
) -> None:
    if as_json:
        print_json(result)
    else:
        typer.echo(markdown_of(result))


def _steps(options: Sequence[str]) -> dict[str, str]:
    """`NAME=FOLDER` options as a mapping."""
    steps = {}
    for option in options:
        name, equals, folder = option.partition("=")
        if not (name and equals and folder):
            raise CommandError(f"--step {option!r} is not NAME=FOLDER", exit_status=2)
        steps[name] = folder
    return steps
