"""A bundle of `elma enroll` laid out on a machine, as the units of systemd expect it.

    edge      ROOT/etc/elma/edge/           ROOT/etc/systemd/system/elma-edge.service
    worker    ROOT/etc/elma/workers/NAME/   ROOT/etc/systemd/system/elma-worker@.service
    publisher ROOT/etc/elma/rollout/        ROOT/etc/systemd/system/elma-rollout.service

Inputs: the bundle, the folder that is the machine's root, the program that the unit shall start.
Output: `Layout`, which says what would be written, and writes it. Neighbours: `elma.bundles` makes
bundles, `elma.units` (deploy/systemd) holds the units, `elma.commands.install` is the verb.

Secrets are root's, mode 0600: systemd lends them to the service. The rest is readable by all, for
the service's user has no name before it starts. State folders are made by systemd (StateDirectory).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from broker.secret_files import make_folder, read_file, read_secret, write_file
from elma.demonstration.setup import toml_text
from elma.output import CommandError
from protocol.checks import check_name
from protocol.errors import MalformedMessage
from protocol.key_files import (
    EDGE_SECRET_NAME,
    EDGES_FOLDER_NAME,
    POOL_PUBLIC_NAME,
    POOL_SECRET_NAME,
    PUBLISHER_PUBLIC_NAME,
)

# As `broker.secured` names them, which a device cannot load: it has no library for certificates.
AUTHORITY_NAME, CERTIFICATE_NAME, KEY_NAME = "authority.pem", "client.pem", "client-key.pem"
Role = Literal["edge", "worker", "publisher"]
SYSTEM_UNITS = PurePosixPath("etc/systemd/system")
PACKAGED_UNITS = PurePosixPath("usr/lib/systemd/system")
_SECRET_MODE, _PUBLIC_MODE, _FOLDER_MODE = 0o600, 0o644, 0o755


@dataclass(frozen=True)
class _Kind:
    """What a role's machine has. `{name}` in a path is the member's name."""

    settings: str
    secrets: tuple[str, ...]
    public: tuple[str, ...]
    configuration: str
    state: str
    unit: str
    service: str
    verb: str


_KINDS: dict[Role, _Kind] = {
    "edge": _Kind(
        settings="edge.toml",
        secrets=(EDGE_SECRET_NAME, KEY_NAME),
        public=(CERTIFICATE_NAME, AUTHORITY_NAME, POOL_PUBLIC_NAME),
        configuration="etc/elma/edge",
        state="/var/lib/elma-edge",
        unit="elma-edge.service",
        service="elma-edge",
        verb="elma enroll",
    ),
    "worker": _Kind(
        settings="worker.toml",
        secrets=(POOL_SECRET_NAME, KEY_NAME),
        public=(CERTIFICATE_NAME, AUTHORITY_NAME),
        configuration="etc/elma/workers/{name}",
        state="/var/lib/elma-worker/{name}",
        unit="elma-worker@.service",
        service="elma-worker@{name}",
        verb="elma enroll-worker",
    ),
    "publisher": _Kind(
        settings="publisher.toml",
        secrets=(KEY_NAME,),
        public=(CERTIFICATE_NAME, AUTHORITY_NAME, PUBLISHER_PUBLIC_NAME),
        configuration="etc/elma/rollout",
        state="/var/lib/elma-rollout",
        unit="elma-rollout.service",
        service="elma-rollout",
        verb="elma enroll-publisher",
    ),
}


@dataclass(frozen=True)
class PlannedFile:
    """One file to be: where, with which mode, and what. `content` may be secret."""

    path: Path
    mode: int
    content: bytes


@dataclass(frozen=True)
class Layout:
    """What makes a machine the member `name`, complete and checked. `write` does it."""

    name: str
    service: str
    files: tuple[PlannedFile, ...]

    def write(self) -> None:
        """Write every file, whole or not at all, settings and unit last. Raises EnrolmentError."""
        for file in self.files:
            make_folder(file.path.parent, mode=_FOLDER_MODE)
            write_file(file.path, file.content, mode=file.mode)


def plan_layout(role: Role, bundle: Path, root: Path, program: PurePosixPath | None) -> Layout:
    """What to write below `root`, from the bundle as it is now; nothing is written.

    `program` is the `elma` that the unit starts; by default the one of the Debian package. A unit
    that a package has brought is left alone. Raises CommandError or EnrolmentError.
    """
    kind = _KINDS[role]
    settings = _read_settings(bundle / kind.settings, role)
    name = _name_of(settings, bundle / kind.settings)
    folder = root / kind.configuration.format(name=name)
    _must_be_the_same_member(folder / kind.settings, name)
    planned = [
        *_keys(kind, bundle, folder),
        *_others(role, settings, bundle, folder),
        PlannedFile(
            folder / kind.settings,
            _PUBLIC_MODE,
            toml_text(_settled(settings, kind.state.format(name=name))).encode("utf-8"),
        ),
        *_unit(kind, root, program),
    ]
    return Layout(name, kind.service.format(name=name), tuple(planned))


def _keys(kind: _Kind, bundle: Path, folder: Path) -> Iterator[PlannedFile]:
    for secret in kind.secrets:
        yield PlannedFile(folder / secret, _SECRET_MODE, read_secret(bundle / secret))
    for public in kind.public:
        yield PlannedFile(folder / public, _PUBLIC_MODE, read_file(bundle / public))


def _others(
    role: Role, settings: dict[str, Any], bundle: Path, folder: Path
) -> Iterator[PlannedFile]:
    """Whose releases are believed, and for a worker the devices' public keys."""
    if "releases" in settings:
        trust = read_file(bundle / PUBLISHER_PUBLIC_NAME)
        yield PlannedFile(folder / PUBLISHER_PUBLIC_NAME, _PUBLIC_MODE, trust)
    if role == "worker":
        edges = bundle / EDGES_FOLDER_NAME
        if not edges.is_dir():
            raise CommandError(
                f"{edges} is not a folder; a worker that was enrolled with --here uses the pool's "
                "key folder: enrol it without, and bring edges/ to it as docs/operations.md says"
            )
        for path in sorted(edges.glob("*.json")):
            target = folder / EDGES_FOLDER_NAME / path.name
            yield PlannedFile(target, _PUBLIC_MODE, read_file(path))


