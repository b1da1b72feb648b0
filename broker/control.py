"""Adds members to a secured broker and takes them away: while it runs, or in its file.

    with open_access(folder) as access:
        access.add(Member("edge", "kitchen"))
        access.remove(Member("edge", "kitchen"))

A running broker is told over `$CONTROL/dynamic-security/v1`, as the operator, and nobody else's
connection is touched; of one that is down, `dynamic-security.json` is changed. One operator at a
time: a second one waits for the first. Neighbours: `roles` says what is told, `enrolment` when.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from broker.errors import BrokerError, EnrolmentError
from broker.exchange import Outcome, Publication, Subscription
from broker.roles import CONTROL_RESPONSE_TOPIC, CONTROL_TOPIC, Member, client_of, role_of
from broker.secret_files import read_secret, write_secret
from broker.secured import OPERATOR, SecuredFolder
from broker.session import Session

CONNECT_SECONDS = 10.0
REPLY_SECONDS = 10.0
LOCK_SECONDS = 30.0
PROBE_SECONDS = 2.0
POLL_SECONDS = 0.1


class Access(Protocol):
    """What can be done to the rights at a broker."""

    is_running: bool
    """Whether it takes effect now; else when the broker starts."""

    def add(self, member: Member) -> None:
        """Let a member do what its role allows. Raises EnrolmentError when it is there already."""

    def remove(self, member: Member) -> bool:
        """Take all rights away and disconnect it; whether it was there."""

    def disconnect(self, member: Member) -> None:
        """End its connection, if there is one; it may come back."""

    def clear(self, topics: tuple[str, ...]) -> None:
        """Delete what is retained under these topics, where the broker runs."""


@contextmanager
def open_access(folder: SecuredFolder, host: str | None = None) -> Iterator[Access]:
    """The running broker, reached at `host` (by default where the folder says), or its file.

    Raises EnrolmentError when the broker runs and cannot be reached.
    """
    with one_at_a_time(folder):
        if _listens(host or folder.control_host, folder.port):
            with _connect(folder, host) as session:
                yield RunningAccess(session)
            return
        if host is not None or process_id(folder) is not None:
            where = f"{host or folder.control_host}:{folder.port}"
            raise EnrolmentError(
                f"the broker runs but cannot be reached at {where}, and only it may change its own "
                "file; check --broker-host, or stop it first"
            )
        if folder.process_id_file.exists():
            raise EnrolmentError(
                f"a broker may run with this folder elsewhere, as in another container: name it by "
                f"--broker-host; where it was killed, start it once, or remove "
                f"{folder.process_id_file}"
            )
        yield StoppedAccess(folder)


def process_id(folder: SecuredFolder) -> int | None:
    """The running broker's process id; None where it does not run on this machine."""
    with suppress(OSError, ValueError):
        number = int(folder.process_id_file.read_text(encoding="ascii"))
        # A broker that was killed leaves the file behind, and its number goes to somebody else.
        command = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")[0]
        return number if command.endswith(b"mosquitto") else None
    return None


def tell_to_read(folder: SecuredFolder) -> bool:
    """SIGHUP to a broker of this machine, which reads certificates and list again; whether there
    was one that we may signal."""
    number = process_id(folder)
    if number is None:
        return False
    with suppress(OSError):
        os.kill(number, signal.SIGHUP)
        return True
    return False


