"""`elma doctor`: what this machine can do, what would be chosen, and what does not work.

Input: the settings of an edge or of a worker, or none. Output: one line a finding, or JSON; exit
status 1 when something does not work. Neighbour: `elma.doctor` looks.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elma.options import ServiceEngineOption, ServicePrecisionOption
from elma.output import CommandError, JsonOption, print_json

if TYPE_CHECKING:
    from elma.doctor.finding import Finding


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
    clock: Annotated[
        str | None,
        typer.Option(help="URL of a server whose clock is right, such as a worker's /healthz."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine can do, what would be chosen and why, and what does not work.

    It loads the model and asks it a question. With --config or --worker-config it also looks at the
    keys and connects to the broker; with an account only where what runs here is not connected
    anyway. The exit status is 0 when nothing has failed; a warning is no failure.
    """
    from elma.doctor.examination import Patient, examine
    from elma.doctor.finding import State

    if config is not None and worker_config is not None:
        raise CommandError("give --config or --worker-config, not both", exit_status=2)
    findings = []
    patient = Patient(config, model, engine, precision, threads, worker_config, clock)
    for finding in examine(patient):
        findings.append(finding)
        if not as_json:
            _print_finding(finding)
    has_failed = any(finding.state is State.FAILED for finding in findings)
    if as_json:
        print_json({"ok": not has_failed, "findings": [found.as_json() for found in findings]})
    if has_failed:
        raise typer.Exit(1)


def _print_finding(finding: Finding) -> None:
    typer.echo(f"{finding.state.value:8} {finding.name:13} {finding.text}")
    if finding.advice:
        typer.echo(f"{'':22} -> {finding.advice}")
