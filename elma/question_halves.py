"""Which questions of a SQuAD file a verb works on: all, those that calibration sees, or the others.

In: the questions of a file. Out: those of a half. Neighbours: `cloud_worker.training.squad_files`
reads the file and splits it by articles; `elma evaluate`, `calibrate` and `publish` ask here.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from elma.output import CommandError

if TYPE_CHECKING:
    from cloud_worker.training.squad_files import Question


class Half(StrEnum):
    """Which articles: those that calibration sees, the others, or both."""

    ALL = "all"
    CALIBRATION = "calibration"
    REPORT = "report"


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
