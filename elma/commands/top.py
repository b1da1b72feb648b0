"""`elma top`: what edges and workers are doing now, in the terminal.

    elma top                                  the edge and the worker of this machine
    elma top kitchen:8571 north:8572          others
    elma top monitor:8574                     every edge that reports to an `elma monitor`
    elma top --once --json                    for scripts

Input: URLs. Output: tables until Ctrl-C, or one of them, or JSON. Neighbour: `elma.top` looks.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from elma.output import CommandError, JsonOption, print_json


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("top")(top)


def top(
    urls: Annotated[
        list[str] | None,
        typer.Argument(
            help="Where edges, workers, monitors listen; default: edge and worker of this machine."
        ),
    ] = None,
    every_seconds: Annotated[
        float, typer.Option("--every", min=0.1, max=60, help="Seconds between two looks.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look, print and leave.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what edges and workers are doing: questions a second, queues, latency, releases.

    It asks each of them for /healthz and /metrics. Rates and times are those of the last minute
    (with --once or --json: between two looks); a star marks times since the process started. Of a
    monitor's edges they are those between the last two reports.
    """
    from rich.console import Console

    from elma.top.look import normal_url
    from elma.top.view import draw
    from elma.top.watching import Watch, watch_for_ever, watch_once

    is_live = not (once or as_json)
    if is_live and not sys.stdout.isatty():
        raise CommandError(
            "stdout is no terminal to draw in; add --once, and --json for a program", exit_status=2
        )
    watch = Watch(list(dict.fromkeys(normal_url(url) for url in urls or _here())))
    if is_live:
        watch.look()
    else:
        watch_once(watch, every_seconds)
    if not watch.figures():
        raise CommandError(
            "; ".join(f"{one.url}: {one.why}" for one in watch.silent)
            + "; start `elma edge run` or `elma worker run`, or name the URL where one listens"
        )
    if is_live:
        watch_for_ever(watch, every_seconds, Console())
    elif as_json:
        silent = [asdict(one) for one in watch.silent]
        print_json({"processes": watch.figures(), "silent": silent})
    else:
        width = None if sys.stdout.isatty() else 132
        Console(width=width).print(draw(watch.figures(), watch.silent))


def _here() -> list[str]:
    from cloud_worker.settings import DEFAULT_PORT as WORKER_PORT
    from edge_agent.settings import DEFAULT_PORT as EDGE_PORT

    return [f"127.0.0.1:{port}" for port in (EDGE_PORT, WORKER_PORT)]
