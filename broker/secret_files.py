"""Files of a secured broker and of its members: written whole, secrets for their owner only.

Inputs: paths and bytes. Every failure is an `EnrolmentError` that names the file, never its
content. Neighbours: `secured` and `elma.bundles` write with it.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from errno import ELOOP
from pathlib import Path

from broker.errors import EnrolmentError

SECRET_MODE = 0o600
PUBLIC_MODE = 0o644
MAX_FILE_BYTES = 64 * 1024 * 1024


def write_file(path: Path, content: bytes, *, mode: int = PUBLIC_MODE) -> None:
    """Write `path` whole or not at all; a file that is replaced keeps its owner."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                with suppress(FileNotFoundError):
                    owner = path.stat()
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
    except OSError as error:
        raise EnrolmentError(f"cannot write {path}: {error.strerror}") from error


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read."""
    write_file(path, content, mode=SECRET_MODE)


def read_file(path: Path, *, follow_links: bool = True) -> bytes:
    """A plain file's content, if it is of a reasonable size.

    Without `follow_links` a symbolic link is refused: somebody else may have made it, and who reads
    may be root.
    """
    return _read(path, follow_links)[0]


def read_secret(path: Path, *, follow_links: bool = True) -> bytes:
    """A secret file's content; one that others may read is refused, with the command that helps."""
    content, mode = _read(path, follow_links)
    if mode & 0o077:
        raise EnrolmentError(
            f"{path} is open to other users (mode {mode:04o}); run: chmod 600 {path}"
        )
    return content


def _read(path: Path, follow_links: bool) -> tuple[bytes, int]:
    """The content and the mode of one and the same file."""
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise EnrolmentError(f"{path} is no plain file")
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = "it is a link, and is not followed" if error.errno == ELOOP else error.strerror
        raise EnrolmentError(f"cannot read {path}: {reason}") from error
    if len(content) > MAX_FILE_BYTES:
        raise EnrolmentError(f"{path} holds over {MAX_FILE_BYTES} bytes")
    return content, stat.S_IMODE(mode)


def make_folder(path: Path, *, mode: int = 0o700) -> None:
    """A folder and those above it; its own mode is set where it is made."""
    try:
        if not path.is_dir():
            path.mkdir(parents=True, mode=mode)
            path.chmod(mode)
    except OSError as error:
        raise EnrolmentError(f"cannot make the folder {path}: {error.strerror}") from error
