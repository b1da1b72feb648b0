"""`elma broker run`: a broker for this machine, until it is told to stop.

Input: a folder for its configuration and data. Output: one line when it answers (with `--json` an
object of host, port and kind), then nothing but logs. Stops its broker on SIGTERM and SIGINT.
Neighbour: `broker.run` does the work.
"""

from __future__ import annotations

import json
import signal
import threading
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from elma.output import CommandError, JsonOption

DEFAULT_FOLDER = Path("~/.local/state/elma/broker")
DEFAULT_PORT = 1883
WATCH_SECONDS = 0.2
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

app = typer.Typer(help="Run a broker on this machine.", no_args_is_help=True)


class BrokerKind(StrEnum):
    """Which broker to run."""

    AUTO = "auto"
    MOSQUITTO = "mosquitto"
    EMBEDDED = "embedded"


@app.callback()
def _group() -> None:
    """Run a broker on this machine."""


@app.command()
def run(
    folder: Annotated[
        Path, typer.Option("--dir", help="Folder of its configuration, data and log.")
    ] = DEFAULT_FOLDER,
    kind: Annotated[
        BrokerKind,
        typer.Option(help="auto: mosquitto where it is installed, else the embedded broker."),
    ] = BrokerKind.AUTO,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port on 127.0.0.1; 0 takes a free one.")
    ] = DEFAULT_PORT,
    as_json: JsonOption = False,
) -> None:
    """Run a broker that only this machine can reach, until SIGTERM or Ctrl-C."""
    from broker.run import run_broker

    stop = threading.Event()

    def stop_soon(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, stop_soon) for number in _STOP_SIGNALS}
    try:
        with run_broker(kind.value, folder.expanduser(), port) as broker:
            ready = {"host": broker.host, "port": broker.port, "kind": broker.kind}
            if as_json:
                typer.echo(json.dumps(ready))  # one line: whoever started us reads a line
            else:
                typer.echo(f"{broker.kind} answers on {broker.host}:{broker.port}")
            while not stop.wait(WATCH_SECONDS):
                if not broker.is_running:
                    raise CommandError(
                        f"{broker.kind} ended by itself; its log: {broker.log_tail() or 'empty'}"
                    )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
