"""mosquitto on this machine: writes its configuration and says how to run it.

Input: a directory, a loopback address, a port. Output: `mosquitto.conf` in that directory and the
command. The set-up is for one machine: no TLS, no accounts, hence loopback only. Each section of
the file has its own function; `mosquitto_files` shares those that a secured broker has as well.
`run` starts the command and keeps the process.
"""

from __future__ import annotations

import getpass
import os
import shutil
from pathlib import Path

from broker.errors import BrokerMissing
from broker.settings import MAX_PACKET_BYTES

CONFIGURATION_NAME = "mosquitto.conf"
MAX_IN_FLIGHT = 1000
MAX_QUEUED_MESSAGES = 10_000
MAX_QUEUED_BYTES = 256 * 1024 * 1024
AUTOSAVE_SECONDS = 10
# Debian installs it where only root's PATH looks.
_EXTRA_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")


def find_mosquitto() -> Path | None:
    """The mosquitto program, or None where it is not installed."""
    search = os.pathsep.join((os.environ.get("PATH", ""), *_EXTRA_FOLDERS))
    found = shutil.which("mosquitto", path=search)
    return Path(found) if found else None


def prepare(directory: Path, host: str, port: int, maximum_packet_bytes: int) -> list[str]:
    """Write the configuration to `directory` and return the command. Raises BrokerMissing."""
    program = find_mosquitto()
    if program is None:
        raise BrokerMissing(
            "mosquitto is not installed; run `apt-get install mosquitto`, "
            "or use the embedded broker (kind 'embedded')"
        )
    configuration = write_configuration(directory, host, port, maximum_packet_bytes)
    return [str(program), "-c", str(configuration)]


def write_configuration(
    directory: Path, host: str, port: int, maximum_packet_bytes: int = MAX_PACKET_BYTES
) -> Path:
    """Write `mosquitto.conf` and its data folder; returns the file's path."""
    data = directory / "mosquitto-data"
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    sections = (
        ["# Written by ELMA at each start: changes here are lost."],
        _listener(host, port),
        limit_lines(maximum_packet_bytes),
        persistence_lines(data),
        logging_lines(),
    )
    path = directory / CONFIGURATION_NAME
    text = "\n\n".join("\n".join(lines) for lines in sections) + "\n"
    path.write_text(text, encoding="utf-8")
    return path


def _listener(host: str, port: int) -> list[str]:
    lines = [
        "# One listener for this machine only; anybody here may connect.",
        f"listener {port} {host}",
        "protocol mqtt",
        "allow_anonymous true",
        "# A small packet behind another one is sent at once, not 40 ms later.",
        "set_tcp_nodelay true",
    ]
    if os.geteuid() == 0:
        # Started by root, mosquitto would switch to a user that cannot write our folder.
        lines.append(f"user {getpass.getuser()}")
    return lines


def limit_lines(maximum_packet_bytes: int) -> list[str]:
    """The bounds that every broker of ours has."""
    return [
        "# Announced to every client, which checks it before it publishes.",
        f"max_packet_size {maximum_packet_bytes}",
        "# A client's own Receive Maximum is what bounds its deliveries.",
        f"max_inflight_messages {MAX_IN_FLIGHT}",
        "# Past either of these, messages for a slow client are dropped; senders send again.",
        f"max_queued_messages {MAX_QUEUED_MESSAGES}",
        f"max_queued_bytes {MAX_QUEUED_BYTES}",
        "persistent_client_expiration 7d",
    ]


def persistence_lines(data: Path) -> list[str]:
    """What survives a restart, and where."""
    return [
        "# What was acknowledged since the last save is lost when the broker is killed.",
        "persistence true",
        f"persistence_location {data}/",
        f"autosave_interval {AUTOSAVE_SECONDS}",
    ]


def logging_lines() -> list[str]:
    """What goes to stdout; never a payload."""
    return [
        "log_dest stdout",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "connection_messages false",
    ]
