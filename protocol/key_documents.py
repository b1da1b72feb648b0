"""How a key file is written and read: one small JSON document, whole or not at all.

A secret is made with mode 0600, what holds public keys alone with 0644 whatever the umask is, so
that copies can be read by the services that need them. A secret file that others may read, and any
that others may write, is refused with the command that mends it. Every failure is a `KeyFileError`
that names the file and never its content. Neighbour: `key_files` says what each kind of file holds.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from protocol.credentials import excess_access
from protocol.errors import KeyFileError
from protocol.keys import KEY_BYTES

MAX_FILE_BYTES = 64 * 1024
SECRET_MODE, PUBLIC_MODE, PUBLIC_FOLDER_MODE = 0o600, 0o644, 0o755


def write_document(
    path: Path, document: dict[str, Any], *, replace: bool, is_public: bool = False
) -> None:
    """Write whole or not at all; for its owner alone from the first byte on, but what is public."""
    mode = PUBLIC_MODE if is_public else SECRET_MODE
    content = (json.dumps(document, indent=2) + "\n").encode("ascii")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
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


def make_public_folder(folder: Path) -> None:
    """A folder of public keys, which everyone who gets to it may look into."""
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            folder.chmod(PUBLIC_FOLDER_MODE)
    except OSError as error:
        raise KeyFileError(f"folder {folder} cannot be made: {error.strerror}") from error


def read_document(path: Path, kind: str | None, *, secret: bool = False) -> dict[str, Any]:
    """A key file's document, its kind (if asked) and, for a secret one, its mode checked."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_FILE_BYTES + 1)
    except PermissionError as error:
        mend = f"chmod 644 {path}" if not secret else "let its owner be the one who runs this"
        raise KeyFileError(
            f"key file {path} cannot be read: {error.strerror} to user {os.geteuid()}; {mend}"
        ) from error
    except OSError as error:
        raise KeyFileError(
            f"key file {path} cannot be read: {error.strerror}; `elma keys` makes key files"
        ) from error
    if secret and excess_access(path, mode):
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


def to_text(content: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(content).decode("ascii")


def key_from_text(path: Path, value: object) -> bytes:
    """A key of 32 bytes from base64."""
    key = bytes_from_text(path, value)
    if len(key) != KEY_BYTES:
        raise KeyFileError(f"key file {path}: a key must be {KEY_BYTES} bytes in base64")
    return key


def bytes_from_text(path: Path, value: object) -> bytes:
    """Bytes from base64."""
    if isinstance(value, str):
        with suppress(binascii.Error, ValueError):
            return base64.b64decode(value, validate=True)
    raise KeyFileError(f"key file {path}: a field is missing or not base64")
