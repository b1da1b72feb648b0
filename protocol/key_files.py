"""Key files: small JSON documents, readable by their owner only.

    pool-secret.json              workers    "keys": [{"id", "secret"}]
    pool-public.json              edges      "id", "public"
    edge-secret.json              one edge   "edge", "secret"
    edges/NAME.json               workers    "edge", "public"
    publisher-root-secret.json    offline    "secret"
    publisher-secret.json         signer     "id", "secret"
    publisher-public.json         all        "root", "keys", "signature"
    rollout-secret.json           publisher  "id", "secret"

and in each, `"elma"` says which kind it is. Keys are base64. `key_documents` keeps the rules that
hold for every file: a secret for its owner only, public keys for everyone to read, none writable
by others. Saving never replaces a file unless told to. Every failure is a `KeyFileError` that names
the file and never its content. Neighbours: `keys` and `signing` hold what is read, `live_keys`
reads it again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol.checks import check_name
from protocol.errors import (
    KeyFileError,
    MalformedMessage,
    SealingError,
    UnknownEdge,
)
from protocol.key_documents import (
    bytes_from_text,
    key_from_text,
    make_public_folder,
    read_document,
    to_text,
    write_document,
)
from protocol.keys import EdgeKeys, PoolKeys, PoolPublic, fingerprint
from protocol.live_keys import Stamp, stamp_of
from protocol.signing import PublisherTrust, SignedKeyList, SigningKey

POOL_SECRET_NAME = "pool-secret.json"  # noqa: S105 -- a file's name
POOL_PUBLIC_NAME = "pool-public.json"
EDGE_SECRET_NAME = "edge-secret.json"  # noqa: S105 -- a file's name
EDGES_FOLDER_NAME = "edges"
PUBLISHER_ROOT_NAME = "publisher-root-secret.json"
PUBLISHER_SECRET_NAME = "publisher-secret.json"  # noqa: S105 -- a file's name
PUBLISHER_PUBLIC_NAME = "publisher-public.json"
ROLLOUT_SECRET_NAME = "rollout-secret.json"  # noqa: S105 -- a file's name
ROOT_KEY_ID = "root"


def save_pool_keys(path: Path, keys: PoolKeys, *, replace: bool = False) -> None:
    """Write the pool's secret keys, oldest first."""
    entries = [{"id": key_id, "secret": to_text(keys.secret_of(key_id))} for key_id in keys.ids]
    write_document(path, {"elma": "pool-secret", "keys": entries}, replace=replace)


def load_pool_keys(path: Path) -> PoolKeys:
    """Read the pool's secret keys."""
    document = read_document(path, "pool-secret", secret=True)
    entries = document.get("keys")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise KeyFileError(f"key file {path}: 'keys' must be a list of id and secret")
    secrets = {str(entry.get("id")): key_from_text(path, entry.get("secret")) for entry in entries}
    if len(secrets) != len(entries):
        raise KeyFileError(f"key file {path}: an id stands there twice")
    try:
        return PoolKeys(secrets)
    except (MalformedMessage, SealingError) as error:
        raise KeyFileError(f"key file {path}: {error}") from error


def save_pool_public(path: Path, public: PoolPublic, *, replace: bool = False) -> None:
    """Write the pool's current public key."""
    document = {"elma": "pool-public", "id": public.key_id, "public": to_text(public.public)}
    write_document(path, document, replace=replace, is_public=True)


def load_pool_public(path: Path) -> PoolPublic:
    """Read the pool's public key."""
    document = read_document(path, "pool-public")
    try:
        return PoolPublic(str(document.get("id")), key_from_text(path, document.get("public")))
    except MalformedMessage as error:
        raise KeyFileError(f"key file {path}: {error}") from error


def save_edge_keys(path: Path, keys: EdgeKeys, *, replace: bool = False) -> None:
    """Write an edge's secret key."""
    document = {"elma": "edge-secret", "edge": keys.edge, "secret": to_text(keys.secret)}
    write_document(path, document, replace=replace)


