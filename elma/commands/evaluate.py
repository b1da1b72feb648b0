"""`elma evaluate`: what a reader is worth on a SQuAD file, at every exit and under its policy.

Input: a model folder and a question file. Output: a table or JSON on stdout; on request a picture
of the frontier, the predictions in the official format, and what each state codec loses.
Neighbours: `cloud_worker.training.recording` runs the reader, `.evaluation` and
`.codec_evaluation` measure.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elma.extras import require_extra
from elma.options import EngineOption, PrecisionOption
from elma.output import CommandError, JsonOption, print_json, print_status, print_table

if TYPE_CHECKING:
    from cloud_worker.training.codec_evaluation import CodecTable
    from cloud_worker.training.recording import Recording
    from cloud_worker.training.squad_files import Question
    from reader.model import Reader

MODEL_HELP = "A model folder, elma-small, or a hub id."
DATA_HELP = "SQuAD 1.1 or 2.0 JSON, plain or gzipped."
ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP)]
DataOption = Annotated[Path, typer.Option(help=DATA_HELP)]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, envvar="ELMA_THREADS", help="Threads of the reader.")
]


class Half(StrEnum):
    """Which articles: those that calibration sees, the others, or both."""

    ALL = "all"
    CALIBRATION = "calibration"
    REPORT = "report"


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("evaluate")(evaluate)


def evaluate(
    model: ModelArgument,
    data: DataOption,
    half: Annotated[
        Half, typer.Option(help="All articles, or the half for calibration or for reports.")
    ] = Half.ALL,
    max_edge_layers: Annotated[
        int | None,
        typer.Option(min=1, help="The device's last layer. Default: the model's own setting."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first questions of the (half) file.")
    ] = None,
    threads: ThreadsOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    codec: Annotated[
        str | None,
        typer.Option(help="Also answer what is offloaded through this state codec, or all."),
    ] = None,
    offload_all: Annotated[
        bool, typer.Option("--offload-all", help="For --codec: as if nothing had exited before.")
    ] = False,
    save: Annotated[
        bool,
        typer.Option("--save", help="Keep the losses of --codec in the model, for codec = auto."),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write F1 against layers run to this PNG.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Write the policy's answers, id to text, to this JSON.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a reader: official SQuAD 2.0 metrics at full depth, at every exit and by policy."""
    if plot is not None:
        require_extra("plot", "--plot")
    if save and (codec is None or half is not Half.CALIBRATION):
        raise CommandError(
            "--save keeps what --codec measures on the calibration half; "
            "give --codec all --half calibration",
            exit_status=2,
        )

    from cloud_worker.training import evaluation
    from cloud_worker.training.plots import plot_frontier
    from cloud_worker.training.recording import record
    from cloud_worker.training.squad_files import read_squad
    from reader.codecs import LOSSES_FILE, save_losses
    from reader.model import Reader
    from reader.weights import resolve_model_folder

    questions = choose_questions(read_squad(data), half, limit)
    reader = Reader.load(model, threads=threads, engine=engine, precision=precision)
    edge_layers = max_edge_layers or reader.settings.default_edge_layers
    if edge_layers > reader.config.layers:
        raise CommandError(
            f"--max-edge-layers {edge_layers} is more than the {reader.config.layers} layers of "
            f"{model}; give 1..{reader.config.layers}",
            exit_status=2,
        )
    started = time.perf_counter()
    with progress_bar("evaluating") as progress:
        recording = record(reader, questions, progress=progress)
    seconds = time.perf_counter() - started
    report: dict[str, Any] = {
        "model": reader.name,
        "data": str(data),
        "seconds": round(seconds, 3),
        "half": half.value,
        "questions": len(questions),
        "digest": reader.digest,
        **evaluation.evaluation_report(recording, reader.settings, max_edge_layers=edge_layers),
    }
    table = None
    if codec is not None:
        table = _measure_codecs(reader, recording, codec, edge_layers, everything=offload_all)
        report["codecs"] = [row.as_json() for row in table.rows]
        report["offloaded_questions"] = table.questions
        if save:
            folder = resolve_model_folder(model)
            save_losses(folder, edge_layers, table.losses)
            print_status(f"losses: {folder / LOSSES_FILE}")
    if plot is not None:
        title = f"{reader.name} on {data.name} ({half.value}, {len(questions)} questions)"
        plot_frontier(evaluation.frontier(recording, reader.settings), plot, title=title)
        print_status(f"picture: {plot}")
    if predictions is not None:
        write_json(predictions, evaluation.predictions(recording, reader.settings))
        print_status(f"predictions: {predictions}")
    if as_json:
        print_json(report)
    else:
        _print_report(report)
        if table is not None:
            _print_codecs(table, edge_layers)


