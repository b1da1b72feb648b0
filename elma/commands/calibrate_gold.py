"""The first way of `elma calibrate`: everything in `exits.json`, from questions with gold answers.

Input: a model folder, a question file of several articles. Output: `exits.json` in the model's
folder or another, and a table or JSON of what was promised. Neighbours: `calibrate` reads the
options, `cloud_worker.training.calibration` chooses and says which guarantee holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elma.measured_tables import print_calibration
from elma.model_copies import copy_model
from elma.output import CommandError, print_json, print_status
from elma.progress import progress_bar
from elma.question_halves import Half, choose_questions
from reader.engines.names import EngineName, PrecisionName

if TYPE_CHECKING:
    from cloud_worker.training.calibration import Calibration, Request
    from cloud_worker.training.recording import Recording
    from cloud_worker.training.squad_files import Question
    from reader.model import Reader

DEFAULT_MAX_F1_DROP = 1.0
Halves = Mapping[Half, "list[Question]"]


@dataclass(frozen=True)
class GoldOptions:
    """The options of this way, as they stand on the command line; None is a default."""

    max_f1_drop: float | None
    max_has_answer_drop: float | None
    confidence: float
    criterion: str | None
    edge_layers: int | None
    separate_tuning: bool
    limit: int | None
    out: Path | None
    threads: int | None
    engine: EngineName
    precision: PrecisionName

    def request(self, layers: int) -> Request:
        """What is asked of the policy of a reader with so many layers. Raises CalibrationError."""
        from cloud_worker.training.calibration import AUTO, Request

        return Request(
            DEFAULT_MAX_F1_DROP if self.max_f1_drop is None else self.max_f1_drop,
            self.confidence,
            self.criterion or AUTO,
            self.edge_layers or (layers + 1) // 2,
            self.max_has_answer_drop,
        )


def calibrate_on_gold(model: str, data: Path, options: GoldOptions, *, as_json: bool) -> None:
    """Choose on one half of the file, report on both, write `exits.json`."""
    from cloud_worker.training.squad_files import read_squad
    from reader.model import Reader

    questions = read_squad(data)
    halves = {
        half: choose_questions(questions, half, options.limit)
        for half in (Half.CALIBRATION, Half.REPORT)
    }
    reader = Reader.load(
        model, threads=options.threads, engine=options.engine, precision=options.precision
    )
    request = options.request(reader.config.layers)
    report, chosen = _calibrate_on(reader, halves, request, options.separate_tuning)
    folder = _written(model, chosen, options.out)
    report = {"data": str(data), "settings_file": str(folder / "exits.json"), **report}
    print_json(report) if as_json else print_calibration(report)
    if chosen.certificate.mean_exit_layer >= reader.config.layers:
        print_status(
            f"warning: {chosen.certificate.questions} questions could not show that any early exit "
            f"costs less than {request.max_f1_drop:g} points, so no question will exit early; "
            "give more questions (a thousand or so), or allow more"
        )
    print_status(f"wrote {folder / 'exits.json'}")


def _calibrate_on(
    reader: Reader, halves: Halves, request: Request, separate_tuning: bool
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