def load_edge_keys(path: Path) -> EdgeKeys:
    """Read an edge's secret key."""
    document = read_document(path, "edge-secret", secret=True)
    try:
        return EdgeKeys(str(document.get("edge")), key_from_text(path, document.get("secret")))
    except MalformedMessage as error:
        raise KeyFileError(f"key file {path}: {error}") from error


def save_edge_public(folder: Path, edge: str, public: bytes, *, replace: bool = False) -> Path:
    """Write an edge's public key into the workers' folder; returns the file."""
    path = folder / f"{check_name('edge', edge)}.json"
    document = {"elma": "edge-public", "edge": edge, "public": to_text(public)}
    make_public_folder(folder)
    write_document(path, document, replace=replace, is_public=True)
    return path


def load_edge_public(path: Path) -> tuple[str, bytes]:
    """Read an edge's name and public key."""
    document = read_document(path, "edge-public")
    edge = document.get("edge")
    if edge != path.stem:
        raise KeyFileError(f"key file {path}: names another edge than its file; rename it")
    return path.stem, key_from_text(path, document.get("public"))


def save_publisher_root(path: Path, root: SigningKey, *, replace: bool = False) -> None:
    """Write the publisher's root key, which belongs on a machine without a network."""
    document = {"elma": "publisher-root-secret", "secret": to_text(root.secret)}
    write_document(path, document, replace=replace)


def load_publisher_root(path: Path) -> SigningKey:
    """Read the publisher's root key."""
    document = read_document(path, "publisher-root-secret", secret=True)
    return SigningKey(ROOT_KEY_ID, key_from_text(path, document.get("secret")))


def save_publisher_secret(path: Path, key: SigningKey, *, replace: bool = False) -> None:
    """Write the key that signs manifests."""
    _save_signing_key(path, "publisher-secret", key, replace)


def load_publisher_secret(path: Path) -> SigningKey:
    """Read the key that signs manifests."""
    return _load_signing_key(path, "publisher-secret")


def save_rollout_secret(path: Path, key: SigningKey, *, replace: bool = False) -> None:
    """Write the key that signs rollout orders."""
    _save_signing_key(path, "rollout-secret", key, replace)


def load_rollout_secret(path: Path) -> SigningKey:
    """Read the key that signs rollout orders."""
    return _load_signing_key(path, "rollout-secret")


def save_publisher_public(path: Path, trust: PublisherTrust, *, replace: bool = False) -> None:
    """Write what everyone else needs: the root's public key and the key list that it signed."""
    document = {
        "elma": "publisher-public",
        "root": to_text(trust.root_public),
        "keys": to_text(trust.key_list.payload),
        "signature": to_text(trust.key_list.signature),
    }
    write_document(path, document, replace=replace, is_public=True)


def load_publisher_public(path: Path) -> PublisherTrust:
    """Read the publisher's public file; its list is verified against its root key."""
    document = read_document(path, "publisher-public")
    try:
        keys = bytes_from_text(path, document.get("keys"))
        signature = bytes_from_text(path, document.get("signature"))
        trust = PublisherTrust(
            key_from_text(path, document.get("root")), SignedKeyList(keys, signature)
        )
        trust.keys()
    except (MalformedMessage, SealingError) as error:
        raise KeyFileError(f"key file {path}: {error}") from error
    return trust


def describe_key_file(path: Path) -> dict[str, Any]:
    """What a key file is, without any secret: kind, names, fingerprints of the public keys."""
    kind = read_document(path, None).get("elma")
    if kind == "pool-secret":
        pool = load_pool_keys(path)
        live = [
            {"id": key_id, "fingerprint": pool.public_of(key_id).fingerprint} for key_id in pool.ids
        ]
        return {"kind": kind, "current": pool.current_id, "keys": live}
    if kind == "pool-public":
        public = load_pool_public(path)
        return {"kind": kind, "id": public.key_id, "fingerprint": public.fingerprint}
    if kind == "edge-secret":
        keys = load_edge_keys(path)
        return {"kind": kind, "edge": keys.edge, "fingerprint": keys.fingerprint}
    if kind == "edge-public":
        edge, key = load_edge_public(path)
        return {"kind": kind, "edge": edge, "fingerprint": fingerprint(key)}
    if kind == "publisher-public":
        return {"kind": kind, **describe_trust(load_publisher_public(path))}
    if kind == "publisher-root-secret":
        return {"kind": kind, "fingerprint": load_publisher_root(path).fingerprint}
    if kind in ("publisher-secret", "rollout-secret"):
        signing = _load_signing_key(path, kind)
        return {"kind": kind, "id": signing.key_id, "fingerprint": signing.fingerprint}
    raise KeyFileError(f"key file {path}: not a key file of ELMA")


