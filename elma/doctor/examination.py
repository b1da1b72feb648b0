"""Everything `elma doctor` looks at, in the order in which one thing stands on another.

Input: what a device would be told (`Patient`). Output: findings. Neighbours: the checks beside this
file; a new one is a function that is named here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_agent.errors import SettingsError
from edge_agent.settings import EdgeSettings, load_settings
from elma.doctor.broker import check_broker, check_keys
from elma.doctor.engines import check_alternatives, check_choice
from elma.doctor.finding import Finding, State
from elma.doctor.machine import check_disk, check_memory, check_processor
from elma.doctor.model import check_canary, check_model


@dataclass(frozen=True)
class Patient:
    """What is to be examined: a settings file of an edge, and options that win over it."""

    config: Path | None = None
    model: str | None = None
    engine: str | None = None
    precision: str | None = None
    threads: int | None = None


def examine(patient: Patient) -> Iterator[Finding]:
    """One finding after another, each as soon as it is there; none raises."""
    yield check_processor()
    yield check_memory()
    try:
        settings = _settings(patient)
    except SettingsError as error:
        yield Finding("settings", State.FAILED, str(error), "correct them and run this again")
        return
    if patient.config is not None:
        yield Finding("settings", State.OK, f"{patient.config} is in order")
    yield check_disk(settings.outbox)
    choice = check_choice(settings.engine, settings.precision, settings.threads)
    yield choice
    if choice.state is not State.FAILED:
        yield from _examine_model(settings)
    # After the model: to ask an engine what it can do here loads it, and memory was looked at.
    yield from check_alternatives(settings.threads)
    if settings.broker is not None or patient.config is not None:
        yield check_keys(settings)
        yield check_broker(settings.broker)


def _examine_model(settings: EdgeSettings) -> Iterator[Finding]:
    findings, reader = check_model(
        settings.model,
        engine=settings.engine,
        precision=settings.precision,
        threads=settings.threads,
    )
    yield from findings
    if reader is not None:
        yield check_canary(reader)


def _settings(patient: Patient) -> EdgeSettings:
    """What an edge would be told. Raises SettingsError."""
    return load_settings(
        patient.config,
        {
            "model": patient.model,
            "engine": patient.engine,
            "precision": patient.precision,
            "threads": patient.threads,
        },
    )
