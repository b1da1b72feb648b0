"""Questions that a tiny reader can learn in seconds, and the settings of a run over them."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

from cloud_worker.training.settings import TrainSettings

PLACES = ["river", "city", "tower", "ship", "north", "south"]


def write_questions(path: Path) -> Path:
    """The word after "red" or "green", and as many questions without an answer; returns `path`."""
    paragraphs = []
    for number, (left, right) in enumerate(
        (left, right) for left in PLACES for right in PLACES if left != right
    ):
        context = f"the old red {left} was the first and the green {right} was the last."
        qas: list[dict[str, object]] = [
            {
                "id": f"{number}-{color}",
                "question": f"what is {color}?",
                "answers": [
                    {
                        "text": word,
                        "answer_start": context.index(f"{color} {word}") + len(color) + 1,
                    }
                ],
                "is_impossible": False,
                "source": "colors",
            }
            for color, word in (("red", left), ("green", right))
        ]
        qas.append(
            {
                "id": f"{number}-no",
                "question": "who is king?",
                "answers": [],
                "is_impossible": True,
                "source": "none",
            }
        )
        paragraphs.append({"context": context, "qas": qas})
    path.write_text(
        json.dumps({"version": "2.0", "data": [{"title": "t", "paragraphs": paragraphs}]})
    )
    return path


def settings_for(base: Path, data: Path, out: Path, /, **changes: object) -> TrainSettings:
    """A run of some seconds; `changes` replace fields."""
    plain = TrainSettings(
        base=str(base),
        out=str(out),
        data=(str(data),),
        epochs=2,
        learning_rate=2e-3,
        batch_windows=16,
        batch_tokens=2048,
        dropout=0.1,
        average_decay=0.9,
        bf16=False,
        negatives=0.5,
        checkpoint_seconds=1e9,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # test helper


def column(folder: Path, name: str) -> list[float]:
    """One column of a run's log."""
    with (folder / "training.csv").open() as stream:
        return [float(row[name]) for row in csv.DictReader(stream)]
