"""One contestant in a process of its own: `python -m elma.bench.contestant_process`.

In, a JSON line each on stdin: first what to load, then commands. Out: a JSON line each on the
stdout that it was started with; whatever libraries print goes to stderr.

    {"entry": {...}, "threads": 1, "no_answer_threshold": 0.0, "questions": "FILE"}
                               -> {"engine": .., "precision": .., "threads": ..}
    {"time": [3, 4, 5]}        -> {"milliseconds": [..]}   one figure for each question, in order
    {"answer": [0, 1, 2]}      -> {"texts": [..]}
    {"memory": true}           -> {"rss_mb": .., "peak_mb": ..}

Ends when stdin does. Neighbour: `contest` starts it and speaks with it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from elma.bench.contestants import Contestant, Entry, load_contestant
from elma.bench.machine import memory_of


def main() -> None:
    """Load, then obey until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    task = json.loads(sys.stdin.readline())
    questions = json.loads(Path(task["questions"]).read_text(encoding="utf-8"))
    entry = Entry(**task["entry"])
    contestant = load_contestant(entry, task["threads"], task["no_answer_threshold"])
    _say(answers, contestant.describe())
    for line in sys.stdin:
        _say(answers, _obey(contestant, questions, json.loads(line)))


def _obey(
    contestant: Contestant, questions: list[list[str]], command: dict[str, Any]
) -> dict[str, Any]:
    if "time" in command:
        return {"milliseconds": _time(contestant, questions, command["time"])}
    if "answer" in command:
        return {"texts": [contestant.answer(*questions[number]) for number in command["answer"]]}
    return memory_of(os.getpid())


def _time(contestant: Contestant, questions: list[list[str]], numbers: list[int]) -> list[float]:
    """Milliseconds of each question, after one that does not count: the turn before this one was
    another process's, which has left its own data in the caches."""
    contestant.answer(*questions[numbers[-1]])
    milliseconds = []
    for number in numbers:
        begin = time.perf_counter()
        contestant.answer(*questions[number])
        milliseconds.append((time.perf_counter() - begin) * 1000)
    return milliseconds


def _say(answers: TextIO, document: dict[str, Any]) -> None:
    answers.write(json.dumps(document) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
