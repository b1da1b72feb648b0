"""Run a broker on this machine, as a child process, for as long as a `with` block lasts.

    with run_broker() as broker:
        settings = broker.settings()

`kind` "auto" takes mosquitto where it is installed and the embedded broker elsewhere. A broker is
handed out once it has answered an MQTT v5 CONNECT. `kill` and `restart` are there to rehearse a
broker that crashes: the port stays the same. Neighbours: `mosquitto` and `embedded` know their
programs; this file knows processes.
"""

from __future__ import annotations

import ipaddress
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal

from broker import embedded, mosquitto
from broker.errors import (
    BrokerMissing,
    BrokerProcessError,
    BrokerSettingsError,
    BrokerStartFailed,
)
from broker.settings import MAX_PACKET_BYTES, BrokerSettings

Kind = Literal["auto", "mosquitto", "embedded"]
READY_SECONDS = 15.0
STOP_SECONDS = 5.0
PROBE_SECONDS = 0.5
FREE_PORT_ATTEMPTS = 3
POLL_SECONDS = 0.05
LOG_NAME = "broker.log"
LOG_TAIL_CHARACTERS = 2000
_PORT_TAKEN = "Address already in use"
# CONNECT, protocol "MQTT" 5, clean start, keepalive 10, no properties, client id "elma-probe".
_PROBE = bytes([0x10, 23]) + b"\x00\x04MQTT\x05\x02\x00\x0a\x00" + b"\x00\x0aelma-probe"
_CONNACK = 0x20


def run_broker(
    kind: Kind = "auto",
    directory: Path | None = None,
    port: int = 0,
    host: str = "127.0.0.1",
    maximum_packet_bytes: int = MAX_PACKET_BYTES,
) -> RunningBroker:
    """Start a broker and return it when it answers.

    `directory` holds its configuration, data and log (a temporary one by default); `port` 0 takes
    a free one; packets over `maximum_packet_bytes` are not taken. Raises BrokerMissing,
    BrokerStartFailed, or BrokerSettingsError for an address that other machines could reach.
    """
    _must_be_loopback(host)
    chosen = _choose(kind)
    temporary = None
    if directory is None:
        temporary = tempfile.TemporaryDirectory(prefix="elma-broker-", ignore_cleanup_errors=True)
        directory = Path(temporary.name)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        broker = _start(chosen, directory.resolve(), host, port, maximum_packet_bytes)
    except OSError as error:
        raise BrokerStartFailed(f"{chosen} in {directory}: {error}") from error
    except BrokerProcessError:
        if temporary is not None:
            temporary.cleanup()
        raise
    broker.on_stop = temporary.cleanup if temporary else None
    return broker


