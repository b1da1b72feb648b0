"""Which access others may have to a secret file: none, but for a credential of systemd.

Inputs: a file's path and mode, and `$CREDENTIALS_DIRECTORY`, which systemd sets for a unit with
`LoadCredential=`. Output: the bits of the mode that are too much. Neighbours: `key_documents` and
`broker.settings` refuse a secret file by it.

systemd lends a credential to a unit's user by an access control list, where the file system has
them. The file then shows mode 0440 and belongs to root: the group's bits are the list's mask, and
nobody else is on the list. So directly below that folder, and nowhere else, the group may read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

FOLDER_VARIABLE = "CREDENTIALS_DIRECTORY"
_ALL_OF_OTHERS = 0o077
_ALL_BUT_READING_BY_THE_GROUP = 0o037


def excess_access(path: Path, mode: int, environment: Mapping[str, str] = os.environ) -> int:
    """The bits of `mode` that a secret file at `path` must not have; 0 when it is private."""
    forbidden = _ALL_BUT_READING_BY_THE_GROUP if _is_lent(path, environment) else _ALL_OF_OTHERS
    return mode & forbidden


def _is_lent(path: Path, environment: Mapping[str, str]) -> bool:
    """Whether it lies in the folder itself; a link that leads out of it does not."""
    folder = environment.get(FOLDER_VARIABLE)
    if not folder or not Path(folder).is_absolute():
        return False
    return path.resolve().parent == Path(folder).resolve()
