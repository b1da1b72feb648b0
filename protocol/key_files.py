"""Key files: small JSON documents, readable by their owner only.

    pool-secret.json    for the workers      {"elma": "pool-secret", "keys": [{"id", "secret"}]}
    pool-public.json    for the edges        {"elma": "pool-public", "id", "public"}
    edge-secret.json    for one edge         {"elma": "edge-secret", "edge", "secret"}
    edges/NAME.json     for the workers      {"elma": "edge-public", "edge", "public"}

Keys are base64. Every file is made with mode 0600; a secret one that others may read, and any that
others may write, is refused with the command that mends it. Saving never replaces a file unless
told to. Every failure is a `KeyFileError` that names the file and never its content. Neighbour:
`keys` holds what is read.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from protocol.checks import check_name
from protocol.errors import KeyFileError, MalformedMessage, SealingError, UnknownEdge
from protocol.keys import KEY_BYTES, EdgeKeys, PoolKeys, PoolPublic, fingerprint

MAX_FILE_BYTES = 64 * 1024
POOL_SECRET_NAME = "pool-secret.json"  # noqa: S105 -- a file's name
POOL_PUBLIC_NAME = "pool-public.json"
EDGE_SECRET_NAME = "edge-secret.json"  # noqa: S105 -- a file's name
EDGES_FOLDER_NAME = "edges"
_Stamp = tuple[int, int, int, int]


def save_pool_keys(path: Path, keys: PoolKeys, *, replace: bool = False) -> None:
    """Write the pool's secret keys, oldest first."""
    entries = [{"id": key_id, "secret": _encode(keys.secret_of(key_id))} for key_id in keys.ids]
    _write(path, {"elma": "pool-secret", "keys": entries}, replace=replace)


def load_pool_keys(path: Path) -> PoolKeys:
    """Read the pool's secret keys."""
    document = _read(path, "pool-secret", secret=True)
    entries = document.get("keys")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise KeyFileError(f"key file {path}: 'keys' must be a list of id and secret")
    secrets = {str(entry.get("id")): _decode(path, entry.get("secret")) for entry in entries}
    if len(secrets) != len(entries):
        raise KeyFileError(f"key file {path}: an id stands there twice")
    try:
        return PoolKeys(secrets)
    except (MalformedMessage, SealingError) as error:
        raise KeyFileError(f"key file {path}: {error}") from error


def save_pool_public(path: Path, public: PoolPublic, *, replace: bool = False) -> None:
    """Write the pool's current public key."""
    document = {"elma": "pool-public", "id": public.key_id, "public": _encode(public.public)}
    _write(path, document, replace=replace)


def load_pool_public(path: Path) -> PoolPublic:
    """Read the pool's public key."""
    document = _read(path, "pool-public")
    try:
        return PoolPublic(str(document.get("id")), _decode(path, document.get("public")))
    except MalformedMessage as error:
        raise KeyFileError(f"key file {path}: {error}") from error


def save_edge_keys(path: Path, keys: EdgeKeys, *, replace: bool = False) -> None:
    """Write an edge's secret key."""
    document = {"elma": "edge-secret", "edge": keys.edge, "secret": _encode(keys.secret)}
    _write(path, document, replace=replace)


def load_edge_keys(path: Path) -> EdgeKeys:
    """Read an edge's secret key."""
    document = _read(path, "edge-secret", secret=True)
    try:
        return EdgeKeys(str(document.get("edge")), _decode(path, document.get("secret")))
    except MalformedMessage as error:
        raise KeyFileError(f"key file {path}: {error}") from error


def save_edge_public(folder: Path, edge: str, public: bytes, *, replace: bool = False) -> Path:
    """Write an edge's public key into the workers' folder; returns the file."""
    path = folder / f"{check_name('edge', edge)}.json"
    document = {"elma": "edge-public", "edge": edge, "public": _encode(public)}
    _write(path, document, replace=replace)
    return path


def load_edge_public(path: Path) -> tuple[str, bytes]:
    """Read an edge's name and public key."""
    document = _read(path, "edge-public")
    edge = document.get("edge")
    if edge != path.stem:
        raise KeyFileError(f"key file {path}: names another edge than its file; rename it")
    return path.stem, _decode(path, document.get("public"))


def describe_key_file(path: Path) -> dict[str, Any]:
    """What a key file is, without any secret: kind, names, fingerprints of the public keys."""
    kind = _read(path, None).get("elma")
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
    raise KeyFileError(f"key file {path}: not a key file of ELMA")


