"""`elma install edge`, `worker`, `publisher`, ...: a bundle becomes what systemd can start.

    elma install edge --bundle bundles/kitchen --dry-run
    elma install edge --bundle bundles/kitchen
    elma install broker --folder /var/lib/elma-broker

Inputs: a bundle of `elma enroll`. Outputs: settings, keys and a unit below `--root`; on stdout,
what to do next. Nothing is started, nothing secret is printed. Neighbour: `elma.installing`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elma.output import CommandError, JsonOption, print_json

if TYPE_CHECKING:
    from pathlib import PurePosixPath

    from elma.installed_roles import Role
    from elma.installing import Layout

app = typer.Typer(help="Lay a bundle out so that systemd runs it.", no_args_is_help=True)

BundleOption = Annotated[Path, typer.Option(help="The folder that `elma enroll` made.")]
RootOption = Annotated[Path, typer.Option(help="The root of the machine, or of its image.")]
ProgramOption = Annotated[
    Path | None,
    typer.Option(help="The `elma` that the unit starts. Default: the Debian package's."),
]
PortOption = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help="Port of its HTTP interface, for the second on a machine."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say it, and write nothing.")]


@app.command()
def edge(
    bundle: BundleOption,
    root: RootOption = Path("/"),
    program: ProgramOption = None,
    textfile: Annotated[
        Path | None,
        typer.Option(
            help="Also bring its metrics to node_exporter, which reads text files in this folder "
            "(Debian's: /var/lib/prometheus/node-exporter)."
        ),
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make this machine the device that the bundle names; again with a newer bundle renews it."""
    from pathlib import PurePosixPath

    folder = None if textfile is None else PurePosixPath(textfile)
    _install("edge", bundle, root, program, dry_run, as_json, textfile_folder=folder)


@app.command()
def worker(
    bundle: BundleOption,
    root: RootOption = Path("/"),
    program: ProgramOption = None,
    http_port: PortOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add the worker that the bundle names to this machine."""
    _install("worker", bundle, root, program, dry_run, as_json, http_port=http_port)


@app.command()
def publisher(
    bundle: BundleOption,
    root: RootOption = Path("/"),
    program: ProgramOption = None,
    http_port: PortOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make this machine the one that runs the rollout service; no signing key goes there."""
    _install("publisher", bundle, root, program, dry_run, as_json, http_port=http_port)


@app.command()
def publishing(
    bundle: BundleOption,
    root: RootOption = Path("/"),
    program: ProgramOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add the command `elma-publisher`, which works in the rollout service's store, as its user.

    It takes what `elma` takes: `elma-publisher publish MODEL`, `elma-publisher rollout status`. Its
    bundle is another than the service's: a name at the broker has one connection.
    """
    _install("publishing", bundle, root, program, dry_run, as_json)


@app.command()
def monitor(
    bundle: BundleOption,
    root: RootOption = Path("/"),
    program: ProgramOption = None,
    http_port: PortOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make this machine the one that shows Prometheus what devices report over MQTT."""
    _install("monitor", bundle, root, program, dry_run, as_json, http_port=http_port)


@app.command()
def broker(
    folder: Annotated[Path, typer.Option(help="The folder of `elma broker init`.")] = Path(
        "/var/lib/elma-broker"
    ),
    root: RootOption = Path("/"),
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Have this machine's mosquitto.service run what `elma broker init` made."""
    from pathlib import PurePosixPath

    from elma.installing import plan_broker

    _must_be_a_folder(root)
    if not folder.is_absolute():
        raise CommandError(f"--folder {folder}: systemd needs an absolute path", exit_status=2)
    _finish(plan_broker(PurePosixPath(folder), root), dry_run, as_json)


def _install(
    role: Role,
    bundle: Path,
    root: Path,
    program: Path | None,
    dry_run: bool,
    as_json: bool,
    *,
    http_port: int | None = None,
    textfile_folder: PurePosixPath | None = None,
) -> None:
    from pathlib import PurePosixPath

    from elma.installing import plan_layout

    if program is not None and not program.is_absolute():
        raise CommandError(f"--program {program}: systemd needs an absolute path", exit_status=2)
    _must_be_a_folder(root)
    chosen = None if program is None else PurePosixPath(program)
    layout = plan_layout(
        role, bundle, root, chosen, http_port=http_port, textfile_folder=textfile_folder
    )
    _finish(layout, dry_run, as_json)


def _must_be_a_folder(root: Path) -> None:
    if not root.is_dir():
        raise CommandError(f"--root {root} is not a folder", exit_status=2)


def _finish(layout: Layout, dry_run: bool, as_json: bool) -> None:
    """Write it, and say what was written and what to do next."""
    there = {file.path for file in layout.files if file.is_there()}
    if not dry_run:
        layout.write()
    if as_json:
        written = [
            {
                "path": str(file.path),
                "mode": f"{file.mode:04o}",
                "was_there": file.path in there,
            }
            for file in layout.files
        ]
        print_json(
            {
                "name": layout.name,
                "service": layout.service,
                "dry_run": dry_run,
                "files": written,
                "next": layout.next_steps,
            }
        )
        return
    new = "would write" if dry_run else "wrote"
    for file in layout.files:
        did = "unchanged" if file.path in there else new
        typer.echo(f"{did} {file.path} (mode {file.mode:04o})")
    typer.echo(f"next: {' && '.join(layout.next_steps)}")
