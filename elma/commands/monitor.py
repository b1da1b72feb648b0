"""`elma monitor`: the metrics of devices that no Prometheus can reach.

Input: a settings file (that of `elma enroll-monitor`), `ELMA_MONITOR_...` variables, options; the
later one wins. Output: /metrics over HTTP until SIGTERM. Neighbour: `elma.monitor` does the work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("monitor")(monitor)


def monitor(
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="ELMA_MONITOR_CONFIG", help="TOML file; examples/monitor.toml shows all."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of this monitor; no two may share one.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address of /metrics.")] = None,
    port: Annotated[int | None, typer.Option(help="Its port; 0 takes a free one.")] = None,
    broker_host: Annotated[str | None, typer.Option(help="The MQTT broker.")] = None,
    broker_port: Annotated[int | None, typer.Option(help="Its port.")] = None,
) -> None:
    """Collect what devices report over the broker, and serve it to Prometheus, until stopped.

    A device reports where its settings have [metrics] report_seconds. Every setting can be given in
    the file, as a variable ELMA_MONITOR_... (a setting of a table with two underscores, such as
    ELMA_MONITOR_BROKER__HOST), and the most useful ones as options.
    """
    from elma.monitor.service import run_monitor
    from elma.monitor.settings import load_settings

    overrides = {
        "name": name,
        "http": {"host": host, "port": port},
        "broker": {"host": broker_host, "port": broker_port},
    }
    run_monitor(load_settings(config, overrides))