class EdgeFolder:
    """The edge directory that a worker uses: one file an edge, read again when it changes.

    Adding a file enrols an edge and removing it revokes the edge, without a restart. Thread-safe.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise KeyFileError(
                f"edge directory {folder} is not a folder; make it, and put the file that "
                "`elma keys edge` wrote for each edge there"
            )
        self._folder = folder
        self._known: dict[str, tuple[_Stamp, bytes]] = {}
        self._lock = threading.Lock()

    def public_key(self, edge: str) -> bytes:
        """The edge's public key (32 bytes). Raises UnknownEdge, or KeyFileError for a bad file."""
        path = self._folder / f"{check_name('edge', edge)}.json"
        try:
            status = path.stat()
        except OSError as error:
            with self._lock:
                self._known.pop(edge, None)
            raise UnknownEdge(
                f"edge {edge!r} is not enrolled: there is no {path.name} in {self._folder}"
            ) from error
        stamp = _stamp(status)
        with self._lock:
            known = self._known.get(edge)
        if known is not None and known[0] == stamp:
            return known[1]
        public = load_edge_public(path)[1]
        with self._lock:
            self._known[edge] = (stamp, public)
        return public


class PoolKeyFile:
    """The pool's keys as a worker uses them: read again when their file changes. Thread-safe.

    So a rotation needs no restart. A file that cannot be used any more leaves the keys that were
    read before; `failure` says why.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp = _stamp_of(path)
        self._keys = load_pool_keys(path)
        self.failure: KeyFileError | None = None

    def keys(self) -> PoolKeys:
        """The keys of now; raises nothing."""
        with self._lock:
            stamp = _stamp_of(self._path)
            if stamp != self._stamp:
                # Noted before the file is read: one that changes meanwhile is read once more.
                self._stamp = stamp
                try:
                    self._keys, self.failure = load_pool_keys(self._path), None
                except KeyFileError as error:
                    self.failure = error
            return self._keys


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode


def _stamp_of(path: Path) -> _Stamp | None:
    """What changes with a file; None when it cannot be looked at."""
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def _write(path: Path, document: dict[str, Any], *, replace: bool) -> None:
    """Write with mode 0600 from the first byte on, whole or not at all."""
    content = (json.dumps(document, indent=2) + "\n").encode("ascii")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.replace(path)
            else:
                path.hardlink_to(temporary)  # fails where the file exists
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
    except FileExistsError as error:
        raise KeyFileError(
            f"key file {path} exists and is not overwritten; choose another folder or move it away"
        ) from error
    except OSError as error:
        raise KeyFileError(f"key file {path} cannot be written: {error.strerror}") from error


def _read(path: Path, kind: str | None, *, secret: bool = False) -> dict[str, Any]:
    """A key file's document, its kind (if asked) and, for a secret one, its mode checked."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(
            f"key file {path} cannot be read: {error.strerror}; `elma keys` makes key files"
        ) from error
    if secret and mode & 0o077:
        raise KeyFileError(
            f"key file {path} is open to other users (mode {mode:04o}); run: chmod 600 {path}"
        )
    if mode & 0o022:
        raise KeyFileError(
            f"key file {path} can be changed by other users (mode {mode:04o}), who could put their "
            f"own key there; run: chmod go-w {path}"
        )
    if len(content) > MAX_FILE_BYTES:
        raise KeyFileError(f"key file {path} holds over {MAX_FILE_BYTES} bytes")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        # Not chained: the parser's error holds the file's content.
        raise KeyFileError(f"key file {path}: not JSON ({type(error).__name__})") from None
    if not isinstance(document, dict):
        raise KeyFileError(f"key file {path}: not a key file of ELMA")
    if kind is not None and document.get("elma") != kind:
        raise KeyFileError(f"key file {path}: expected a {kind} file")
    return document


def _encode(key: bytes) -> str:
    return base64.b64encode(key).decode("ascii")


def _decode(path: Path, value: object) -> bytes:
    """A key of 32 bytes from base64."""
    key = b""
    if isinstance(value, str):
        with suppress(binascii.Error, ValueError):
            key = base64.b64decode(value, validate=True)
    if len(key) != KEY_BYTES:
        raise KeyFileError(f"key file {path}: a key must be {KEY_BYTES} bytes in base64")
    return key
