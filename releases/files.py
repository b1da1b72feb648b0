"""Files that survive: written beside, synced, renamed, and the folder synced after it.

In: bytes. Out: a file that is either the old one or the new one, whenever the power goes. A full
disk becomes `NotEnoughSpace`, everything else `StoreError`. Neighbours: `store`, `chunk_folder` and
`assembly` write through here.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from releases.errors import NotEnoughSpace, StoreError

PARTIAL_SUFFIX = ".partial"
MAX_JSON_BYTES = 4 * 1024 * 1024
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn an OSError into `NotEnoughSpace` or `StoreError` that names `what`."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise NotEnoughSpace(
                f"{what}: {error.strerror}; free some space, it goes on by itself"
            ) from error
        raise StoreError(f"{what}: {error.strerror or error}; check the folder's rights") from error


def write_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Put `content` at `path` in one step; `durable` also waits until the disk has it."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with translated(f"{path} cannot be written"):
        try:
            with partial.open("wb") as stream:
                stream.write(content)
                if durable:
                    stream.flush()
                    os.fsync(stream.fileno())
            partial.replace(path)
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        if durable:
            sync_folder(path.parent)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Put a JSON document at `path` in one durable step."""
    write_file(path, (json.dumps(document, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The document at `path`, None where there is no file; raises StoreError for a broken one."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is no JSON: {error}; restore it or enrol anew") from error
    if not isinstance(document, dict):
        raise StoreError(f"{path} holds no JSON object; restore it or enrol anew")
    return document


def sync_folder(folder: Path) -> None:
    """Wait until the disk knows the names in `folder`; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove a file or folder as far as possible; what stays is removed the next time."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
