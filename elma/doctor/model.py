"""Checks of a model folder: it loads, it is calibrated, and it answers a question.

Output: findings, with the times on this machine. Neighbours: `reader.model` loads,
`edge_agent.local_reading` answers as a device does.
"""

from __future__ import annotations

import time
from pathlib import Path

from edge_agent.local_reading import LocalReading
from edge_agent.questions import FinalAnswer, Question
from elma.doctor.finding import Finding, State, in_mb
from reader.errors import ReaderError
from reader.exits import SETTINGS_FILE
from reader.memory import give_back, resident_bytes
from reader.model import Reader
from reader.weights import resolve_model_folder

# A question whose answer any reader of English should find; our own text, so it may be shown.
CANARY_QUESTION = "Who wrote the report?"
CANARY_PASSAGE = (
    "The lighthouse was finished in the spring. The report about its first winter was written by "
    "Ada Miller, and two keepers read it before it was printed."
)
CANARY_ANSWER = "Ada Miller"
REPEATS = 5
NEVER = -1.0
"""The exit threshold that no uncertainty comes under."""


def check_model(
    model: str, *, engine: str, precision: str, threads: int | None
) -> tuple[list[Finding], Reader | None]:
    """Whether the folder loads and is calibrated; the reader where it does."""
    before = resident_bytes()
    begin = time.perf_counter()
    try:
        folder = resolve_model_folder(model)
        reader = Reader.load(folder, engine=engine, precision=precision, threads=threads)
    except ReaderError as error:
        advice = "give a model folder with --model, or elma-small for the shipped one"
        return [Finding("model", State.FAILED, str(error), advice)], None
    except ImportError as error:
        advice = "the installed engine is broken; install it again"
        return [Finding("model", State.FAILED, f"{model}: {error}", advice)], None
    seconds = time.perf_counter() - begin
    give_back()
    loaded = resident_bytes()
    config = reader.config
    folder_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    figures = {
        "folder": str(folder),
        "digest": reader.digest,
        "layers": config.layers,
        "folder_bytes": folder_bytes,
        "load_seconds": round(seconds, 3),
        "added_memory_bytes": None if before is None or loaded is None else loaded - before,
    }
    text = (
        f"{reader.name}@{reader.digest[:12]}, {config.layers} layers, "
        f"{in_mb(folder_bytes)}, loaded in {seconds:.1f} s"
    )
    return [Finding("model", State.OK, text, figures=figures), _check_exits(folder, reader)], reader


def check_canary(reader: Reader) -> Finding:
    """Whether the reader answers a simple question, and how long that takes here."""
    local = LocalReading(reader, edge_layers=reader.config.layers)
    question = Question("canary", CANARY_QUESTION, CANARY_PASSAGE, 1, 60.0, 0.0)
    try:
        local.warm_up()
        seconds, answer = min(
            (_answer(local, question) for _ in range(REPEATS)), key=lambda timed: timed[0]
        )
    except Exception as error:
        # Whatever it is: a doctor reports it and goes on.
        text = f"the canary question could not be answered: {type(error).__name__}: {error}"
        advice = "try --engine or --precision of another kind; if that works, report this one"
        return Finding("canary", State.FAILED, text, advice)
    resident = resident_bytes()
    figures = {
        "milliseconds": round(1000 * seconds, 3),
        "exit_layer": answer.exit_layer,
        "is_right": CANARY_ANSWER in answer.answer,
        "resident_bytes": resident,
    }
    memory = "" if resident is None else f", {in_mb(resident)} resident in this process"
    text = (
        f"answered in {1000 * seconds:.1f} ms after layer {answer.exit_layer} of "
        f"{reader.config.layers}{memory}"
    )
    if not figures["is_right"]:
        found = answer.answer or "(no answer)"
        return Finding(
            "canary",
            State.WARNING,
            f"{text}; the answer is {found!r}, expected {CANARY_ANSWER!r}",
            "a trained reader finds it; evaluate the model, and try --precision fp32",
            figures,
        )
    return Finding("canary", State.OK, text, figures=figures)


def _check_exits(folder: Path, reader: Reader) -> Finding:
    settings = reader.settings
    figures = {"criterion": settings.criterion, "default_edge_layers": settings.default_edge_layers}
    if not (folder / SETTINGS_FILE).is_file():
        text = f"{folder.name} has no {SETTINGS_FILE}: it never exits early, its scores are raw"
        advice = f"elma calibrate {folder} --data DEV.json"
        return Finding("exits", State.WARNING, text, advice, figures)
    if all(threshold <= NEVER for threshold in settings.exit_thresholds[:-1]):
        text = "no exit may stop a question: every one runs through all layers"
        advice = f"elma calibrate {folder} --data DEV.json, with more questions or --max-f1-drop"
        return Finding("exits", State.WARNING, text, advice, figures)
    text = (
        f"calibrated with the criterion {settings.criterion}; a device hands over after layer "
        f"{settings.default_edge_layers} where its settings say nothing"
    )
    return Finding("exits", State.OK, text, figures=figures)


def _answer(local: LocalReading, question: Question) -> tuple[float, FinalAnswer]:
    begin = time.perf_counter()
    reading = local.read(question)
    results = local.finish(reading)
    seconds = time.perf_counter() - begin
    answer = local.answer(
        reading,
        results,
        resolved_by="edge",
        degraded=False,
        latency_seconds=seconds,
        bytes_sent=0,
    )
    return seconds, answer
