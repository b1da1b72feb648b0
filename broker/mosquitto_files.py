"""`mosquitto.conf` of a secured broker, for mosquitto 2.0 and 2.1.

Inputs: the folder of the broker's files, address, port, version, user. Output: the text. Limits,
persistence and logging are those of `mosquitto`, which writes the file for one machine; here is
what makes it fit for a public address: TLS, certificates, and rights by the dynamic security
plugin.
Both forms were run, with mosquitto 2.0.11 and 2.1.2 (docs/decisions/0028-mosquitto-2.1.md).
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Literal

from broker.errors import EnrolmentError
from broker.mosquitto import find_mosquitto, limit_lines, logging_lines, persistence_lines
from broker.settings import MAX_PACKET_BYTES

MosquittoVersion = Literal["2.0", "2.1"]
VERSIONS: tuple[MosquittoVersion, ...] = ("2.0", "2.1")
MAX_CONNECTIONS = 10_000
PLUGIN_NAME = "mosquitto_dynamic_security.so"
_PLUGIN_PLACES = ("/usr/lib", "/usr/local/lib", "/opt/homebrew/lib")
_ASK_SECONDS = 5.0


def secured_configuration(
    folder: Path,
    *,
    port: int,
    listen: str | None,
    version: MosquittoVersion,
    user: str,
    plugin: Path | None = None,
) -> str:
    """The configuration; `listen` None binds every address.

    Raises EnrolmentError where mosquitto's plugin is not installed and `plugin` names none.
    """
    sections = (
        [
            "# Written once by `elma broker init`; `elma enroll` and `elma revoke` leave it alone.",
        ],
        _process(folder, version, user),
        _listener(folder, port, listen, version),
        _rights(folder, version, plugin or find_plugin()),
        limit_lines(MAX_PACKET_BYTES),
        persistence_lines(folder / "data"),
        logging_lines(),
    )
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def installed_version() -> MosquittoVersion:
    """The form of configuration for the mosquitto on this machine; "2.0" where there is none."""
    program = find_mosquitto()
    if program is None:
        return "2.0"
    done = subprocess.run(  # noqa: S603 - the program that we would run anyway, asked its version
        [str(program), "-h"], capture_output=True, text=True, timeout=_ASK_SECONDS, check=False
    )
    found = re.search(r"mosquitto version (\d+)\.(\d+)", done.stdout)
    if found is None:
        return "2.0"
    return "2.0" if (int(found[1]), int(found[2])) < (2, 1) else "2.1"


def find_plugin() -> Path:
    """The dynamic security plugin of the mosquitto on this machine. Raises EnrolmentError."""
    program = find_mosquitto()
    # Another mosquitto's plugin is not for this one, so the one beside the program comes first.
    own = () if program is None else (str(program.resolve().parent.parent / "lib"),)
    for place in (*own, *_PLUGIN_PLACES):
        for pattern in (PLUGIN_NAME, f"*/{PLUGIN_NAME}", f"*/*/{PLUGIN_NAME}"):
            found = next(iter(sorted(Path(place).glob(pattern))), None)
            if found is not None:
                return found
    raise EnrolmentError(
        f"mosquitto's plugin {PLUGIN_NAME} is not installed; install mosquitto "
        "(Debian: apt-get install mosquitto) on the machine where the broker will run, and "
        "run this there"
    )


def _process(folder: Path, version: MosquittoVersion, user: str) -> list[str]:
    lines = [f"user {user}", f"pid_file {folder}/data/mosquitto.pid"]
    # Deprecated from 2.1 on, where nothing else is the default.
    return ["per_listener_settings false", *lines] if version == "2.0" else lines


def _listener(folder: Path, port: int, listen: str | None, version: MosquittoVersion) -> list[str]:
    anonymous = "allow_anonymous" if version == "2.0" else "listener_allow_anonymous"
    return [
        "# Only who shows a certificate of our authority may connect, and its name is who it is:",
        "# user name and client id alike, so that nobody can take another's.",
        f"listener {port} {listen}" if listen else f"listener {port}",
        "protocol mqtt",
        f"{anonymous} false",
        "tls_version tlsv1.2",
        f"cafile {folder}/members-authority.pem",
        f"certfile {folder}/server.pem",
        f"keyfile {folder}/server-key.pem",
        f"crlfile {folder}/revoked.pem",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        f"max_connections {MAX_CONNECTIONS}",
        "# A small packet behind another one is sent at once, not 40 ms later.",
        "set_tcp_nodelay true",
    ]


def _rights(folder: Path, version: MosquittoVersion, plugin: Path) -> list[str]:
    return [
        "# What is not allowed there is denied. The broker writes the file itself.",
        f"{'plugin' if version == '2.0' else 'global_plugin'} {plugin}",
        f"plugin_opt_config_file {folder}/dynamic-security.json",
    ]