def _unit(kind: _Kind, root: Path, program: PurePosixPath | None) -> Iterator[PlannedFile]:
    if (root / PACKAGED_UNITS / kind.unit).exists() and program is None:
        return
    text = files("elma").joinpath("units", kind.unit).read_text(encoding="utf-8")
    if program is not None:
        lines = text.splitlines(keepends=True)
        text = "".join(
            f"ExecStart={program} {line.split(' ', 1)[1]}"
            if line.startswith("ExecStart=")
            else line
            for line in lines
        )
    yield PlannedFile(root / SYSTEM_UNITS / kind.unit, _PUBLIC_MODE, text.encode("utf-8"))


def _settled(settings: dict[str, Any], state: str) -> dict[str, Any]:
    """The bundle's settings, with what the process writes in its state folder."""
    changed = dict(settings)
    if "outbox" in changed:
        changed["outbox"] = f"{state}/{Path(changed['outbox']).name}"
    if "store" in changed:
        changed["store"] = state
    if "store_file" in changed.get("audit", {}):
        changed["audit"] = {**changed["audit"], "store_file": f"{state}/elma-audit.sqlite3"}
    if "releases" in changed:
        changed["releases"] = {**changed["releases"], "folder": f"{state}/releases"}
    return changed


def _read_settings(path: Path, role: Role) -> dict[str, Any]:
    if not path.is_file():
        verb = _KINDS[role].verb
        raise CommandError(f"{path} is not there; give --bundle the folder that `{verb}` made")
    try:
        return tomllib.loads(read_file(path).decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} is not TOML: {error}") from error


def _name_of(settings: dict[str, Any], path: Path) -> str:
    try:
        return check_name("name", settings.get("name"))
    except MalformedMessage as error:
        raise CommandError(f"{path}: {error}") from error


def _must_be_the_same_member(path: Path, name: str) -> None:
    """A machine stays who it is: its outbox and releases belong to that name."""
    if not path.is_file():
        return
    try:
        there = tomllib.loads(path.read_text(encoding="utf-8")).get("name")
    except (OSError, ValueError) as error:
        raise CommandError(f"{path} is there and cannot be read; move it away first") from error
    if there != name:
        raise CommandError(
            f"{path.parent} belongs to {there!r}, and the bundle to {name!r}; move that folder and "
            "its state away first"
        )
