"""`elma keys`: make and show the keys of the worker pool and of the edges.

    elma keys pool --out keys                                   once, on a worker's machine
    elma keys edge kitchen --pool keys/pool-public.json --out keys
    elma keys show keys/kitchen/edge-secret.json

Outputs are files of mode 0600 (see `protocol.key_files`); what is printed names files and
fingerprints and never a secret.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from elma.output import CommandError, JsonOption, print_json

app = typer.Typer(help="Make and show the keys of the pool and of the edges.", no_args_is_help=True)


@app.command()
def pool(
    out: Annotated[Path, typer.Option(help="Folder for pool-secret.json and pool-public.json.")],
    key_id: Annotated[
        str | None, typer.Option(help="Name of the new key; by default pool-1, pool-2, ...")
    ] = None,
    rotate: Annotated[
        bool,
        typer.Option(help="Add a key to the pool in the folder; the one before stays live."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the pool's keys: the secret for the workers, the public one for every edge."""
    from protocol.key_files import (
        POOL_PUBLIC_NAME,
        POOL_SECRET_NAME,
        load_pool_keys,
        save_pool_keys,
        save_pool_public,
    )
    from protocol.keys import PoolKeys

    secret_file, public_file = out / POOL_SECRET_NAME, out / POOL_PUBLIC_NAME
    if rotate:
        old = load_pool_keys(secret_file)
        keys = old.rotate(_checked("key-id", key_id or _next_id(old.current_id)))
    else:
        keys = PoolKeys.make(_checked("key-id", key_id or "pool-1"))
    save_pool_keys(secret_file, keys, replace=rotate)
    save_pool_public(public_file, keys.public, replace=rotate)
    _print_result(
        {
            "key_id": keys.current_id,
            "live_key_ids": list(keys.ids),
            "fingerprint": keys.public.fingerprint,
            "pool_secret_file": str(secret_file),
            "pool_public_file": str(public_file),
        },
        as_json,
    )


@app.command()
def edge(
    name: Annotated[str, typer.Argument(help="The edge's name: letters, digits, '_' and '-'.")],
    pool_public: Annotated[Path, typer.Option("--pool", help="The pool's pool-public.json.")],
    out: Annotated[Path, typer.Option(help="Folder for NAME/ and edges/NAME.json.")],
    as_json: JsonOption = False,
) -> None:
    """Make an edge's bundle (OUT/NAME, for the device) and its public key (OUT/edges)."""
    from protocol.key_files import (
        EDGE_SECRET_NAME,
        EDGES_FOLDER_NAME,
        POOL_PUBLIC_NAME,
        load_pool_public,
        save_edge_keys,
        save_edge_public,
        save_pool_public,
    )
    from protocol.keys import EdgeKeys

    if _checked("edge name", name) == EDGES_FOLDER_NAME:
        raise CommandError(f"{name!r} is the folder of public keys; name the edge otherwise")
    public = load_pool_public(pool_public)
    keys = EdgeKeys.make(name)
    secret_file = out / name / EDGE_SECRET_NAME
    if (out / EDGES_FOLDER_NAME / f"{name}.json").exists():
        raise CommandError(
            f"edge {name!r} has a public key in {out / EDGES_FOLDER_NAME} already; "
            "choose another name or folder, or remove the old files first"
        )
    save_edge_keys(secret_file, keys)
    save_pool_public(out / name / POOL_PUBLIC_NAME, public, replace=True)
    edge_file = save_edge_public(out / EDGES_FOLDER_NAME, name, keys.public)
    _print_result(
        {
            "edge": name,
            "fingerprint": keys.fingerprint,
            "pool_key_id": public.key_id,
            "edge_secret_file": str(secret_file),
            "pool_public_file": str(out / name / POOL_PUBLIC_NAME),
            "edge_public_file": str(edge_file),
        },
        as_json,
    )


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A key file.")],
    as_json: JsonOption = False,
) -> None:
    """Say what a key file is: its kind, names and fingerprints; never a secret."""
    from protocol.key_files import describe_key_file

    _print_result(describe_key_file(file), as_json)


def _checked(what: str, name: str) -> str:
    """A name that may stand in topics and files."""
    from protocol.checks import is_name

    if not is_name(name):
        raise CommandError(
            f"{what} {name!r} must be 1 to 64 letters, digits, '_' or '-'", exit_status=2
        )
    return name


def _next_id(current: str) -> str:
    """pool-2 after pool-1; NAME-2 after any other NAME."""
    stem, dash, number = current.rpartition("-")
    if dash and number.isascii() and number.isdigit():
        return f"{stem}-{int(number) + 1}"
    return f"{current}-2"


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    for name, value in result.items():
        typer.echo(f"{name.replace('_', ' ')}: {_in_words(value)}")


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_in_words(item) for item in value)
    if isinstance(value, dict):
        return " ".join(str(item) for item in value.values())
    return str(value)
