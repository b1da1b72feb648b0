"""`elma keys rotate`: a new pool key, for workers at once, for devices as soon as they have it.

    elma keys rotate --keys elma-keys --bundles bundles

Inputs: the pool's key folder, a folder of bundles as `elma enroll` wrote them, and the broker's,
which knows who is revoked. Outputs: the new key in the pool's files and in each bundle's copy of
them, but not in those of revoked members. Two keys live at a time: devices go on with the one
before, and the one before that counts no more. Running workers and devices read the new files by
themselves. Neighbours: `elma.commands.keys`, whose group this verb joins; `protocol.key_files`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elma.commands.enroll import DEFAULT_BROKER, DEFAULT_KEYS, BrokerOption, KeysOption
from elma.commands.keys import next_id
from elma.extras import require_extra
from elma.output import CommandError, JsonOption, print_json

if TYPE_CHECKING:
    from protocol.keys import PoolKeys, PoolPublic


def register(group: typer.Typer) -> None:
    """Add the verb to the group `elma keys`."""
    group.command("rotate")(rotate)


def rotate(
    keys: KeysOption = DEFAULT_KEYS,
    bundles: Annotated[
        Path | None,
        typer.Option(help="Folder of bundles whose copies of the pool's keys change as well."),
    ] = None,
    broker: BrokerOption = DEFAULT_BROKER,
    as_json: JsonOption = False,
) -> None:
    """Add a key to the pool; the one before stays live, an older one counts no more."""
    from protocol.key_files import (
        POOL_PUBLIC_NAME,
        POOL_SECRET_NAME,
        load_pool_keys,
        save_pool_keys,
        save_pool_public,
    )

    if bundles is not None and not bundles.is_dir():
        raise CommandError(f"{bundles} is no folder of bundles", exit_status=2)
    old = load_pool_keys(keys / POOL_SECRET_NAME)
    new = old.rotate(next_id(old.current_id))
    found = [] if bundles is None else sorted(path for path in bundles.iterdir() if path.is_dir())
    revoked = _revoked(found, broker)
    secrets, publics = _copies([path for path in found if path not in revoked], old)
    # Workers first: a device may use the new key from the moment it has it.
    for path in (keys / POOL_SECRET_NAME, *secrets):
        save_pool_keys(path, new, replace=True)
    for path in (keys / POOL_PUBLIC_NAME, *publics):
        save_pool_public(path, new.public, replace=True)
    dropped = [key_id for key_id in old.ids if key_id not in new.ids]
    changed = [str(path) for path in (*secrets, *publics)]
    foreign = _foreign(found, revoked, changed)
    if as_json:
        print_json(
            {
                "key_id": new.current_id,
                "live_key_ids": list(new.ids),
                "dropped_key_ids": dropped,
                "fingerprint": new.public.fingerprint,
                "changed_copies": changed,
                "revoked_bundles": [str(path) for path in revoked],
                "other_pools_copies": foreign,
            }
        )
        return
    typer.echo(f"pool key {new.current_id} ({new.public.fingerprint}); live: {', '.join(new.ids)}")
    if dropped:
        typer.echo(f"counts no more: {', '.join(dropped)}")
    for copy in changed:
        typer.echo(f"changed: {copy}")
    for path in revoked:
        typer.echo(f"left as it is: {path} (its certificate is revoked)")
    for copy in foreign:
        typer.echo(f"left as it is: {copy} (it shares no key with this pool)")
    typer.echo("bring pool-secret.json to workers elsewhere, then pool-public.json to each device")


def _copies(bundles: list[Path], old: PoolKeys) -> tuple[list[Path], list[Path]]:
    """The workers' and the devices' copies of this pool's keys; those of another pool stay.

    A copy that shares a key with the pool is of the pool: a rotation that was killed may have left
    it one behind.
    """
    from protocol.key_files import (
        POOL_PUBLIC_NAME,
        POOL_SECRET_NAME,
        load_pool_keys,
        load_pool_public,
    )

    secrets = [path / POOL_SECRET_NAME for path in bundles if (path / POOL_SECRET_NAME).exists()]
    publics = [path / POOL_PUBLIC_NAME for path in bundles if (path / POOL_PUBLIC_NAME).exists()]
    ours = _publics(old)
    return (
        [path for path in secrets if any(key in ours for key in _publics(load_pool_keys(path)))],
        [path for path in publics if load_pool_public(path) in ours],
    )


def _foreign(bundles: list[Path], revoked: list[Path], changed: list[str]) -> list[str]:
    """Copies of keys that are another pool's, or so old that nothing tells whose they are."""
    from protocol.key_files import POOL_PUBLIC_NAME, POOL_SECRET_NAME

    held = [path / name for path in bundles for name in (POOL_SECRET_NAME, POOL_PUBLIC_NAME)]
    return [
        str(path)
        for path in held
        if path.exists() and path.parent not in revoked and str(path) not in changed
    ]


def _publics(keys: PoolKeys) -> list[PoolPublic]:
    return [keys.public_of(key_id) for key_id in keys.ids]


def _revoked(bundles: list[Path], broker: Path) -> list[Path]:
    """The bundles whose certificate is on the broker's revocation list, where there is a broker."""
    if not bundles or not broker.is_dir():
        if bundles and broker != DEFAULT_BROKER:
            raise CommandError(f"{broker} is no broker's folder", exit_status=2)
        return []
    require_extra("broker", "elma keys rotate --bundles")
    from broker.certificates import revoked_serials, serial_of
    from broker.secret_files import read_file
    from broker.secured import CERTIFICATE_NAME, SecuredFolder

    listed = revoked_serials(read_file(SecuredFolder.load(broker).revocation_file))
    cards = [path for path in bundles if (path / CERTIFICATE_NAME).exists()]
    return [path for path in cards if serial_of(read_file(path / CERTIFICATE_NAME)) in listed]
