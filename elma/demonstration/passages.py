"""The passages and questions that ship with ELMA (`elma/passages`, licence beside them).

Output: `Question`s with the text of their passage. Neighbours: `scenario` asks them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

PASSAGE_FOLDER = files("elma") / "passages"
KINDS = ("easy", "hard", "unanswerable", "long")


@dataclass(frozen=True)
class Question:
    """One question of the demonstration.

    `kind` is one of `KINDS`: what its author expected, not what a model makes of it. `expected`
    holds the answers that a person would accept; it is empty when the passage has no answer.
    """

    id: str
    kind: str
    text: str
    passage_name: str
    passage: str
    expected: tuple[str, ...]


def load_questions() -> list[Question]:
    """All questions, in the order in which the demonstration asks them."""
    entries = json.loads((PASSAGE_FOLDER / "questions.json").read_text(encoding="utf-8"))
    return [
        Question(
            id=entry["id"],
            kind=entry["kind"],
            text=entry["question"],
            passage_name=entry["passage"],
            passage=(PASSAGE_FOLDER / entry["passage"]).read_text(encoding="utf-8").strip(),
            expected=tuple(entry["expected"]),
        )
        for entry in entries
    ]
