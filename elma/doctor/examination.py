"""Everything `elma doctor` looks at, in the order in which one thing stands on another.

Input: what a device, or a worker, would be told (`Patient`). Output: findings. Neighbours: the
checks beside this file; a new one is a function that is named here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloud_worker.errors import WorkerSettingsError
from cloud_worker.settings import WorkerSettings
from cloud_worker.settings import load_settings as load_worker_settings
from edge_agent.errors import SettingsError
from edge_agent.settings import NO_MODEL, EdgeSettings
from edge_agent.settings import load_settings as load_edge_settings
from elma.doctor.broker import check_broker, check_certificate, check_keys, check_pool
from elma.doctor.clock import check_clock
from elma.doctor.engines import check_alternatives, check_choice
from elma.doctor.finding import Finding, State
from elma.doctor.machine import check_disk, check_memory, check_processor, check_store
from elma.doctor.model import check_canary, check_model
from elma.doctor.rights import needs_of
from elma.doctor.running import is_connected
from releases.settings import FollowSettings


@dataclass(frozen=True)
class Patient:
    """What is to be examined: a settings file of an edge, or of a worker with `worker_config`, and
    options that win over it. `clock` is the URL of a server whose clock is right.
    """

    config: Path | None = None
    model: str | None = None
    engine: str | None = None
    precision: str | None = None
    threads: int | None = None
    worker_config: Path | None = None
    clock: str | None = None


def examine(patient: Patient) -> Iterator[Finding]:
    """One finding after another, each as soon as it is there; none raises."""
    yield check_processor()
    yield check_memory()
    if patient.clock is not None:
        yield check_clock(patient.clock)
    try:
        settings = _settings(patient)
    except (SettingsError, WorkerSettingsError) as error:
        yield Finding("settings", State.FAILED, str(error), "correct them and run this again")
        return
    config = patient.worker_config or patient.config
    if config is not None:
        yield Finding("settings", State.OK, f"{config} is in order")
    if isinstance(settings, EdgeSettings):
        yield check_disk(settings.outbox)
    if settings.releases is not None:
        yield check_store(settings.releases.folder)
    choice = check_choice(settings.engine, settings.precision, settings.threads)
    yield choice
    if choice.state is not State.FAILED:
        yield from _examine_model(settings)
    # After the model: to ask an engine what it can do here loads it, and memory was looked at.
    yield from check_alternatives(settings.threads)
    if settings.broker is not None or config is not None:
        yield from _examine_way(settings)


def _examine_model(settings: EdgeSettings | WorkerSettings) -> Iterator[Finding]:
    if settings.model == NO_MODEL:
        yield _no_model(settings.releases)
        return
    findings, reader = check_model(
        settings.model,
        engine=settings.engine,
        precision=settings.precision,
        threads=settings.threads,
    )
    yield from findings
    if reader is not None:
        yield check_canary(reader)


def _no_model(releases: FollowSettings | None) -> Finding:
    """Settings without a model have `[releases]`; they would not have been taken otherwise."""
    channel = "" if releases is None else f" of the channel {releases.channel}"
    return Finding("model", State.OK, f"none of its own: it waits for a release{channel}")


def _examine_way(settings: EdgeSettings | WorkerSettings) -> Iterator[Finding]:
    """The keys, the certificate, the broker, the rights there."""
    yield check_keys(settings) if isinstance(settings, EdgeSettings) else check_pool(settings)
    yield from check_certificate(settings.broker)
    http = settings.http
    yield from check_broker(
        settings.broker,
        needs=needs_of(settings),
        is_held=lambda: is_connected(http.host, http.port, settings.name),
        keeps_session=isinstance(settings, EdgeSettings),
    )


def _settings(patient: Patient) -> EdgeSettings | WorkerSettings:
    """What an edge or a worker would be told. Raises SettingsError, WorkerSettingsError."""
    overrides = {
        "model": patient.model,
        "engine": patient.engine,
        "precision": patient.precision,
        "threads": patient.threads,
    }
    if patient.worker_config is not None:
        return load_worker_settings(patient.worker_config, overrides)
    return load_edge_settings(patient.config, overrides)
