"""What this machine has that can be examined: for `elma doctor` without any name.

Input: the machine's root folder, the folder one works in. Output: settings files and a broker's
folder, at the places where `elma install` and `elma broker init` put them. Neighbour:
`elma.commands.doctor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BROKER_FOLDER_NAME = "elma-broker"


@dataclass(frozen=True)
class Here:
    """Settings of an edge and of workers, a broker folder; what is not here is None or empty."""

    edge: Path | None
    workers: tuple[Path, ...]
    broker: Path | None


def look_around(root: Path = Path("/"), working: Path = Path()) -> Here:
    """What is installed on the machine; a broker's folder also where one works."""
    edge = root / "etc/elma/edge/edge.toml"
    workers = sorted((root / "etc/elma/workers").glob("*/worker.toml"))
    folders = (working / BROKER_FOLDER_NAME, root / "var/lib" / BROKER_FOLDER_NAME)
    broker = next((folder for folder in folders if (folder / "broker.json").is_file()), None)
    return Here(edge if edge.is_file() else None, tuple(workers), broker)
