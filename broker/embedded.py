"""The embedded broker: rumqttd, in the `iotcore` wheel, for a machine without mosquitto.

Input: a directory, a loopback address, a port. Output: `embedded.toml` and the command of a child
process (the library cannot stop a broker it has started, a process can be ended). It keeps nothing
over a restart and ignores clients' Receive Maximum: for trying ELMA, not for running it.
`run` starts the command and keeps the process.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from broker.errors import BrokerMissing
from broker.settings import MAX_PACKET_BYTES

CONFIGURATION_NAME = "embedded.toml"
MAX_CONNECTIONS = 1000
CONNECT_TIMEOUT_MILLISECONDS = 10_000
SEGMENT_BYTES = 64 * 1024 * 1024
SEGMENTS = 4

_CONFIGURATION = """\
# Written by ELMA at each start: changes here are lost.
id = 0

[router]
id = 0
max_connections = {connections}
max_outgoing_packet_count = 200
max_segment_size = {segment_bytes}
max_segment_count = {segments}

# One MQTT v5 listener for this machine only. Without this file it would listen everywhere and
# take no payload over 20,480 bytes.
[v5.1]
name = "elma"
listen = "{host}:{port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = {timeout_milliseconds}
max_payload_size = {packet_bytes}
max_inflight_count = 100
dynamic_filters = true
"""


def is_installed() -> bool:
    """Whether the `iotcore` package can be imported."""
    return importlib.util.find_spec("iotcore") is not None


def prepare(directory: Path, host: str, port: int, maximum_packet_bytes: int) -> list[str]:
    """Write the configuration to `directory` and return the command. Raises BrokerMissing."""
    if not is_installed():
        raise BrokerMissing(
            "the embedded broker is not installed; run `pip install 'elma-qa[embedded-broker]'`, "
            "or install mosquitto (`apt-get install mosquitto`)"
        )
    path = write_configuration(directory, host, port, maximum_packet_bytes)
    # -P: a folder named iotcore where the user stands must not be taken for the package.
    # CRITICAL: below that it logs every packet.
    return [
        *(sys.executable, "-P", "-m", "iotcore"),
        *("--config", str(path), "--log-level", "CRITICAL"),
    ]


def write_configuration(
    directory: Path, host: str, port: int, maximum_packet_bytes: int = MAX_PACKET_BYTES
) -> Path:
    """Write `embedded.toml`; returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / CONFIGURATION_NAME
    address = f"[{host}]" if ":" in host else host
    text = _CONFIGURATION.format(
        host=address,
        port=port,
        packet_bytes=maximum_packet_bytes,
        connections=MAX_CONNECTIONS,
        timeout_milliseconds=CONNECT_TIMEOUT_MILLISECONDS,
        segment_bytes=SEGMENT_BYTES,
        segments=SEGMENTS,
    )
    path.write_text(text, encoding="utf-8")
    return path
