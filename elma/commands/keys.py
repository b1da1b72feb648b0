"""`elma keys`: make and show the keys of the worker pool, of the edges and of the publisher.

    elma keys pool --out keys                                   once, on a worker's machine
    elma keys edge kitchen --pool keys/pool-public.json --out keys [--publisher FILE]
    elma keys publisher --out keys                              once, on a machine without a network
    elma keys publisher --out keys --rotate                     a new signing key beside the old one
    elma keys publisher --out keys --revoke publisher-1         the old one counts no more
    elma keys show keys/kitchen/edge-secret.json

Outputs are files of mode 0600 (see `protocol.key_files`); what is printed names files and
fingerprints and never a secret.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elma.output import CommandError, JsonOption, print_json

if TYPE_CHECKING:
    from protocol.signing import KeyList, PublisherTrust

app = typer.Typer(
    help="Make and show the keys of the pool, the edges and the publisher.", no_args_is_help=True
)


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
        keys = old.rotate(_checked("key-id", key_id or next_id(old.current_id)))
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
    publisher_public: Annotated[
        Path | None,
        typer.Option("--publisher", help="publisher-public.json, to go into the bundle as well."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an edge's bundle (OUT/NAME, for the device) and its public key (OUT/edges)."""
    from protocol.key_files import (
        EDGE_SECRET_NAME,
        EDGES_FOLDER_NAME,
        POOL_PUBLIC_NAME,
        PUBLISHER_PUBLIC_NAME,
        load_pool_public,
        load_publisher_public,
        save_edge_keys,
        save_edge_public,
        save_pool_public,
        save_publisher_public,
    )
    from protocol.keys import EdgeKeys

    if _checked("edge name", name) == EDGES_FOLDER_NAME:
        raise CommandError(f"{name!r} is the folder of public keys; name the edge otherwise")
    public = load_pool_public(pool_public)
    trust = None if publisher_public is None else load_publisher_public(publisher_public)
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
    result = {
        "edge": name,
        "fingerprint": keys.fingerprint,
        "pool_key_id": public.key_id,
        "edge_secret_file": str(secret_file),
        "pool_public_file": str(out / name / POOL_PUBLIC_NAME),
        "edge_public_file": str(edge_file),
    }
    if trust is not None:
        publisher_file = out / name / PUBLISHER_PUBLIC_NAME
        save_publisher_public(publisher_file, trust, replace=True)
        result["publisher_root_fingerprint"] = trust.fingerprint
        result["publisher_public_file"] = str(publisher_file)
    _print_result(result, as_json)


