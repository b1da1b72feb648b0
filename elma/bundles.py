"""What a member of a secured broker is given: one folder with all that it needs to connect.

    edge        edge.toml, client.pem, client-key.pem, authority.pem, edge-secret.json,
                pool-public.json, publisher-public.json
    worker      worker.toml, client.pem, client-key.pem, authority.pem, pool-secret.json, edges/,
                publisher-public.json
    publisher   publisher.toml, client.pem, client-key.pem, authority.pem, publisher-public.json
    monitor     monitor.toml, client.pem, client-key.pem, authority.pem

Inputs: what `broker.enrolment` issued, the keys. Output: the folder, mode 0700, its secrets 0600.
Neighbours: `elma.commands.enroll`, `renew`. Paths in the settings are relative to the bundle, so
that it can be copied as a whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from broker.certificates import identity_of
from broker.enrolment import Enrolled
from broker.secret_files import make_folder, read_file, write_file, write_secret
from broker.secured import AUTHORITY_NAME, CERTIFICATE_NAME, KEY_NAME, SecuredFolder
from elma.demonstration.setup import write_toml
from elma.output import CommandError
from protocol.key_documents import PUBLIC_FOLDER_MODE
from protocol.key_files import (
    EDGE_SECRET_NAME,
    EDGES_FOLDER_NAME,
    POOL_PUBLIC_NAME,
    POOL_SECRET_NAME,
    PUBLISHER_PUBLIC_NAME,
    load_pool_keys,
    load_publisher_public,
    save_edge_keys,
    save_pool_keys,
    save_pool_public,
    save_publisher_public,
)
from protocol.keys import EdgeKeys, PoolPublic

EDGE_SETTINGS_NAME = "edge.toml"
WORKER_SETTINGS_NAME = "worker.toml"
SHARED_STORE = "../elma-publisher"
"""Beside the bundles: the service and whoever publishes must work on one store."""


def must_be_new(bundle: Path) -> None:
    """Raise CommandError for a folder that holds something already."""
    if bundle.exists() and (not bundle.is_dir() or any(bundle.iterdir())):
        raise CommandError(f"{bundle} is there already; choose another --out, or move it away")


def write_edge_bundle(
    bundle: Path,
    folder: SecuredFolder,
    enrolled: Enrolled,
    keys: EdgeKeys,
    pool: PoolPublic,
    publisher: Path | None,
    model: str,
) -> Path:
    """A device's bundle; returns its settings file."""
    write_connection(bundle, enrolled)
    save_edge_keys(bundle / EDGE_SECRET_NAME, keys)
    save_pool_public(bundle / POOL_PUBLIC_NAME, pool)
    settings = {
        "name": enrolled.member.name,
        "model": model,
        "outbox": "elma-edge.sqlite3",
        "broker": _broker_table(folder),
        "offload": {"edge_key_file": EDGE_SECRET_NAME, "pool_public_key_file": POOL_PUBLIC_NAME},
        **_releases_table(bundle, publisher),
    }
    return _write_settings(bundle / EDGE_SETTINGS_NAME, settings)


def write_worker_bundle(
    bundle: Path,
    folder: SecuredFolder,
    enrolled: Enrolled,
    keys: Path,
    publisher: Path | None,
    model: str,
    *,
    is_here: bool,
) -> Path:
    """A worker's bundle; returns its settings file.

    `keys` is the pool's key folder. A worker that `is_here`, on the same machine, uses that folder
    itself, and so hears of enrolments, revocations and rotations at once; another gets a copy.
    """
    write_connection(bundle, enrolled)
    pool_secret, edges = Path(POOL_SECRET_NAME), Path(EDGES_FOLDER_NAME)
    if is_here:
        pool_secret, edges = keys.resolve() / pool_secret, keys.resolve() / edges
        make_folder(edges, mode=PUBLIC_FOLDER_MODE)
    else:
        save_pool_keys(bundle / pool_secret, load_pool_keys(keys / POOL_SECRET_NAME))
        make_folder(bundle / edges, mode=PUBLIC_FOLDER_MODE)
        for path in sorted((keys / EDGES_FOLDER_NAME).glob("*.json")):
            write_file(bundle / edges / path.name, read_file(path))
    settings = {
        "name": enrolled.member.name,
        "model": model,
        "pool_secret_file": str(pool_secret),
        "edges_folder": str(edges),
        "broker": _broker_table(folder),
        **_releases_table(bundle, publisher),
    }
    return _write_settings(bundle / WORKER_SETTINGS_NAME, settings)


def write_plain_bundle(
    bundle: Path, folder: SecuredFolder, enrolled: Enrolled, publisher: Path | None = None
) -> Path:
    """A publisher's or monitor's bundle; returns the settings file, which says how to connect."""
    write_connection(bundle, enrolled)
    settings: dict[str, Any] = {
        "name": enrolled.member.name,
        "broker": _broker_table(folder),
    }
    if enrolled.member.kind == "publisher":
        _copy_trust(bundle, publisher)
        settings = {"store": SHARED_STORE, **settings}
    return _write_settings(bundle / f"{enrolled.member.kind}.toml", settings)


def must_be_of(bundle: Path, identity: str) -> None:
    """Raise CommandError for a folder that is neither new nor the bundle of this member."""
    certificate = bundle / CERTIFICATE_NAME
    if not certificate.exists():
        must_be_new(bundle)
    elif identity_of(read_file(certificate)) != identity:
        raise CommandError(
            f"{bundle} is the bundle of {identity_of(read_file(certificate))}, not of {identity}; "
            "choose another --out"
        )


def write_connection(bundle: Path, enrolled: Enrolled) -> list[Path]:
    """Certificate, key and authority, in a new folder or in place of those before; returns them.

    What else is in a bundle stays: above all an edge's own key, by which its requests under way are
    answered. A member that keeps its key has it already.
    """
    make_folder(bundle)
    files = [bundle / AUTHORITY_NAME, bundle / CERTIFICATE_NAME]
    write_file(files[0], enrolled.server_authority)
    if enrolled.pair.key:
        files.append(bundle / KEY_NAME)
        write_secret(bundle / KEY_NAME, enrolled.pair.key)
    write_file(files[1], enrolled.pair.certificate)
    return files


def _broker_table(folder: SecuredFolder) -> dict[str, Any]:
    return {
        "host": folder.hosts[0],
        "port": folder.port,
        "tls_ca_file": AUTHORITY_NAME,
        "tls_certificate_file": CERTIFICATE_NAME,
        "tls_key_file": KEY_NAME,
    }


def _releases_table(bundle: Path, publisher: Path | None) -> dict[str, Any]:
    """What makes it follow the channel `stable`, where there is a publisher."""
    if not _copy_trust(bundle, publisher):
        return {}
    return {"releases": {"publisher_public_key_file": PUBLISHER_PUBLIC_NAME, "folder": "releases"}}


def _copy_trust(bundle: Path, publisher: Path | None) -> bool:
    """Whether there is a publisher whose public file is in the bundle now."""
    if publisher is None:
        return False
    save_publisher_public(bundle / PUBLISHER_PUBLIC_NAME, load_publisher_public(publisher))
    return True


def _write_settings(path: Path, settings: dict[str, Any]) -> Path:
    try:
        write_toml(path, settings)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from error
    return path