@contextmanager
def one_at_a_time(folder: SecuredFolder) -> Iterator[None]:
    """For whoever changes the folder; two operators at once would also disconnect each other, as
    they share a client id."""
    end = time.monotonic() + LOCK_SECONDS
    try:
        descriptor = os.open(folder.path / "operator" / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise EnrolmentError(
            f"cannot use {folder.path / 'operator'}: {error.strerror}; "
            "run this as the user who made the folder"
        ) from error
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise EnrolmentError(
                        f"another `elma enroll`, `renew` or `revoke` works on {folder.path}; "
                        "try again when it is done"
                    ) from None
                time.sleep(POLL_SECONDS)
        yield


class RunningAccess:
    """Commands to the plugin of a running broker, one at a time."""

    is_running = True

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, member: Member) -> None:
        """Make role and client."""
        # What an interrupted enrolment has left behind is a role without a client.
        if self._command("getClient", username=member.identity) is None:
            raise EnrolmentError(f"{member.identity} is enrolled already; `elma revoke` it first")
        self._command("deleteRole", rolename=member.identity)
        for words in ({"command": "createRole", **role_of(member)}, _create_client(member)):
            failure = self._command(**words)
            if failure is not None:
                raise EnrolmentError(f"the broker did not enrol {member.identity}: {failure}")

    def remove(self, member: Member) -> bool:
        """Delete the client, which disconnects it, and the role."""
        was_there = self._command("getClient", username=member.identity) is None
        if was_there:
            failure = self._command("deleteClient", username=member.identity)
            if failure is not None:
                raise EnrolmentError(f"the broker did not revoke {member.identity}: {failure}")
        self._command("deleteRole", rolename=member.identity)
        return was_there

    def disconnect(self, member: Member) -> None:
        """Disable the client, which disconnects it, and enable it again."""
        for command in ("disableClient", "enableClient"):
            failure = self._command(command, username=member.identity)
            if failure is not None:
                raise EnrolmentError(f"{command} {member.identity}: the broker says {failure}")

    def clear(self, topics: tuple[str, ...]) -> None:
        """Publish an empty retained message on each."""
        for topic in topics:
            receipt = self._session.publish(Publication(topic, b"", retain=True))
            if receipt.wait(REPLY_SECONDS) in (Outcome.PENDING, Outcome.REFUSED, Outcome.LOST):
                raise EnrolmentError(
                    f"the broker did not clear {topic}: {receipt.reason or 'silent'}"
                )

    def _command(self, command: str, **words: Any) -> str | None:
        """Run one command; the plugin's own words when it fails. Raises EnrolmentError."""
        label = secrets.token_hex(8)
        content = {"commands": [{"command": command, "correlationData": label, **words}]}
        try:
            receipt = self._session.publish(
                Publication(CONTROL_TOPIC, json.dumps(content).encode())
            )
        except BrokerError as error:
            raise EnrolmentError(f"{command} did not reach the broker: {error}") from error
        end = time.monotonic() + REPLY_SECONDS
        while time.monotonic() < end:
            if receipt.outcome is Outcome.REFUSED:
                raise EnrolmentError(
                    f"the broker refuses {command}: {receipt.reason}; "
                    "is the operator's certificate the one of this broker?"
                )
            delivery = self._session.receive(POLL_SECONDS)
            if delivery is None:
                continue
            self._session.acknowledge(delivery)
            for response in _responses(delivery.payload):
                if response.get("correlationData") == label:
                    error_text = response.get("error")
                    return None if error_text is None else str(error_text)
        raise EnrolmentError(f"the broker did not answer {command} in {REPLY_SECONDS:g} seconds")


class StoppedAccess:
    """The file of a broker that does not run: each change is written at once."""

    is_running = False

    def __init__(self, folder: SecuredFolder) -> None:
        self._file = folder.access_file

    def add(self, member: Member) -> None:
        """Put role and client into the file."""
        document = self._read()
        if any(one.get("username") == member.identity for one in document["clients"]):
            raise EnrolmentError(f"{member.identity} is enrolled already; `elma revoke` it first")
        _take_out(document, member)
        document["roles"].append(role_of(member))
        document["clients"].append(client_of(member))
        self._write(document)

    def remove(self, member: Member) -> bool:
        """Take role and client out of the file."""
        document = self._read()
        was_there = _take_out(document, member)
        self._write(document)
        return was_there

    def disconnect(self, member: Member) -> None:
        """Nothing: nobody is connected."""

    def clear(self, topics: tuple[str, ...]) -> None:
        """Nothing: what is retained stays until someone overwrites it."""

    def _read(self) -> dict[str, Any]:
        try:
            document = json.loads(read_secret(self._file))
            if not isinstance(document["clients"], list) or not isinstance(document["roles"], list):
                raise TypeError("clients and roles must be lists")
        except (ValueError, KeyError, TypeError) as error:
            raise EnrolmentError(f"{self._file} is damaged: {error}") from error
        else:
            return dict(document)

    def _write(self, document: dict[str, Any]) -> None:
        write_secret(self._file, json.dumps(document, indent=1).encode())


def _create_client(member: Member) -> dict[str, Any]:
    return {"command": "createClient", **client_of(member)}


def _take_out(document: dict[str, Any], member: Member) -> bool:
    """Remove the member's client and role; whether there was a client."""
    before = len(document["clients"])
    kept = [one for one in document["clients"] if one.get("username") != member.identity]
    document["clients"] = kept
    document["roles"] = [one for one in document["roles"] if one.get("rolename") != member.identity]
    return len(kept) < before


def _responses(payload: bytes) -> list[dict[str, Any]]:
    """What the plugin has answered; anything unreadable is nothing."""
    with suppress(ValueError, KeyError, TypeError):
        return [one for one in json.loads(payload)["responses"] if isinstance(one, dict)]
    return []


@contextmanager
def _connect(folder: SecuredFolder, host: str | None) -> Iterator[Session]:
    """A session of the operator that hears the plugin's answers."""
    settings = folder.operator_settings(host)
    session = Session(
        settings, OPERATOR.identity, subscriptions=[Subscription(CONTROL_RESPONSE_TOPIC)]
    )
    with session:
        if not session.wait_connected(CONNECT_SECONDS):
            raise EnrolmentError(
                f"the broker at {settings.address} runs, but does not take its operator: "
                f"{session.failure or 'no answer'}"
            )
        yield session


def _listens(host: str, port: int) -> bool:
    """Whether anything accepts a connection there; refused means that the broker is down."""
    try:
        with socket.create_connection((host, port), timeout=PROBE_SECONDS):
            return True
    except OSError:
        return False
