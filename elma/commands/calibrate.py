"""`elma calibrate`: chooses a model's exit settings so that early exits cost little.

    elma calibrate MODEL --data questions.json           against gold answers: everything
    elma calibrate MODEL --from-audit audit.jsonl --out NEW   against full depth: exit thresholds

Input: a model folder, and a question file of several articles or what devices compared in the
field. Output: `exits.json` in the model folder, or a new folder, and a table or JSON of what was
promised. Neighbours: `cloud_worker.training.calibration` chooses and says which guarantee holds;
`calibrate_audit` is the second way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elma.commands.calibrate_audit import calibrate_from_audit, copy_model
from elma.commands.evaluate import (
    DATA_HELP,
    METRIC_COLUMNS,
    Half,
    ModelArgument,
    ThreadsOption,
    choose_questions,
    metric_cells,
    progress_bar,
)
from elma.options import EngineOption, PrecisionOption
from elma.output import CommandError, JsonOption, print_json, print_status, print_table

if TYPE_CHECKING:
    from cloud_worker.training.calibration import Calibration, Request
    from cloud_worker.training.recording import Recording
    from cloud_worker.training.squad_files import Question
    from reader.model import Reader

DEFAULT_MAX_F1_DROP = 1.0
Halves = Mapping[Half, "list[Question]"]


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("calibrate")(calibrate)


def calibrate(
    model: ModelArgument,
    data: Annotated[Path | None, typer.Option(help=DATA_HELP)] = None,
    from_audit: Annotated[
        list[Path] | None,
        typer.Option(
            help="Audit files of devices (elma errors export --audit), instead of --data."
        ),
    ] = None,
    max_f1_drop: Annotated[
        float | None,
        typer.Option(help="F1 points that early exits may cost against full depth. Default: 1."),
    ] = None,
    max_has_answer_drop: Annotated[
        float | None,
        typer.Option(help="The same on answerable questions alone. Default: three times that."),
    ] = None,
    max_disagreement: Annotated[
        float | None,
        typer.Option(
            help="With --from-audit: percent of answers that may differ from full depth's; three "
            "times that where full depth has an answer. Default: 5."
        ),
    ] = None,
    confidence: Annotated[
        float, typer.Option(help="How sure to be of that, between 0 and 1.")
    ] = 0.9,
    criterion: Annotated[
        str | None, typer.Option(help="A criterion of reader.exits. Default: the quickest.")
    ] = None,
    max_edge_layers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The device's last layer: stored as its default (default: half); with "
            "--from-audit, the last to set (default: what most records have).",
        ),
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
        Path | None,
        typer.Option(
            help="Folder for exits.json (default: the model's own). A folder that is not there yet "
            "gets the model's other files too, and with --from-audit it must be such a one."
        ),
    ] = None,
    threads: ThreadsOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Choose no-answer thresholds, temperatures and exit thresholds, with a bound on the loss."""
    with_gold = (max_f1_drop, max_has_answer_drop, criterion, limit, separate_tuning or None)
    if (data is None) == (from_audit is None):
        raise CommandError("give --data or --from-audit, one of them", exit_status=2)
    if from_audit is not None:
        if any(option is not None for option in with_gold) or out is None:
            raise CommandError(
                "--from-audit needs --out, a new folder, and takes --max-disagreement, "
                "--confidence and --max-edge-layers; the other options are for --data",
                exit_status=2,
            )
        calibrate_from_audit(
            model,
            from_audit,
            out,
            max_disagreement=max_disagreement,
            confidence=confidence,
            edge_layers=max_edge_layers,
            as_json=as_json,
        )
        return
    if data is None or max_disagreement is not None:
        raise CommandError("--max-disagreement is for --from-audit", exit_status=2)

    from cloud_worker.training.calibration import AUTO, Request
    from cloud_worker.training.squad_files import read_squad
    from reader.model import Reader

    questions = read_squad(data)
    halves = {
        half: choose_questions(questions, half, limit) for half in (Half.CALIBRATION, Half.REPORT)
    }
    reader = Reader.load(model, threads=threads, engine=engine, precision=precision)
    request = Request(
        DEFAULT_MAX_F1_DROP if max_f1_drop is None else max_f1_drop,
        confidence,
        criterion or AUTO,
        max_edge_layers or (reader.config.layers + 1) // 2,
        max_has_answer_drop,
    )
    report, chosen = _calibrate_on(reader, halves, request, separate_tuning=separate_tuning)
    folder = _written(model, chosen, out)
    report = {"data": str(data), "settings_file": str(folder / "exits.json"), **report}
    print_json(report) if as_json else _print_report(report)
    if chosen.certificate.mean_exit_layer >= reader.config.layers:
        print_status(
            f"warning: {chosen.certificate.questions} questions could not show that any early exit "
            f"costs less than {request.max_f1_drop:g} points, so no question will exit early; "
            "give more questions (a thousand or so), or allow more"
        )
    print_status(f"wrote {folder / 'exits.json'}")


def _calibrate_on(
    reader: Reader, halves: Halves, request: Request, *, separate_tuning: bool
) -> tuple[dict[str, Any], Calibration]:
    """Record both halves, choose on one, report both."""
    from cloud_worker.training import calibration
    from cloud_worker.training.recording import record

    with progress_bar("reading both halves") as progress:
        everything = [*halves[Half.CALIBRATION], *halves[Half.REPORT]]
        both = record(reader, everything, progress=progress)
    testing, tuning = _parts(both, halves[Half.CALIBRATION], separate_tuning=separate_tuning)
    chosen = calibration.calibrate(testing, request, tuning)
    report: dict[str, Any] = {
        "model": reader.name,
        "engine": asdict(reader.engine.choice),
        "settings": asdict(chosen.settings),
        "certificate": asdict(chosen.certificate),
    }
    for half, wanted in halves.items():
        report[half.value] = calibration.half_report(
            both.select(wanted),
            chosen.settings,
            max_edge_layers=request.edge_layers,
            confidence=request.confidence,
        )
    return report, chosen


def _parts(
    both: Recording, questions: list[Question], *, separate_tuning: bool
) -> tuple[Recording, Recording | None]:
    """What is tested on, and what is tuned on where that is something else."""
    from cloud_worker.training.squad_files import split_articles

    if not separate_tuning:
        return both.select(questions), None
    tuned_on, tested_on = split_articles(questions)
    if not tested_on:
        raise CommandError(
            "--separate-tuning needs two articles in the calibration half; leave it out",
            exit_status=2,
        )
    return both.select(tested_on), both.select(tuned_on)


def _written(model: str, chosen: Calibration, out: Path | None) -> Path:
    """The folder that `exits.json` was written into."""
    from reader.weights import resolve_model_folder

    source = resolve_model_folder(model)
    folder = out or source
    if not folder.exists():
        copy_model(source, folder)
    try:
        chosen.settings.save(folder)
    except OSError as error:
        raise CommandError(
            f"cannot write exits.json into {folder}: {error.strerror}; name a folder with --out"
        ) from error
    return folder


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
