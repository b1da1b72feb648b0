"""Where each role's files lie on a machine that systemd runs, and what systemd starts there.

Input: nothing. Output: `ROLES`. Neighbours: `elma.installing` lays a bundle out by it; the units
in `elma.units` (deploy/systemd) expect these places.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from protocol.key_files import (
    EDGE_SECRET_NAME,
    POOL_PUBLIC_NAME,
    POOL_SECRET_NAME,
    PUBLISHER_PUBLIC_NAME,
)

# As `broker.secured` names them, which a device cannot load: it has no library for certificates.
AUTHORITY_NAME, CERTIFICATE_NAME, KEY_NAME = "authority.pem", "client.pem", "client-key.pem"
Role = Literal["edge", "worker", "publisher", "publishing", "monitor"]
SYSTEMD = "systemd"
SYSTEM_UNITS = PurePosixPath("etc", SYSTEMD, "system")
PACKAGED_UNITS = PurePosixPath("usr/lib/systemd/system")
COMMANDS = PurePosixPath("usr/local/sbin")


@dataclass(frozen=True)
class InstalledRole:
    """What a role's machine has. `{name}` is the member's name.

    `settings`, `secrets`, `public` are files of the bundle, which go to `configuration`; `state` is
    the folder that its process writes. `source` of deploy/systemd goes to `place`; a unit is left
    out where a package has brought it. `next_steps`: what the operator does then.
    """

    settings: str
    secrets: tuple[str, ...]
    public: tuple[str, ...]
    configuration: str
    state: str
    source: str
    verb: str
    service: str = ""
    place: PurePosixPath = SYSTEM_UNITS
    next_steps: tuple[str, ...] = ()

    @property
    def is_service(self) -> bool:
        """Whether systemd keeps it running; else it is a command."""
        return bool(self.service)

    def steps(self, name: str, *, is_there: bool, is_unit_new: bool) -> tuple[str, ...]:
        """What the operator does when the files lie there.

        `is_there`: the member was on the machine before. `is_unit_new`: systemd has a unit to load.
        """
        if not self.is_service:
            return self.next_steps
        service = self.service.format(name=name)
        start = "restart" if is_there else "enable --now"
        reload = ("systemctl daemon-reload",) if is_unit_new or not is_there else ()
        return (*reload, f"systemctl {start} {service}")


ROLES: dict[Role, InstalledRole] = {
    "edge": InstalledRole(
        settings="edge.toml",
        secrets=(EDGE_SECRET_NAME, KEY_NAME),
        public=(CERTIFICATE_NAME, AUTHORITY_NAME, POOL_PUBLIC_NAME),
        configuration="etc/elma/edge",
        state="/var/lib/elma-edge",
        source="elma-edge.service",
        service="elma-edge",
        verb="elma enroll",
    ),
    "worker": InstalledRole(
        settings="worker.toml",
        secrets=(POOL_SECRET_NAME, KEY_NAME),
        public=(CERTIFICATE_NAME, AUTHORITY_NAME),
        configuration="etc/elma/workers/{name}",
        state="/var/lib/elma-worker/{name}",
        source="elma-worker@.service",
        service="elma-worker@{name}",
        verb="elma enroll-worker",
    ),
    "publisher": InstalledRole(
        settings="publisher.toml",
        secrets=(KEY_NAME,),
        public=(CERTIFICATE_NAME, AUTHORITY_NAME, PUBLISHER_PUBLIC_NAME),
        configuration="etc/elma/rollout",
        state="/var/lib/elma-rollout",
        source="elma-rollout.service",
        service="elma-rollout",
        verb="elma enroll-publisher",
    ),
    "publishing": InstalledRole(
        settings="publisher.toml",
        secrets=(KEY_NAME,),
        public=(CERTIFICATE_NAME, AUTHORITY_NAME, PUBLISHER_PUBLIC_NAME),
        configuration="etc/elma/publishing",
        state="/var/lib/elma-rollout",
        source="elma-publisher",
        place=COMMANDS,
        next_steps=(
            "ELMA_PUBLISHER_KEY_FILE=/path/to/publisher-secret.json elma-publisher publish MODEL",
        ),
        verb="elma enroll-publisher",
    ),
    "monitor": InstalledRole(
        settings="monitor.toml",
        secrets=(KEY_NAME,),
        public=(CERTIFICATE_NAME, AUTHORITY_NAME),
        configuration="etc/elma/monitor",
        state="",
        source="elma-monitor.service",
        service="elma-monitor",
        verb="elma enroll-monitor",
    ),
}
