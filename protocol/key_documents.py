"""How a key file is written and read: one small JSON document, whole or not at all.

Made with mode 0600; a secret file that others may read, and any that others may write, is refused
with the command that mends it. Every failure is a `KeyFileError` that names the file and never its
content. Neighbour: `key_files` says what each kind of file holds.
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


def write_document(path: Path, document: dict[str, Any], *, replace: bool) -> None:
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


def read_document(path: Path, kind: str | None, *, secret: bool = False) -> dict[str, Any]:
    """A key file's document, its kind (if asked) and, for a secret one, its mode checked."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_FILE_BYTES + 1)
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