class RunningBroker:
    """A broker process: `host`, `port`, `kind`, and power over it. Made by `run_broker`."""

    def __init__(
        self,
        kind: Literal["mosquitto", "embedded"],
        directory: Path,
        host: str,
        port: int,
        maximum_packet_bytes: int,
    ) -> None:
        self.kind = kind
        self.directory = directory
        self.host = host
        self.port = port
        self.maximum_packet_bytes = maximum_packet_bytes
        self.on_stop: Callable[[], None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begin = 0

    def settings(self) -> BrokerSettings:
        """How a client on this machine reaches it.

        The packet size stands there too, because the embedded broker does not announce it.
        """
        return BrokerSettings(
            host=self.host, port=self.port, maximum_packet_bytes=self.maximum_packet_bytes
        )

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def process_id(self) -> int | None:
        """The operating system's number for the process; None where there is none."""
        return self._process.pid if self._process is not None else None

    @property
    def _who_answers(self) -> str:
        """Whose broker it is that answers before ours was started."""
        return "another broker"

    def start(self) -> None:
        """Start the process and wait until it answers. Raises BrokerStartFailed."""
        if self.is_running:
            return
        if self._is_answering():
            raise BrokerStartFailed(
                f"port {self.port} of {self.host} is taken by {self._who_answers}; stop it, or "
                "choose another port"
            )
        command = self._command()
        with (self.directory / LOG_NAME).open("ab") as log:
            self._log_begin = log.tell()
            # Our own argument list, no shell; a session of its own, so that Ctrl-C in the terminal
            # reaches us and not the broker.
            self._process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                start_new_session=True,
            )
        self._wait_until_ready()

    def kill(self) -> None:
        """End the process at once, as a crash or a power cut would."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start again on the same port, after `kill`, or after a clean stop of the process."""
        self._end(signal.SIGTERM)
        self.start()

    def stop(self) -> None:
        """Stop the process cleanly, or by force after a while, and tidy up. Idempotent."""
        self._end(signal.SIGTERM)
        if self.on_stop is not None:
            self.on_stop()
            self.on_stop = None

    def wait(self, timeout_seconds: float) -> int | None:
        """The process's exit status once it ends by itself, or None after `timeout_seconds`."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def log_tail(self) -> str:
        """The end of what the broker has logged since it was started."""
        with suppress(OSError):
            content = (self.directory / LOG_NAME).read_bytes()[self._log_begin :]
            return content.decode("utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:].strip()
        return ""

    def __enter__(self) -> RunningBroker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _command(self) -> list[str]:
        """Write what the program reads; returns how it is started."""
        prepare = mosquitto.prepare if self.kind == "mosquitto" else embedded.prepare
        return prepare(self.directory, self.host, self.port, self.maximum_packet_bytes)

    def _is_answering(self) -> bool:
        """Whether a broker answers where this one should."""
        return _answers(self.host, self.port)

    def _wait_until_ready(self) -> None:
        process = self._process
        deadline = time.monotonic() + READY_SECONDS
        while process is not None and time.monotonic() < deadline:
            if process.poll() is not None:
                self._process = None
                log = self.log_tail()
                advice = "; another program has this port: stop it" if _PORT_TAKEN in log else ""
                raise BrokerStartFailed(
                    f"{self.kind} on {self.host}:{self.port} ended with status "
                    f"{process.returncode}{advice}; its log: {log or 'empty'}"
                )
            if self._is_answering():
                return
            time.sleep(POLL_SECONDS)
        self._end(signal.SIGKILL)
        raise BrokerStartFailed(
            f"{self.kind} on {self.host}:{self.port} did not answer within {READY_SECONDS:g} "
            f"seconds; its log: {self.log_tail() or 'empty'}"
        )

    def _end(self, how: signal.Signals) -> None:
        """Signal the process, wait, and kill it if it does not go."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)


def _start(
    kind: Literal["mosquitto", "embedded"],
    directory: Path,
    host: str,
    port: int,
    maximum_packet_bytes: int,
) -> RunningBroker:
    """Start on `port`; for port 0 on a free one, and on another when that was taken meanwhile."""
    attempts = 1 if port else FREE_PORT_ATTEMPTS
    while True:
        attempts -= 1
        chosen_port = port or _free_port(host)
        broker = RunningBroker(kind, directory, host, chosen_port, maximum_packet_bytes)
        try:
            broker.start()
        except BrokerStartFailed:
            if attempts == 0:
                raise
        else:
            return broker


def _choose(kind: Kind) -> Literal["mosquitto", "embedded"]:
    if kind != "auto":
        return kind
    if mosquitto.find_mosquitto() is not None:
        return "mosquitto"
    if embedded.is_installed():
        return "embedded"
    raise BrokerMissing(
        "there is no broker on this machine; run `apt-get install mosquitto`, "
        "or `pip install 'elma-qa[embedded-broker]'`"
    )


def _must_be_loopback(host: str) -> None:
    """These brokers ask nobody for a password, so only this machine may reach them."""
    with suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    raise BrokerSettingsError(
        f"host {host!r}: a broker without accounts listens on a loopback address only, "
        "such as 127.0.0.1"
    )


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _answers(host: str, port: int) -> bool:
    """Whether an MQTT v5 broker answers a CONNECT there."""
    try:
        with socket.create_connection((host, port), timeout=PROBE_SECONDS) as connection:
            connection.sendall(_PROBE)
            reply = connection.recv(1)
            if reply[:1] != bytes([_CONNACK]):
                return False
            connection.sendall(b"\xe0\x00")  # DISCONNECT
            return True
    except OSError:
        return False
