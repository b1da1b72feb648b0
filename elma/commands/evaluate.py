"""`elma evaluate`: what a reader is worth on a SQuAD file, at every exit and under its policy.

Input: a model folder and a question file. Output: a table or JSON on stdout; on request a picture
of the frontier, the predictions in the official format, and what each state codec loses.
Neighbours: `cloud_worker.training.recording` runs the reader, `.evaluation` and
`.codec_evaluation` measure, `elma.measured_tables` prints.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elma.extras import require_extra
from elma.measured_tables import print_codecs, print_evaluation
from elma.options import (
    EdgeLayersOption,
    EngineOption,
    ModelArgument,
    PrecisionOption,
    SquadOption,
    ThreadsOption,
)
from elma.output import CommandError, JsonOption, print_json, print_status
from elma.progress import progress_bar
from elma.question_halves import Half, choose_questions

if TYPE_CHECKING:
    from cloud_worker.training.codec_evaluation import CodecTable
    from cloud_worker.training.recording import Recording
    from cloud_worker.training.squad_files import Question
    from reader.model import Reader


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("evaluate", short_help="Measure a reader by SQuAD 2.0's metrics.")(evaluate)


def evaluate(
    model: ModelArgument,
    data: SquadOption,
    half: Annotated[
        Half, typer.Option(help="All articles, or the half for calibration or for reports.")
    ] = Half.ALL,
    max_edge_layers: EdgeLayersOption = None,
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

    from cloud_worker.training.evaluation import evaluation_report
    from cloud_worker.training.squad_files import read_squad
    from reader.model import Reader

    questions = choose_questions(read_squad(data), half, limit)
    reader = Reader.load(model, threads=threads, engine=engine, precision=precision)
    edge_layers = _edge_layers(reader, max_edge_layers)
    codecs = _codec_names(reader, codec, edge_layers)
    recording, seconds = _record(reader, questions)
    report: dict[str, Any] = {
        "model": reader.name,
        "data": str(data),
        "seconds": round(seconds, 3),
        "half": half.value,
        "questions": len(questions),
        "digest": reader.digest,
        **evaluation_report(recording, reader.settings, max_edge_layers=edge_layers),
    }
    table = None
    if codecs:
        table = _measure_codecs(reader, recording, codecs, edge_layers, everything=offload_all)
        report["codecs"] = [row.as_json() for row in table.rows]
        report["offloaded_questions"] = table.questions
        if save:
            _save_losses(model, edge_layers, table)
    if plot is not None:
        title = f"{reader.name} on {data.name} ({half.value}, {len(questions)} questions)"
        _draw(recording, reader, plot, title)
    if predictions is not None:
        _write_predictions(recording, reader, predictions)
    if as_json:
        print_json(report)
    else:
        print_evaluation(report)
        if table is not None:
            print_codecs(table, edge_layers)


def _edge_layers(reader: Reader, wanted: int | None) -> int:
    """The device's last layer: the wanted one, or the model's own."""
    edge_layers = wanted or reader.settings.default_edge_layers
    if edge_layers > reader.config.layers:
        raise CommandError(
            f"--max-edge-layers {edge_layers} is more than the {reader.config.layers} layers of "
            f"{reader.name}; give 1..{reader.config.layers}",
            exit_status=2,
        )
    return edge_layers


def _record(reader: Reader, questions: list[Question]) -> tuple[Recording, float]:
    """What every exit says of every question, and the seconds that it took."""
    from cloud_worker.training.recording import record

    started = time.perf_counter()
    with progress_bar("evaluating") as progress:
        recording = record(reader, questions, progress=progress)
    return recording, time.perf_counter() - started


def _codec_names(reader: Reader, codec: str | None, edge_layers: int) -> tuple[str, ...]:
    """The codecs to measure: none, one, or all and the token ids."""
    from reader.codecs import TOKENS

    known = (*reader.codecs.names(edge_layers), TOKENS)
    if codec is None:
        return ()
    if codec not in ("all", *known):
        raise CommandError(
            f"--codec {codec}: {reader.name} has {', '.join(known)} after layer {edge_layers}, "
            "or all of them",
            exit_status=2,
        )
    return known if codec == "all" else (codec,)


def _measure_codecs(
    reader: Reader,
    recording: Recording,
    codecs: tuple[str, ...],
    edge_layers: int,
    *,
    everything: bool,
) -> CodecTable:
    """The offloaded questions through each codec."""
    from cloud_worker.training.codec_evaluation import evaluate_codecs

    with progress_bar("codecs") as progress:
        return evaluate_codecs(
            reader,
            recording,
            codecs,
            edge_layers=edge_layers,
            everything=everything,
            progress=progress,
        )


def _save_losses(model: str, edge_layers: int, table: CodecTable) -> None:
    """Keep what the codecs lose in the model's folder, for `codec = auto`."""
    from reader.codecs import LOSSES_FILE, save_losses
    from reader.weights import resolve_model_folder

    folder = resolve_model_folder(model)
    save_losses(folder, edge_layers, table.losses)
    print_status(f"losses: {folder / LOSSES_FILE}")


def _draw(recording: Recording, reader: Reader, path: Path, title: str) -> None:
    from cloud_worker.training.evaluation import frontier
    from cloud_worker.training.plots import plot_frontier

    plot_frontier(frontier(recording, reader.settings), path, title=title)
    print_status(f"picture: {path}")


def _write_predictions(recording: Recording, reader: Reader, path: Path) -> None:
    """Answers in the official format. Raises CommandError when the path cannot be written."""
    from cloud_worker.training.evaluation import predictions

    document = predictions(recording, reader.settings)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}; give another path") from error
    print_status(f"predictions: {path}")
