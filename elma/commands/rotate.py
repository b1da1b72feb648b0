"""`elma keys rotate`: a new pool key, for workers at once and for devices with their next start.

    elma keys rotate --keys elma-keys --bundles bundles

Inputs: the pool's key folder, and a folder of bundles as `elma enroll` wrote them. Outputs: the new
key in the pool's files and in each bundle's copy of them. Two keys live at a time: devices go on
with the one before, and the one before that counts no more. Neighbours: `elma.commands.keys`, whose
group this verb joins; `protocol.key_files`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elma.commands.enroll import DEFAULT_KEYS, KeysOption
from elma.commands.keys import next_id
from elma.output import CommandError, JsonOption, print_json


def register(group: typer.Typer) -> None:
    """Add the verb to the group `elma keys`."""
    group.command("rotate")(rotate)


def rotate(
    keys: KeysOption = DEFAULT_KEYS,
    bundles: Annotated[
        Path | None,
        typer.Option(help="Folder of bundles whose copies of the pool's keys change as well."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Add a key to the pool; the one before stays live, an older one counts no more."""
    from protocol.key_files import (
        POOL_PUBLIC_NAME,
        POOL_SECRET_NAME,
        load_pool_keys,
        load_pool_public,
        save_pool_keys,
        save_pool_public,
    )

    if bundles is not None and not bundles.is_dir():
        raise CommandError(f"{bundles} is no folder of bundles", exit_status=2)
    old = load_pool_keys(keys / POOL_SECRET_NAME)
    new = old.rotate(next_id(old.current_id))
    found = [] if bundles is None else sorted(path for path in bundles.iterdir() if path.is_dir())
    # Copies of another pool's keys stay as they are.
    secrets = [path / POOL_SECRET_NAME for path in found if (path / POOL_SECRET_NAME).exists()]
    secrets = [path for path in secrets if load_pool_keys(path).public == old.public]
    publics = [path / POOL_PUBLIC_NAME for path in found if (path / POOL_PUBLIC_NAME).exists()]
    ours = [old.public_of(key_id) for key_id in old.ids]
    publics = [path for path in publics if load_pool_public(path) in ours]
    # Workers first: a device may use the new key from the moment it has it.
    for path in (keys / POOL_SECRET_NAME, *secrets):
        save_pool_keys(path, new, replace=True)
    for path in (keys / POOL_PUBLIC_NAME, *publics):
        save_pool_public(path, new.public, replace=True)
    dropped = [key_id for key_id in old.ids if key_id not in new.ids]
    changed = [str(path) for path in (*secrets, *publics)]
    if as_json:
        print_json(
            {
                "key_id": new.current_id,
                "live_key_ids": list(new.ids),
                "dropped_key_ids": dropped,
                "fingerprint": new.public.fingerprint,
                "changed_copies": changed,
            }
        )
        return
    typer.echo(f"pool key {new.current_id} ({new.public.fingerprint}); live: {', '.join(new.ids)}")
    if dropped:
        typer.echo(f"counts no more: {', '.join(dropped)}")
    for copy in changed:
        typer.echo(f"changed: {copy}")
    typer.echo("workers read it by themselves; bring pool-public.json to each device, restart it")
