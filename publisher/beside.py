"""What the rollout service hears, told to commands on the same machine, so that they need no
connection of their own.

    RolloutService -- {store}/{channel}/service.sock --> hear_service

In: the service's `Line`. Out: its picture of the fleet as one JSON document for each that connects,
and then the end. Neighbours: `service` serves it; `elma rollout`, `elma releases` and
`elma publish` ask, for an account at the broker is one connection: whoever comes second throws the
first one out.

The socket is the owner's only. A lock beside it, held as long as the service lives, keeps a second
service from the same channel and says after a crash that nobody is there.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from broker.log import SafeLog
from protocol.errors import ProtocolError
from protocol.manifest import SignedManifest
from protocol.release_messages import ModelState, SignedRollout, WorkerReleases
from publisher.errors import PublisherStoreError, StoreBusy
from publisher.fleet import Fleet
from publisher.line import Line
from publisher.settings import PublisherSettings, RolloutSettings

SOCKET_FILE = "service.sock"
LOCK_FILE = "service.lock"
ANSWER_SECONDS = 10.0
MAX_DOCUMENT_BYTES = 256 * 1024 * 1024
_ACCEPT_SECONDS = 0.5
_WAITING = 8
_log = SafeLog("elma.publisher")


@dataclass(frozen=True)
class Heard:
    """What the service of this machine knows. `address`: its broker; `account`: its name there
    (None: it has none, so it is in nobody's way); `is_connected`: the picture is what the broker
    says now, else it is what it said last, and `failure` is why."""

    pid: int
    address: str
    account: str | None
    is_connected: bool
    failure: str
    fleet: Fleet
    rollout: RolloutSettings


def account_of(settings: PublisherSettings) -> str | None:
    """The one name under which the broker knows whoever connects with these settings."""
    if settings.broker.username is not None:
        return settings.broker.username
    return settings.name if settings.broker.tls_certificate_file is not None else None


class RolloutService:
    """Answers while the block lasts. Raises StoreBusy where another service steers the channel."""

    def __init__(self, settings: PublisherSettings, line: Line) -> None:
        self._settings, self._line = settings, line
        self._folder = settings.store / settings.channel
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="elma-beside", daemon=True)

    def __enter__(self) -> RolloutService:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self._folder / LOCK_FILE)
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(_ACCEPT_SECONDS)
            with _near(self._folder) as path:
                path.unlink(missing_ok=True)  # of one that was killed
                self._socket.bind(str(path))
                path.chmod(0o600)
            self._socket.listen(_WAITING)
        except OSError as error:
            raise PublisherStoreError(f"{self._folder} cannot be used: {error.strerror}") from error
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join(ANSWER_SECONDS)
        self._socket.close()
        with suppress(OSError):
            (self._folder / SOCKET_FILE).unlink()
        os.close(self._lock)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            except OSError:
                _log.exception("service_socket_failed", channel=self._settings.channel)
                self._stopping.wait(_ACCEPT_SECONDS)
                continue
            with connection, suppress(OSError):  # who asked has gone
                connection.settimeout(ANSWER_SECONDS)
                connection.sendall(json.dumps(self._document()).encode())

    def _document(self) -> dict[str, Any]:
        failure = self._line.session.failure
        return {
            "pid": os.getpid(),
            "address": self._settings.broker.address,
            "account": account_of(self._settings),
            "is_connected": self._line.is_complete,
            "failure": str(failure) if failure is not None else "",
            "rollout": self._settings.rollout.model_dump(),
            "fleet": _encode_fleet(self._line.view.picture()),
        }


def hear_service(store: Path, channel: str) -> Heard | None:
    """What the service that steers a channel from this store says; None where none runs here.

    Raises PublisherStoreError for one that may not be asked or does not answer.
    """
    folder = store / channel
    if not (folder / SOCKET_FILE).exists():
        return None
    try:
        with _near(folder) as path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(ANSWER_SECONDS)
            asking.connect(str(path))
            return _decode(_read(asking))
    except (ConnectionRefusedError, FileNotFoundError):
        return None  # it was killed
    except OSError as error:
        raise PublisherStoreError(
            f"the rollout service at {folder / SOCKET_FILE} cannot be asked: "
            f"{error.strerror or error}; run this command as the user that it runs as"
        ) from error
    except (KeyError, ValueError, TypeError, ProtocolError) as error:
        raise PublisherStoreError(
            f"the rollout service at {folder / SOCKET_FILE} speaks otherwise than this command "
            f"({error!r}); restart it, it may be of another version"
        ) from error


def _locked(path: Path) -> int:
    """The descriptor of a lock that is ours until it is closed. Raises StoreBusy, OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StoreBusy(
            f"a rollout service steers channel {path.parent.name} of {path.parent.parent} already; "
            "stop that one first"
        ) from error
    return descriptor


@contextmanager
def _near(folder: Path) -> Iterator[Path]:
    """The socket's path by way of its open folder: a socket's address has room for 107 bytes."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}") / SOCKET_FILE
    finally:
        os.close(descriptor)


def _read(asking: socket.socket) -> bytes:
    content, end = bytearray(), time.monotonic() + 3 * ANSWER_SECONDS
    while block := asking.recv(1 << 20):
        content += block
        if len(content) > MAX_DOCUMENT_BYTES or time.monotonic() > end:
            raise ValueError("it does not come to an end")
    return bytes(content)


def _encode_fleet(fleet: Fleet) -> dict[str, Any]:
    return {
        "manifest": None if fleet.manifest is None else _text(fleet.manifest.encode()),
        "order": None if fleet.order is None else _text(fleet.order.encode()),
        "edges": {name: _text(one.encode()) for name, one in fleet.edges.items()},
        "workers": {name: _text(one.encode()) for name, one in fleet.workers.items()},
        "present": {role: sorted(names) for role, names in fleet.present.items()},
    }


def _decode(content: bytes) -> Heard:
    document = json.loads(content)
    fleet = document["fleet"]
    manifest, order = fleet["manifest"], fleet["order"]
    return Heard(
        document["pid"],
        document["address"],
        document["account"],
        document["is_connected"],
        document["failure"],
        Fleet(
            None if manifest is None else SignedManifest.decode(_bytes(manifest)),
            None if order is None else SignedRollout.decode(_bytes(order)),
            {name: ModelState.decode(_bytes(one)) for name, one in fleet["edges"].items()},
            {name: WorkerReleases.decode(_bytes(one)) for name, one in fleet["workers"].items()},
            {role: frozenset(names) for role, names in fleet["present"].items()},
        ),
        RolloutSettings(**document["rollout"]),
    )


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)
