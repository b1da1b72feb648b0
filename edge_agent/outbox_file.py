"""The file under the outbox: refused or opened, its format checked, its errors translated.

Input: a path from the settings. Output: a SQLite connection that holds the file for this process.
Neighbour: `outbox`, which reads and writes its rows.

Nothing is changed before it is known to be ours: a folder, a link, a device, or the database of
another program is refused as it stands, with its mode untouched.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_agent.errors import OutboxDamaged, OutboxError, OutboxInUse

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE questions (
    request_id       TEXT PRIMARY KEY,
    fingerprint      BLOB NOT NULL,
    question         TEXT,              -- NULL once concluded
    passage          TEXT,              -- NULL once concluded
    top_k            INTEGER NOT NULL,
    deadline_seconds REAL NOT NULL,
    created          REAL NOT NULL,     -- unix seconds
    generation       INTEGER NOT NULL,  -- restarts whose reading of it never came to an end
    outcome          TEXT,              -- JSON; NULL while pending
    concluded        REAL               -- unix seconds; NULL while pending
) STRICT;
CREATE INDEX pending ON questions (created) WHERE concluded IS NULL;
CREATE INDEX concluded ON questions (concluded) WHERE concluded IS NOT NULL;
"""


def open_outbox_file(path: Path) -> sqlite3.Connection:
    """Open or create the file, for its owner only, with the lock of this process on it.

    Raises OutboxError when it cannot be used or is not an outbox, OutboxInUse, OutboxDamaged.
    """
    _make_or_refuse(path)
    with translated(path):
        connection = sqlite3.connect(
            path, timeout=0.5, isolation_level=None, check_same_thread=False
        )
        try:
            # EXCLUSIVE: SQLite itself keeps a second agent out, and lets go when we are killed.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            is_new = _check_format(connection, path)
            _make_private(path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
            if is_new:
                connection.executescript(
                    f"BEGIN EXCLUSIVE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                )
        except BaseException:
            connection.close()
            raise
    return connection


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours, once."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise OutboxInUse(
                f"outbox {path} belongs to another running agent; stop it or set another `outbox`"
            ) from error
        raise OutboxError(
            f"outbox {path} cannot be used ({error}); check the disk and its free space"
        ) from error
    except sqlite3.Error as error:
        raise _damaged(path, str(error)) from error


def _make_or_refuse(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise _unusable(path, error) from error
    if mode is not None and not stat.S_ISREG(mode):
        raise OutboxError(
            f"outbox {path} is a folder, a link or a device; set `outbox` to a file of its own"
        )
    if mode is None:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError as error:
            raise _unusable(path, error) from error


def _check_format(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the file is empty and gets our tables now; an error when it is not ours or broken."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    tables = {
        str(row[0])
        for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    }
    if version not in (0, SCHEMA_VERSION):
        raise OutboxError(
            f"outbox {path} has format {version}, this agent writes {SCHEMA_VERSION}; "
            "move the file away or run the version that wrote it"
        )
    if tables != ({"questions"} if version else set()):
        raise OutboxError(
            f"outbox {path} is the database of another program; set `outbox` to a file of its own"
        )
    if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise _damaged(path, "its pages do not fit together")
    return version == 0


def _make_private(path: Path) -> None:
    try:
        # By name: closing a second descriptor would drop SQLite's lock on the file.
        path.chmod(0o600)
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> OutboxError:
    return OutboxError(
        f"outbox {path} cannot be opened ({error.strerror}); "
        "set `outbox` to a file in a folder that the agent may write"
    )


def _damaged(path: Path, what: str) -> OutboxDamaged:
    return OutboxDamaged(
        f"outbox {path} is damaged or closed ({what}); move it away to start a new one"
    )
