"""`elma calibrate`: chooses a model's exit settings so that early exits cost little F1.

Input: a model folder and a question file of several articles. Output: `exits.json` in the model
folder (or elsewhere), and a table or JSON of what was promised and of both halves.
Neighbours: `cloud_worker.training.calibration` chooses and says which guarantee holds.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from elma.commands.evaluate import (
    METRIC_COLUMNS,
    DataOption,
    Half,
    ModelArgument,
    ThreadsOption,
    choose_questions,
    metric_cells,
    progress_bar,
)
from elma.options import EngineOption, PrecisionOption
from elma.output import CommandError, JsonOption, print_json, print_status, print_table


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("calibrate")(calibrate)


def calibrate(
    model: ModelArgument,
    data: DataOption,
    max_f1_drop: Annotated[
        float, typer.Option(help="F1 points that early exits may cost against full depth.")
    ] = 1.0,
    max_has_answer_drop: Annotated[
        float | None,
        typer.Option(help="The same on answerable questions alone. Default: three times that."),
    ] = None,
    confidence: Annotated[
        float, typer.Option(help="How sure to be of that, between 0 and 1.")
    ] = 0.9,
    criterion: Annotated[
        str, typer.Option(help="A criterion of reader.exits, or auto: the quickest.")
    ] = "auto",
    max_edge_layers: Annotated[
        int | None,
        typer.Option(min=1, help="The device's last layer, stored as its default. Default: half."),
    ] = None,
    separate_tuning: Annotated[
        bool,
        typer.Option(
            "--separate-tuning",
            help="Tune and test on different articles: exact confidence, fewer questions.",
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first questions of each half.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for exits.json. Default: the model's own folder.")
    ] = None,
    threads: ThreadsOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Choose no-answer thresholds, temperatures and exit thresholds, with a bound on the loss."""
    from cloud_worker.training import calibration
    from cloud_worker.training.recording import record
    from cloud_worker.training.squad_files import read_squad, split_articles
    from reader.model import Reader
    from reader.weights import resolve_model_folder

    questions = read_squad(data)
    halves = {
        half: choose_questions(questions, half, limit) for half in (Half.CALIBRATION, Half.REPORT)
    }
    reader = Reader.load(model, threads=threads, engine=engine, precision=precision)
    edge_layers = max_edge_layers or (reader.config.layers + 1) // 2
    request = calibration.Request(
        max_f1_drop, confidence, criterion, edge_layers, max_has_answer_drop
    )
    with progress_bar("reading both halves") as progress:
        both = record(reader, [*halves[Half.CALIBRATION], *halves[Half.REPORT]], progress=progress)
    testing, tuning = both.select(halves[Half.CALIBRATION]), None
    if separate_tuning:
        tuned_on, tested_on = split_articles(halves[Half.CALIBRATION])
        if not tested_on:
            raise CommandError(
                "--separate-tuning needs two articles in the calibration half; leave it out",
                exit_status=2,
            )
        testing, tuning = both.select(tested_on), both.select(tuned_on)
    chosen = calibration.calibrate(testing, request, tuning)
    folder = out or resolve_model_folder(model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        chosen.settings.save(folder)
    except OSError as error:
        raise CommandError(
            f"cannot write exits.json into {folder}: {error.strerror}; name a folder with --out"
        ) from error
    report: dict[str, Any] = {
        "model": reader.name,
        "engine": asdict(reader.engine.choice),
        "data": str(data),
        "settings_file": str(folder / "exits.json"),
        "settings": asdict(chosen.settings),
        "certificate": asdict(chosen.certificate),
    }
    for half, wanted in halves.items():
        report[half.value] = calibration.half_report(
            both.select(wanted),
            chosen.settings,
            max_edge_layers=edge_layers,
            confidence=confidence,
        )
    if as_json:
        print_json(report)
    else:
        _print_report(report)
    if chosen.certificate.mean_exit_layer >= reader.config.layers:
        print_status(
            f"warning: {chosen.certificate.questions} questions could not show that any early exit "
            f"costs less than {max_f1_drop:g} points, so no question will exit early; "
            "give more questions (a thousand or so), or allow more"
        )
    print_status(f"wrote {folder / 'exits.json'}")


def _print_report(report: dict[str, Any]) -> None:
    rows: list[list[object]] = []
    for half in (Half.CALIBRATION.value, Half.REPORT.value):
        full, policy = report[half]["full_depth"], report[half]["policy"]
        layers = len(report["settings"]["exit_thresholds"])
        errors = report[half]["calibration_error"]
        rows.append(
            [f"{half}: full depth", *metric_cells(full), f"{layers:.2f}", "", "",
             f"{errors['full_depth_before']:.3f} > {errors['full_depth_after']:.3f}"]
        )  # fmt: skip
        rows.append(
            [f"{half}: policy", *metric_cells(policy), f"{policy['mean_exit_layer']:.2f}",
             f"{report[half]['f1_drop']:.2f} (< {report[half]['f1_drop_bound']:.2f})",
             f"{100 * policy['edge_share']:.1f} %",
             f"{errors['policy_before']:.3f} > {errors['policy_after']:.3f}"]
        )  # fmt: skip
    columns = ("", *METRIC_COLUMNS, "mean layer", "F1 drop (bound)", "on device", "ECE")
    print_table(columns, rows, f"{report['model']} on {report['data']}")
    promise = report["certificate"]
    tuned = "tuned on other articles" if promise["own_tuning_questions"] else "tuned on the same"
    typer.echo(
        f"criterion {promise['criterion']}: F1 drop at most {promise['f1_drop_bound']:.2f} "
        f"(wanted {promise['max_f1_drop']:.2f}), on answerable questions "
        f"{promise['has_answer_drop_bound']:.2f} (wanted {promise['max_has_answer_drop']:.2f}), "
        f"with confidence {promise['confidence']:.2f}, "
        f"tested on {promise['questions']} questions, {tuned}"
    )
