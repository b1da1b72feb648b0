"""F1 figures that were measured before, by everything that decides them.

In: who answered, how, with which weights and code, what. Out: its metrics, if they were measured.
Reading two thousand questions takes a row minutes, and a second run on other threads would give the
same answers. Neighbour: `edge`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elma.bench.contestants import Entry
from elma.bench.machine import describe_machine
from elma.bench.questions import BenchQuestions

_ROOT = Path(__file__).resolve().parents[2]
# The code that turns a question into an answer, in every row.
_CODE = ("reader/**/*.py", "elma/bench/contestants.py")


class F1Store:
    """A JSON file of metrics by key; with no path it only remembers while the process lives."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._metrics: dict[str, dict[str, float]] = {}
        if path is not None and path.is_file():
            # A damaged store costs minutes, not the run.
            with contextlib.suppress(ValueError, OSError):
                self._metrics = json.loads(path.read_text(encoding="utf-8"))

    def get(self, key: str) -> dict[str, float] | None:
        """The metrics of a key, if they were measured."""
        return self._metrics.get(key)

    def put(self, key: str, metrics: dict[str, float]) -> None:
        """Keep metrics, and the file, where it can be written."""
        self._metrics[key] = metrics
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._metrics, indent=1) + "\n", encoding="utf-8")


def key_of(
    entry: Entry,
    choice: Mapping[str, Any],
    weights: str,
    asked: BenchQuestions,
    no_answer_threshold: float,
    isa: str,
) -> str:
    """sha256 (hex) over all that decides the answers; the number of threads does not."""
    machine = describe_machine(1)
    decides = {
        "kind": entry.kind if entry.kind == "elma" else entry.name,
        "padded": entry.is_padded,
        "exits": entry.exits,
        "engine": choice["engine"],
        "precision": choice["precision"],
        "weights": weights,
        "questions": asked.digest,
        "threshold": no_answer_threshold if entry.kind != "elma" else None,
        "isa": "native" if choice["engine"] in ("onnxruntime", "onnx") else isa,
        "cpu": (machine["cpu"], machine["flags"]),
        "versions": machine["versions"],
        "code": _code_digest(),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _code_digest() -> str:
    digest = hashlib.sha256()
    for pattern in _CODE:
        for path in sorted(_ROOT.glob(pattern)):
            digest.update(path.relative_to(_ROOT).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
