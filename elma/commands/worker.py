"""`elma worker run`: a cloud worker as a process.

Input: a settings file, `ELMA_WORKER_...` variables, options; the later one wins. Output: answers
over the broker until SIGTERM, health and metrics over HTTP, one log line for each request on
stderr. Neighbour: `cloud_worker.service` does the work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from elma.options import ServiceEngineOption, ServicePrecisionOption

app = typer.Typer(help="The worker in the cloud: takes over hard questions.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `run` a verb of its own although it is the only one so far."""


@app.command()
def run(
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="ELMA_WORKER_CONFIG", help="TOML file; examples/worker.toml shows all."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of this worker; no two may share one.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model folder, elma-small, or none to wait for a release.")
    ] = None,
    pool_secret_file: Annotated[
        Path | None, typer.Option(help="The secret keys of the worker pool.")
    ] = None,
    edges_folder: Annotated[
        Path | None, typer.Option(help="Folder with the public key of each enrolled edge.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address of health and metrics.")] = None,
    port: Annotated[int | None, typer.Option(help="Its port; 0 takes a free one.")] = None,
    broker_host: Annotated[str | None, typer.Option(help="The MQTT broker.")] = None,
    broker_port: Annotated[int | None, typer.Option(help="Its port.")] = None,
    queue_bound: Annotated[
        int | None, typer.Option(help="Requests held at once; more are told busy.")
    ] = None,
    engine: ServiceEngineOption = None,
    precision: ServicePrecisionOption = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the reader.")] = None,
) -> None:
    """Compute what devices could not settle, until stopped; any number of workers share the load.

    Every setting can be given in the file, as a variable ELMA_WORKER_... (a setting of a table with
    two underscores, such as ELMA_WORKER_BROKER__HOST), and the most useful ones as options.
    """
    from cloud_worker.service import run_worker
    from cloud_worker.settings import load_settings

    overrides: dict[str, Any] = {
        "name": name,
        "model": model,
        "pool_secret_file": pool_secret_file,
        "edges_folder": edges_folder,
        "queue_bound": queue_bound,
        "engine": engine,
        "precision": precision,
        "threads": threads,
        "http": {"host": host, "port": port},
        "broker": {"host": broker_host, "port": broker_port},
    }
    run_worker(load_settings(config, overrides))
