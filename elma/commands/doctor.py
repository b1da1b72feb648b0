"""`elma doctor`: what this machine can do, what would be chosen, and what does not work.

    elma doctor                                       what is installed on this machine
    elma doctor --config bundles/kitchen/edge.toml    a device
    elma doctor --worker-config .../worker.toml       a worker
    elma doctor --broker elma-broker                  a broker of `elma broker init`

Input: the settings of an edge or of a worker, a broker's folder, or none. Output: one line a
finding, or JSON; exit status 1 when something does not work. Neighbour: `elma.doctor` looks.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from elma.extras import require_extra
from elma.options import ServiceEngineOption, ServicePrecisionOption
from elma.output import CommandError, JsonOption, print_json

if TYPE_CHECKING:
    from elma.doctor.examination import Patient
    from elma.doctor.finding import Finding
    from elma.doctor.here import Installed

DEFAULT_KEYS = Path("elma-keys")
_Examined = tuple[str, "Iterator[Finding]"]


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("doctor")(doctor)


def doctor(
    config: Annotated[
        Path | None,
        typer.Option(envvar="ELMA_EDGE_CONFIG", help="The edge's TOML file; its broker is tried."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model folder, elma-small, elma-fast, or none.")
    ] = None,
    engine: ServiceEngineOption = None,
    precision: ServicePrecisionOption = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the reader.")] = None,
    worker_config: Annotated[
        Path | None, typer.Option(help="A worker's TOML file, instead of an edge's.")
    ] = None,
    broker: Annotated[
        Path | None,
        # Its mode lets others through without letting them look: what then fails is said below.
        typer.Option(readable=False, help="Folder of `elma broker init`, instead of --config."),
    ] = None,
    keys: Annotated[
        Path, typer.Option(help="With --broker: the key folder, held against who is enrolled.")
    ] = DEFAULT_KEYS,
    clock: Annotated[
        str | None,
        typer.Option(help="URL of a server whose clock is right, such as a worker's /healthz."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine can do, what would be chosen and why, and what does not work.

    It loads the model and asks it a question. With --config or --worker-config it also looks at
    keys and certificate, connects to the broker and tries its rights there; with an account only
    where what runs here is not connected anyway. With --broker it looks at a broker's files,
    certificates and members, and at the broker that runs. Without any of them it takes what is
    installed here: below /etc/elma, ./elma-broker, /var/lib/elma-broker; a service is examined by
    the program that its unit starts. The exit status is 0 when nothing has failed; a warning is no
    failure.
    """
    from elma.doctor.examination import Patient
    from elma.doctor.finding import State

    if sum(one is not None for one in (config, worker_config, broker)) > 1:
        raise CommandError(
            "give one of --config, --worker-config and --broker, not both", exit_status=2
        )
    patient = Patient(config, model, engine, precision, threads, worker_config, clock)
    examined = _one(patient, broker, keys) or _all_here(patient, keys)
    found: list[dict[str, Any]] = []
    has_failed = False
    for subject, findings in examined:
        if len(examined) > 1 and not as_json:
            typer.echo(f"{subject}:")
        for finding in findings:
            found.append({"of": subject, **finding.as_json()})
            has_failed = has_failed or finding.state is State.FAILED
            if not as_json:
                _print_finding(finding)
    if as_json:
        print_json({"ok": not has_failed, "findings": found})
    if has_failed:
        raise typer.Exit(1)


def _one(patient: Patient, broker: Path | None, keys: Path) -> list[_Examined]:
    """What was named; empty where nothing was."""
    from elma.doctor.examination import examine

    if broker is not None:
        return [_broker(broker, keys, patient.clock)]
    if patient.config is not None:
        return [("edge", examine(patient))]
    if patient.worker_config is not None:
        return [("worker", examine(patient))]
    return []


def _all_here(patient: Patient, keys: Path) -> list[_Examined]:
    """Everything that is installed on this machine, or else the machine itself."""
    from elma.doctor.examination import examine
    from elma.doctor.here import look_around

    here = look_around()
    examined: list[_Examined] = []
    if patient.model is None:  # whoever names a model wants to know about that one
        if here.edge is not None:
            examined.append(("edge", _installed(here.edge, "config", patient)))
        for worker in here.workers:
            name = f"worker {worker.settings.parent.name}"
            examined.append((name, _installed(worker, "worker_config", patient)))
        if here.broker is not None:
            examined.append(_broker(here.broker, keys, patient.clock))
    return examined or [("machine", examine(patient))]


def _installed(
    member: Installed, option: Literal["config", "worker_config"], patient: Patient
) -> Iterator[Finding]:
    """What the program finds that the member's service is started with."""
    from dataclasses import asdict, replace

    from elma.doctor.elsewhere import ask_program, is_ours
    from elma.doctor.examination import examine

    if option == "config":
        patient = replace(patient, config=member.settings)
    else:
        patient = replace(patient, worker_config=member.settings)
    if member.program is None or is_ours(member.program):
        return examine(patient)
    said = {name: value for name, value in asdict(patient).items() if value is not None}
    arguments = [part for name, value in said.items() for part in (_option(name), str(value))]
    return ask_program(member.program, arguments)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _broker(folder: Path, keys: Path, clock: str | None) -> _Examined:
    require_extra("broker", "elma doctor --broker")
    from elma.doctor.broker_examination import examine_broker

    return "broker", examine_broker(folder, keys, datetime.now(UTC), clock)


def _print_finding(finding: Finding) -> None:
    typer.echo(f"{finding.state.value:8} {finding.name:13} {finding.text}")
    if finding.advice:
        typer.echo(f"{'':22} -> {finding.advice}")