@app.command()
def publisher(
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for publisher-root-secret.json, which stays offline, "
            "publisher-secret.json, which signs releases, and publisher-public.json, for everyone."
        ),
    ],
    key_id: Annotated[
        str | None,
        typer.Option(help="Name of the new signing key; by default publisher-1, publisher-2, ..."),
    ] = None,
    rotate: Annotated[
        bool, typer.Option(help="Add a signing key; those before it still count until revoked.")
    ] = False,
    revoke: Annotated[
        str | None, typer.Option(metavar="KEY_ID", help="Let this signing key count no more.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="The root key, where it is not OUT/publisher-root-secret.json."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the publisher's keys: a root that signs the list of keys, and a key that signs releases.

    The list travels with each manifest: after --rotate or --revoke, give publisher-public.json to
    `elma publish`, and the edges learn of it with the next manifest.
    """
    from protocol.key_files import PUBLISHER_PUBLIC_NAME, PUBLISHER_ROOT_NAME, PUBLISHER_SECRET_NAME

    root_file = root or out / PUBLISHER_ROOT_NAME
    public_file, secret_file = out / PUBLISHER_PUBLIC_NAME, out / PUBLISHER_SECRET_NAME
    if rotate and revoke is not None:
        raise CommandError("--rotate and --revoke are two steps; rotate first", exit_status=2)
    if key_id is not None:
        _checked("key-id", key_id)
    if rotate:
        result = _rotate_publisher(root_file, public_file, secret_file, key_id)
    elif revoke is not None:
        if key_id is not None:
            raise CommandError("--revoke makes no key; leave --key-id out", exit_status=2)
        result = _revoke_publisher(root_file, public_file, secret_file, _checked("key", revoke))
    else:
        result = _make_publisher(root_file, public_file, secret_file, key_id or "publisher-1")
    files = {
        "publisher_root_secret_file": str(root_file),
        "publisher_secret_file": str(secret_file),
        "publisher_public_file": str(public_file),
    }
    _print_result({**result, **files}, as_json)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A key file.")],
    as_json: JsonOption = False,
) -> None:
    """Say what a key file is: its kind, names and fingerprints; never a secret."""
    from protocol.key_files import describe_key_file

    _print_result(describe_key_file(file), as_json)


def _make_publisher(
    root_file: Path, public_file: Path, secret_file: Path, key_id: str
) -> dict[str, Any]:
    """A fresh root, a fresh signing key, and the first list."""
    from protocol.key_files import (
        ROOT_KEY_ID,
        describe_trust,
        save_publisher_public,
        save_publisher_root,
        save_publisher_secret,
    )
    from protocol.signing import KeyList, PublisherTrust, SigningKey

    there = [path for path in (root_file, public_file, secret_file) if path.exists()]
    if there:
        raise CommandError(
            f"{', '.join(map(str, there))}: the publisher has keys already; "
            "use --rotate or --revoke, or another folder"
        )
    root, key = SigningKey.make(ROOT_KEY_ID), SigningKey.make(key_id)
    keys = KeyList(1, {key.key_id: key.public})
    trust = PublisherTrust(root.public, keys.sign(root))
    save_publisher_root(root_file, root)
    save_publisher_secret(secret_file, key)
    save_publisher_public(public_file, trust)
    return {"key_id": key.key_id, **describe_trust(trust)}


def _rotate_publisher(
    root_file: Path, public_file: Path, secret_file: Path, key_id: str | None
) -> dict[str, Any]:
    """A new signing key in the list; its secret takes the place of the one before."""
    from protocol.key_files import (
        describe_trust,
        load_publisher_public,
        load_publisher_secret,
        save_publisher_secret,
    )
    from protocol.signing import SigningKey

    keys = load_publisher_public(public_file).keys()
    known = [*keys.keys, *keys.revoked]
    name = key_id
    if name is None:
        name = next_id(list(keys.keys)[-1])
        while name in known:
            name = next_id(name)
    key = SigningKey.make(name)
    # The list first: a key that no list names signs nothing that counts.
    trust = _sign_list(root_file, public_file, keys.with_key(name, key.public))
    before = load_publisher_secret(secret_file).key_id if secret_file.exists() else None
    save_publisher_secret(secret_file, key, replace=True)
    return {"key_id": name, "replaced_key_id": before, **describe_trust(trust)}


def _revoke_publisher(
    root_file: Path, public_file: Path, secret_file: Path, key_id: str
) -> dict[str, Any]:
    """The list without one of its keys."""
    from protocol.key_files import describe_trust, load_publisher_public, load_publisher_secret

    keys = load_publisher_public(public_file).keys()
    current = load_publisher_secret(secret_file).key_id if secret_file.exists() else None
    if key_id == current or list(keys.keys) == [key_id]:
        raise CommandError(
            f"{key_id!r} is the key that signs releases now; run --rotate first, then --revoke"
        )
    trust = _sign_list(root_file, public_file, keys.without_key(key_id))
    return {"key_id": current, "revoked_key_id": key_id, **describe_trust(trust)}


def _sign_list(root_file: Path, public_file: Path, keys: KeyList) -> PublisherTrust:
    """Sign the list and put it into the public file, if the root is the one that is trusted."""
    from protocol.key_files import (
        load_publisher_public,
        load_publisher_root,
        save_publisher_public,
    )
    from protocol.signing import PublisherTrust

    root = load_publisher_root(root_file)
    if root.public != load_publisher_public(public_file).root_public:
        raise CommandError(
            f"{root_file} is not the root key that {public_file} trusts; give --root the right one"
        )
    trust = PublisherTrust(root.public, keys.sign(root))
    save_publisher_public(public_file, trust, replace=True)
    return trust


def _checked(what: str, name: str) -> str:
    """A name that may stand in topics and files."""
    from protocol.checks import is_name

    if not is_name(name):
        raise CommandError(
            f"{what} {name!r} must be 1 to 64 letters, digits, '_' or '-'", exit_status=2
        )
    return name


def next_id(current: str) -> str:
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
