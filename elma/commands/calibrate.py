"""`elma calibrate`: chooses a model's exit settings so that early exits cost little.

    elma calibrate MODEL --data questions.json           against gold answers: everything
    elma calibrate MODEL --from-audit audit.jsonl --out NEW   against full depth: exit thresholds

Input: a model folder, and a question file of several articles or what devices compared in the
field. Output: `exits.json` in the model folder, or a new folder, and a table or JSON of what was
promised. Neighbours: this file says what may be asked; `calibrate_gold` and `calibrate_audit` are
the two ways.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elma.commands.calibrate_audit import calibrate_from_audit
from elma.commands.calibrate_gold import GoldOptions, calibrate_on_gold
from elma.options import (
    SQUAD_HELP,
    EngineOption,
    ModelArgument,
    PrecisionOption,
    ThreadsOption,
)
from elma.output import CommandError, JsonOption

DataOption = Annotated[Path | None, typer.Option(help=SQUAD_HELP)]
FromAuditOption = Annotated[
    list[Path] | None,
    typer.Option(help="Audit files of devices (elma errors export --audit), instead of --data."),
]
MaxF1DropOption = Annotated[
    float | None,
    typer.Option(help="F1 points that early exits may cost against full depth. Default: 1."),
]
MaxHasAnswerDropOption = Annotated[
    float | None,
    typer.Option(help="The same on answerable questions alone. Default: three times that."),
]
MaxDisagreementOption = Annotated[
    float | None,
    typer.Option(
        help="With --from-audit: percent of answers that may differ from full depth's; three "
        "times that where full depth has an answer. Default: 5."
    ),
]
ConfidenceOption = Annotated[float, typer.Option(help="How sure to be of that, between 0 and 1.")]
CriterionOption = Annotated[
    str | None,
    typer.Option(
        help="entropy, margin, patience, learned or decision. Default: what runs fewest layers."
    ),
]
MaxEdgeLayersOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="The device's last layer: stored as its default (default: half); with "
        "--from-audit, the last to set (default: what most records have).",
    ),
]
SeparateTuningOption = Annotated[
    bool,
    typer.Option(
        "--separate-tuning",
        help="Tune and test on different articles: exact confidence, fewer questions.",
    ),
]
LimitOption = Annotated[
    int | None, typer.Option(min=1, help="Only the first questions of each half.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder for exits.json (default: the model's own). A folder that is not there yet "
        "gets the model's other files too, and with --from-audit it must be such a one."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("calibrate", short_help="Choose exit settings, with a bound on the loss.")(
        calibrate
    )


def calibrate(
    model: ModelArgument,
    data: DataOption = None,
    from_audit: FromAuditOption = None,
    max_f1_drop: MaxF1DropOption = None,
    max_has_answer_drop: MaxHasAnswerDropOption = None,
    max_disagreement: MaxDisagreementOption = None,
    confidence: ConfidenceOption = 0.9,
    criterion: CriterionOption = None,
    max_edge_layers: MaxEdgeLayersOption = None,
    separate_tuning: SeparateTuningOption = False,
    limit: LimitOption = None,
    out: OutOption = None,
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
    options = GoldOptions(
        max_f1_drop=max_f1_drop,
        max_has_answer_drop=max_has_answer_drop,
        confidence=confidence,
        criterion=criterion,
        edge_layers=max_edge_layers,
        separate_tuning=separate_tuning,
        limit=limit,
        out=out,
        threads=threads,
        engine=engine,
        precision=precision,
    )
    calibrate_on_gold(model, data, options, as_json=as_json)
