"""`elma install edge`, `worker`, `publisher`: a bundle becomes a machine that systemd can start.

    elma install edge --bundle bundles/kitchen --dry-run
    elma install edge --bundle bundles/kitchen

Inputs: a bundle of `elma enroll`. Outputs: settings, keys and a unit below `--root`; on stdout,
what to do next. Nothing is started, nothing secret is printed. Neighbour: `elma.installing`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elma.output import CommandError, JsonOption, print_json

if TYPE_CHECKING:
    from elma.installing import Layout, Role

app = typer.Typer(help="Lay a bundle out for systemd.", no_args_is_help=True)

BundleOption = Annotated[Path, typer.Option(help="The folder that `elma enroll` made.")]
RootOption = Annotated[Path, typer.Option(help="The root of the machine, or of its image.")]
ProgramOption = Annotated[
    Path | None,
    typer.Option(help="The `elma` that the unit starts. Default: the Debian package's."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say it, and write nothing.")]


@app.command()
def edge(
    bundle: BundleOption,
    root: RootOption = Path("/"),
    program: ProgramOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make this machine the device that the bundle names; again with a newer bundle renews it."""
    _install("edge", bundle, root, program, dry_run, as_json)


@app.command()
def worker(
    bundle: BundleOption,
    root: RootOption = Path("/"),
    program: ProgramOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add the worker that the bundle names to this machine."""
    _install("worker", bundle, root, program, dry_run, as_json)


@app.command()
def publisher(
    bundle: BundleOption,
    root: RootOption = Path("/"),
    program: ProgramOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make this machine the one that runs the rollout service; no signing key goes there."""
    _install("publisher", bundle, root, program, dry_run, as_json)


def _install(
    role: Role, bundle: Path, root: Path, program: Path | None, dry_run: bool, as_json: bool
) -> None:
    from pathlib import PurePosixPath

    from elma.installing import plan_layout

    if program is not None and not program.is_absolute():
        raise CommandError(f"--program {program}: systemd needs an absolute path", exit_status=2)
    if not root.is_dir():
        raise CommandError(f"--root {root} is not a folder", exit_status=2)
    chosen = None if program is None else PurePosixPath(program)
    layout = plan_layout(role, bundle, root, chosen)
    if not dry_run:
        layout.write()
    _print(layout, dry_run, as_json)


def _print(layout: Layout, dry_run: bool, as_json: bool) -> None:
    next_steps = ["systemctl daemon-reload", f"systemctl enable --now {layout.service}"]
    if as_json:
        written = [{"path": str(file.path), "mode": f"{file.mode:04o}"} for file in layout.files]
        print_json(
            {
                "name": layout.name,
                "service": layout.service,
                "dry_run": dry_run,
                "files": written,
                "next": next_steps,
            }
        )
        return
    for file in layout.files:
        typer.echo(f"{'would write' if dry_run else 'wrote'} {file.path} (mode {file.mode:04o})")
    typer.echo(f"next: {' && '.join(next_steps)}")
