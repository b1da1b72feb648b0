"""`elma edge run`: an edge agent as a process. `elma edge check-release`: a release, proved here.

Input: a settings file, `ELMA_EDGE_...` variables, options; the later one wins. Output: a local HTTP
interface until SIGTERM, one log line for each question on stderr. Neighbours: `edge_agent.service`
and `releases.proving` do the work.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from elma.options import EngineOption, PrecisionOption, ServiceEngineOption, ServicePrecisionOption
from elma.output import CommandError, JsonOption, print_json

app = typer.Typer(help="The agent on the device: answers over local HTTP.", no_args_is_help=True)


@app.command()
def run(
    config: Annotated[
        Path | None,
        typer.Option(envvar="ELMA_EDGE_CONFIG", help="TOML file; examples/edge.toml shows all."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of this edge at the broker.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model folder, elma-small, elma-fast, or none.")
    ] = None,
    outbox: Annotated[Path | None, typer.Option(help="SQLite file of accepted questions.")] = None,
    engine: ServiceEngineOption = None,
    precision: ServicePrecisionOption = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the reader.")] = None,
    max_edge_layers: Annotated[
        int | None, typer.Option(help="Deepest layer run before the cloud is asked.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address of the HTTP interface.")] = None,
    port: Annotated[int | None, typer.Option(help="Its port; 0 takes a free one.")] = None,
    broker_host: Annotated[str | None, typer.Option(help="The MQTT broker.")] = None,
    broker_port: Annotated[int | None, typer.Option(help="Its port.")] = None,
    edge_key_file: Annotated[Path | None, typer.Option(help="This edge's secret key.")] = None,
    pool_public_key_file: Annotated[
        Path | None, typer.Option(help="The public key of the worker pool.")
    ] = None,
    codec: Annotated[
        str | None, typer.Option(help="State codec: auto, fp32, fp16, int8, int4 or bottleneck.")
    ] = None,
) -> None:
    """Answer questions over local HTTP until stopped, with or without a broker.

    Every setting can be given in the file, as a variable ELMA_EDGE_... (a setting of a table with
    two underscores, such as ELMA_EDGE_BROKER__HOST), and the most useful ones as options.
    """
    from edge_agent.settings import load_settings

    overrides: dict[str, Any] = {
        "name": name,
        "model": model,
        "outbox": outbox,
        "engine": engine,
        "precision": precision,
        "threads": threads,
        "max_edge_layers": max_edge_layers,
        "http": {"host": host, "port": port},
        "broker": {"host": broker_host, "port": broker_port},
        "offload": {
            "edge_key_file": edge_key_file,
            "pool_public_key_file": pool_public_key_file,
            "codec": codec,
        },
    }
    settings = load_settings(config, overrides)

    from edge_agent.service import run_edge  # heavy: after the settings, whose errors come at once

    run_edge(settings)


@app.command("check-release")
def check_release(
    folder: Annotated[Path, typer.Argument(help="A model folder with canaries.json.")],
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Ask a release its canary questions on this machine, as an agent does before it takes one.

    Leaves with 1 when it would not be taken.
    """
    from releases.errors import ReleaseError
    from releases.proving import Computing, check_in_child

    try:
        report = check_in_child(folder, Computing(engine, precision))
    except ReleaseError as error:
        raise CommandError(f"{folder} would not be taken: {error}") from error
    if as_json:
        print_json(asdict(report))
        return
    print(
        f"{report.canaries} canaries passed in {report.seconds:.1f} s, "
        f"with {report.peak_bytes / 1e6:.0f} MB of memory at most"
    )
