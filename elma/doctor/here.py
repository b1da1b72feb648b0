"""What this machine has that can be examined: for `elma doctor` without any name.

Input: the machine's root folder, the folder one works in. Output: settings files with the program
that their units start, and a broker's folder, at the places where `elma install` and
`elma broker init` put them. Neighbours: `elma.commands.doctor`; `elsewhere` asks such a program.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from elma.installed_roles import PACKAGED_UNITS, ROLES, SYSTEM_UNITS, Role

BROKER_FOLDER_NAME = "elma-broker"
_PROGRAM = re.compile(r"^ExecStart=(/\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Installed:
    """A member's settings file, and the `elma` that systemd starts with it, where there is a unit.

    It may be another than the one that asks, with other engines.
    """

    settings: Path
    program: Path | None


@dataclass(frozen=True)
class Here:
    """An edge and workers, a broker's folder; what is not here is None or empty."""

    edge: Installed | None
    workers: tuple[Installed, ...]
    broker: Path | None


def look_around(root: Path = Path("/"), working: Path = Path()) -> Here:
    """What is installed on the machine; a broker's folder also where one works."""
    edge = root / "etc/elma/edge/edge.toml"
    workers = sorted((root / "etc/elma/workers").glob("*/worker.toml"))
    folders = (working / BROKER_FOLDER_NAME, root / "var/lib" / BROKER_FOLDER_NAME)
    broker = next((folder for folder in folders if (folder / "broker.json").is_file()), None)
    return Here(
        Installed(edge, _program(root, "edge")) if edge.is_file() else None,
        tuple(Installed(worker, _program(root, "worker")) for worker in workers),
        broker,
    )


def _program(root: Path, role: Role) -> Path | None:
    """What the role's unit starts; the operator's own unit wins over a package's, as in systemd."""
    for folder in (SYSTEM_UNITS, PACKAGED_UNITS):
        try:
            text = (root / folder / ROLES[role].source).read_text(encoding="utf-8")
        except OSError:
            continue
        found = _PROGRAM.search(text)
        return None if found is None else Path(found[1])
    return None