def choose_questions(
    questions: Sequence[Question], half: Half, limit: int | None
) -> list[Question]:
    """The first `limit` questions of a half."""
    from cloud_worker.training.squad_files import split_articles

    calibration, report = split_articles(questions)
    halves = {Half.ALL: list(questions), Half.CALIBRATION: calibration, Half.REPORT: report}
    chosen = halves[half][:limit]
    if not chosen:
        raise CommandError(
            f"the {half.value} half holds no question (the file has a single article); "
            "use --half all, or a file with more articles",
            exit_status=2,
        )
    return chosen


@contextmanager
def progress_bar(label: str, unit: str = "windows") -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; the value is called with (units done, units in all)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def write_json(path: Path, document: object) -> None:
    """Write a JSON file. Raises `CommandError` when the path cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}; give another path") from error


def metric_cells(metrics: dict[str, Any]) -> list[str]:
    """The cells of a table row under `METRIC_COLUMNS`."""
    names = ("f1", "exact", "HasAns_f1", "HasAns_exact", "NoAns_f1")
    return [f"{metrics[name]:.2f}" if name in metrics else "" for name in names]


METRIC_COLUMNS = ("F1", "exact", "HasAns F1", "HasAns exact", "NoAns F1")


def _measure_codecs(
    reader: Reader, recording: Recording, codec: str, edge_layers: int, *, everything: bool
) -> CodecTable:
    """The offloaded questions through one codec, or through all and as token ids."""
    from cloud_worker.training.codec_evaluation import evaluate_codecs
    from reader.codecs import TOKENS

    known = (*reader.codecs.names(edge_layers), TOKENS)
    if codec not in ("all", *known):
        raise CommandError(
            f"--codec {codec}: {reader.name} has {', '.join(known)} after layer {edge_layers}, "
            "or all of them",
            exit_status=2,
        )
    with progress_bar("codecs") as progress:
        return evaluate_codecs(
            reader,
            recording,
            known if codec == "all" else (codec,),
            edge_layers=edge_layers,
            everything=everything,
            progress=progress,
        )


def _print_codecs(table: CodecTable, edge_layers: int) -> None:
    rows: list[list[object]] = [
        [
            row.codec,
            f"{row.f1:.2f}",
            f"{row.f1_loss:+.2f}",
            row.changed,
            f"{row.bytes_a_question:,.0f}",
            f"{row.bytes_a_token:.1f}",
        ]
        for row in table.rows
    ]
    columns = ("codec", "F1", "loss", "other answers", "bytes a question", "a token")
    title = (
        f"{table.questions} questions handed over after layer {edge_layers} "
        f"({table.windows} windows, {table.tokens} tokens)"
    )
    print_table(columns, rows, title)


def _print_report(report: dict[str, Any]) -> None:
    policy = report["policy"]
    rows: list[list[object]] = [
        [f"exit {metrics['layer']}", *metric_cells(metrics), f"{metrics['layer']:.2f}"]
        for metrics in report["exits"]
    ]
    rows.append(["policy", *metric_cells(policy), f"{policy['mean_exit_layer']:.2f}"])
    helped = report["with_worker"]
    rows.append(["with a worker", *metric_cells(helped), f"{helped['mean_layers_run']:.2f}"])
    title = (
        f"{report['model']} on {report['data']} ({report['half']}): "
        f"{report['questions']} questions in {report['seconds']:.0f} s"
    )
    print_table(("", *METRIC_COLUMNS, "mean layer"), rows, title)
    histogram = ", ".join(f"{layer}: {n}" for layer, n in policy["exit_histogram"].items() if n)
    typer.echo(f"criterion {policy['criterion']}; questions by exit layer: {histogram}")
    typer.echo(
        f"answered on the device (at most {policy['max_edge_layers']} layers): "
        f"{100 * policy['edge_share']:.1f} %"
    )
