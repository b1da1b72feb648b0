"""A key file of a running agent, read again when it changes: a rotation needs no restart.

Inputs: a file, and what reads it (`key_files.load_pool_keys` at a worker, `load_pool_public` at an
edge). Outputs: the keys of now; a call when others are read or cannot be. Neighbours: `key_files`
reads, and looks at the folder of edges' keys in the same way.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from protocol.errors import KeyFileError

Stamp = tuple[int, int, int, int]
_Keys = TypeVar("_Keys")


class LiveKeys(Generic[_Keys]):
    """What a key file holds. Thread-safe; raises KeyFileError only when it is made.

    A file that cannot be used any more, or not yet, leaves the keys that were read before;
    `on_failure` hears of it once for each such change, `on_read` of each keys that take effect.
    """

    def __init__(
        self,
        path: Path,
        load: Callable[[Path], _Keys],
        *,
        on_read: Callable[[_Keys], None],
        on_failure: Callable[[KeyFileError], None],
    ) -> None:
        self._path, self._load = path, load
        self._on_read, self._on_failure = on_read, on_failure
        self._lock = threading.Lock()
        self._stamp = _stamp_of(path)
        self._keys = load(path)

    def __call__(self) -> _Keys:
        """The keys of now."""
        with self._lock:
            stamp = _stamp_of(self._path)
            if stamp != self._stamp:
                # Noted before the file is read: one that changes meanwhile is read once more.
                self._stamp = stamp
                self._read()
            return self._keys

    def _read(self) -> None:
        try:
            keys = self._load(self._path)
        except KeyFileError as error:
            self._on_failure(error)
            return
        if keys != self._keys:
            self._keys = keys
            self._on_read(keys)


def stamp_of(status: os.stat_result) -> Stamp:
    """What changes with a file."""
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode


def _stamp_of(path: Path) -> Stamp | None:
    """None where it cannot be looked at."""
    try:
        return stamp_of(path.stat())
    except OSError:
        return None
