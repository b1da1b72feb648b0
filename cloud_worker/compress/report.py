"""`compression.json`: which steps made a model folder, and what each of them changed.

In: a folder before and after a step. Out: the file beside the weights, and a short README. The
list grows from folder to folder, so the last one tells the whole story. Neighbours: `steps`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reader.errors import ModelFolderError
from reader.exits import SETTINGS_FILE
from reader.weights import DIGESTED_FILES, ModelTensors, folder_digest

REPORT_FILE = "compression.json"
README_FILE = "README.md"
EXITS_COPIED = "copied from the source, whose weights they were calibrated for; run elma calibrate"
EXITS_HOLD = "the source's: the weights are the same"
EXITS_MISSING = "none yet; run elma calibrate"


@dataclass(frozen=True)
class FolderFacts:
    """What can be read off a folder: `zero_share` is that of the layer matrices' entries that are
    there; heads and inner units are what is left in each group; `mean_span` is in tokens over all
    heads and layers, None without limits."""

    digest: str
    model_bytes: int
    zero_share: float
    heads: tuple[int, ...]
    inner_units: tuple[int, ...]
    mean_span: float | None
    embedding_size: int

    @classmethod
    def of(cls, folder: Path) -> FolderFacts:
        """Read a folder; raises `ModelFolderError`."""
        tensors = ModelTensors.open(folder)
        config = tensors.config
        zeros = entries = 0
        for name, shape in tensors.shapes.items():
            if name.startswith("groups.") and len(shape) == 2:
                value = tensors.read(name)
                zeros += value.size - int(np.count_nonzero(value))
                entries += value.size
        spans = [min(span, config.max_positions) for layer in config.spans for span in layer]
        return cls(
            digest=folder_digest(folder),
            model_bytes=model_bytes(folder),
            zero_share=round(zeros / max(1, entries), 4),
            heads=tuple(len(config.heads_of(group)) for group in range(config.groups)),
            inner_units=tuple(config.inner_of(group) for group in range(config.groups)),
            mean_span=round(sum(spans) / len(spans), 1) if spans else None,
            embedding_size=config.embedding_size,
        )


@dataclass(frozen=True)
class StepRecord:
    """One step: what was asked for, the folder before and after it, and what the step measured."""

    step: str
    settings: Mapping[str, Any]
    source: str
    seconds: float
    before: FolderFacts
    after: FolderFacts
    exits: str
    measured: tuple[Mapping[str, Any], ...] = ()


def without_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a report keeps them: names of files and folders instead of this machine's paths;
    hub ids stay."""

    def name_of(value: str) -> str:
        path, at, _weight = value.rpartition("@")
        chosen = value if not at or Path(value).exists() else path
        return value if not Path(chosen).exists() else value.replace(chosen, Path(chosen).name)

    named = dict(settings)
    for key in ("data", "teacher"):
        if isinstance(named.get(key), str):
            named[key] = name_of(named[key])
        elif key in named:
            named[key] = [name_of(each) for each in named[key]]
    return named


def model_bytes(folder: Path) -> int:
    """Bytes of the files that a reader loads; logs, checkpoints and reports do not count."""
    files = [folder / name for name in DIGESTED_FILES]
    return sum(path.stat().st_size for path in files if path.is_file())


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """The steps that made a folder, oldest first; raises `ModelFolderError` for a broken file."""
    path = folder / REPORT_FILE
    if not path.is_file():
        return []
    try:
        steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFolderError(f"{path} is no compression report; remove it") from error
    return list(steps)


def has_own_exits(folder: Path) -> bool:
    """Whether `exits.json` was made for these weights, rather than copied along by a step.

    A copy is part of the digest that the step reported; calibration has changed it since.
    """
    if not (folder / SETTINGS_FILE).is_file():
        return False
    steps = read_steps(folder)
    copied = bool(steps) and steps[-1]["exits"] == EXITS_COPIED
    return not (copied and steps[-1]["after"]["digest"] == folder_digest(folder))


def write_report(folder: Path, earlier: list[dict[str, Any]], record: StepRecord) -> None:
    """Write `compression.json` and the README of a folder that a step has made."""
    steps = [*earlier, asdict(record)]
    text = json.dumps({"steps": steps}, indent=2) + "\n"
    (folder / REPORT_FILE).write_text(text, encoding="utf-8")
    (folder / README_FILE).write_text(_readme(folder.name, steps), encoding="utf-8")


def _readme(name: str, steps: list[dict[str, Any]]) -> str:
    lines = [
        f"# {name}",
        "",
        "A compressed ELMA reader. How it came about:",
        "",
        "| step | settings | bytes before | bytes after | zeros | heads | inner units |",
        "|---|---|---|---|---|---|---|",
    ]
    for step in steps:
        before, after = step["before"], step["after"]
        settings = ", ".join(f"{key}={value}" for key, value in step["settings"].items())
        lines.append(
            f"| {step['step']} | {settings} | {before['model_bytes']:,} "
            f"| {after['model_bytes']:,} | {100 * after['zero_share']:.0f} % "
            f"| {sum(after['heads'])} | {sum(after['inner_units'])} |"
        )
    lines += [
        "",
        f"Exits: {steps[-1]['exits']}.",
        "",
        "    elma calibrate FOLDER --data DEV.json",
        "    elma evaluate FOLDER --data DEV.json --half report",
    ]
    return "\n".join(lines) + "\n"
