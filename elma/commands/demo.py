"""`elma demo`: a broker, a worker and an edge as three real processes, questions asked of them.

Input: the passages in `elma/passages`, a model. Output: two tables, or JSON, on stdout; what is
going on, on stderr. Neighbours: `elma.demonstration` does the work.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from elma.commands.broker import BrokerKind
from elma.options import MODEL_HELP
from elma.output import JsonOption, print_json, print_status

# The demonstration plays a weak device, so that there is something to hand over: with the model's
# own default nearly every question is settled before the device gives it away.
WEAK_DEVICE_LAYERS = 4


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("demo", short_help="Show everything at once on this machine.")(demo)


def demo(
    model: Annotated[str, typer.Option(envvar="ELMA_MODEL", help=MODEL_HELP)] = "elma-small",
    broker: Annotated[
        BrokerKind,
        typer.Option(help="auto: mosquitto where it is installed, else the embedded broker."),
    ] = BrokerKind.AUTO,
    max_edge_layers: Annotated[
        int,
        typer.Option(min=1, help="The deepest layer that the device runs before it asks a worker."),
    ] = WEAK_DEVICE_LAYERS,
    as_json: JsonOption = False,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve", help="Then start the worker again and leave all three running until Ctrl-C."
        ),
    ] = False,
) -> None:
    """Show everything at once: broker, worker and edge as real processes on this machine.

    The device is a weak one: it runs at most four layers before it asks the worker.

    Questions are asked with the worker there and again after it was stopped. The exit status is 0
    only if all of this happened: every question got one answer, and each answer is a piece of its
    passage or empty; at least one was resolved by the device with nothing sent, and at least one
    by the worker; the worker stopped cleanly; without it the device answered all questions itself
    and marked those as degraded that the worker had resolved before. Whether an answer is right is
    shown, not checked: that is the model's business, and elma evaluate measures it.
    """
    from elma.demonstration.processes import signals_raise
    from elma.demonstration.scenario import demonstrate, running_stage

    with (
        signals_raise(),
        tempfile.TemporaryDirectory(prefix="elma-demo-") as folder,
        running_stage(model, Path(folder), broker.value, max_edge_layers) as stage,
    ):
        report = demonstrate(stage)
        if as_json:
            print_json(report.as_json())
        else:
            report.print_tables()
        print_status(report.summary())
        if serve:
            stage.restart_worker()
            _stay(stage.setup.edge_url)
    if not report.ok:
        raise typer.Exit(1)


def _stay(edge_url: str) -> None:
    """Leave everything running until Ctrl-C."""
    print_status(
        f"all three are running; the edge answers at {edge_url} (described at {edge_url}/docs):\n"
        f'  elma ask "Who was it?" --context "It was Ada." --edge {edge_url}\n'
        "Ctrl-C ends them"
    )
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(1.0)