def describe_trust(trust: PublisherTrust) -> dict[str, Any]:
    """Whom a publisher's public file trusts: the root, and the keys that may sign now."""
    keys = trust.keys()
    return {
        "root_fingerprint": trust.fingerprint,
        "key_list_version": keys.version,
        "keys": [
            {"id": key_id, "fingerprint": fingerprint(public)}
            for key_id, public in keys.keys.items()
        ],
        "revoked": list(keys.revoked),
    }


class EdgeFolder:
    """The edge directory that a worker uses: one file an edge, read again when it changes.

    Adding a file enrols an edge and removing it revokes the edge, without a restart. Thread-safe.
    `on_failure` hears once of a file that is there and cannot be used, and of a folder that cannot
    be looked into, until they change: whose key cannot be read is else only a stranger.
    """

    def __init__(
        self, folder: Path, on_failure: Callable[[KeyFileError], None] = lambda _error: None
    ) -> None:
        if not folder.is_dir():
            raise KeyFileError(
                f"edge directory {folder} is not a folder; make it, and put the file that "
                "`elma keys edge` wrote for each edge there"
            )
        self._folder, self._on_failure = folder, on_failure
        self._told: dict[Path, Stamp | None] = {}
        self._known: dict[str, tuple[Stamp, bytes]] = {}
        self._lock = threading.Lock()

    def public_key(self, edge: str) -> bytes:
        """The edge's public key (32 bytes). Raises UnknownEdge, or KeyFileError for a bad file."""
        path = self._folder / f"{check_name('edge', edge)}.json"
        try:
            status = path.stat()
        except OSError as error:
            with self._lock:
                self._known.pop(edge, None)
            if isinstance(error, PermissionError):
                self._tell(
                    self._folder,
                    None,
                    KeyFileError(
                        f"edge directory {self._folder} cannot be looked into: {error.strerror} to "
                        f"user {os.geteuid()}; run: chmod 755 {self._folder}"
                    ),
                )
            raise UnknownEdge(
                f"edge {edge!r} is not enrolled: there is no {path.name} in {self._folder}"
            ) from error
        stamp = stamp_of(status)
        with self._lock:
            known = self._known.get(edge)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            public = load_edge_public(path)[1]
        except KeyFileError as error:
            self._tell(path, stamp, error)
            raise
        with self._lock:
            self._known[edge] = (stamp, public)
            self._told.pop(path, None)
            self._told.pop(self._folder, None)
        return public

    def _tell(self, path: Path, stamp: Stamp | None, error: KeyFileError) -> None:
        """Once for each state of a file; there are as many as edges have been enrolled."""
        with self._lock:
            is_new = self._told.get(path, ()) != stamp
            self._told[path] = stamp
        if is_new:
            self._on_failure(error)


def _save_signing_key(path: Path, kind: str, key: SigningKey, replace: bool) -> None:
    document = {"elma": kind, "id": key.key_id, "secret": to_text(key.secret)}
    write_document(path, document, replace=replace)


def _load_signing_key(path: Path, kind: str) -> SigningKey:
    document = read_document(path, kind, secret=True)
    secret = key_from_text(path, document.get("secret"))
    try:
        return SigningKey(str(document.get("id")), secret)
    except MalformedMessage as error:
        raise KeyFileError(f"key file {path}: {error}") from error
