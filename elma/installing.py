"""A bundle of `elma enroll` laid out on a machine, as the units of systemd expect it.

    edge        ROOT/etc/elma/edge/          elma-edge.service
    worker      ROOT/etc/elma/workers/NAME/  elma-worker@.service
    publisher   ROOT/etc/elma/rollout/       elma-rollout.service
    publishing  ROOT/etc/elma/publishing/    the command elma-publisher, beside the rollout service
    monitor     ROOT/etc/elma/monitor/       elma-monitor.service
    broker      the folder of `elma broker init`, where it is: a drop-in for mosquitto.service

Inputs: the bundle, the folder that is the machine's root, the program that the unit shall start.
Output: `Layout`, which says what would be written, and writes it. Neighbours: `elma.bundles` makes
bundles, `elma.installed_roles` says where things go, `elma.commands.install` is the verb.

Secrets are root's, mode 0600: systemd lends them to the service. The rest is readable by all, for
the service's user has no name before it starts. State folders are made by systemd (StateDirectory).
"""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

from broker.secret_files import make_folder, read_file, read_secret, write_file
from elma.demonstration.setup import toml_text
from elma.installed_roles import (
    PACKAGED_UNITS,
    ROLES,
    SYSTEM_UNITS,
    SYSTEMD,
    InstalledRole,
    Role,
)
from elma.output import CommandError
from protocol.checks import check_name
from protocol.errors import MalformedMessage
from protocol.key_files import EDGES_FOLDER_NAME, PUBLISHER_PUBLIC_NAME

BROKER_FOLDER = PurePosixPath("/var/lib/elma-broker")
TEXTFILE_FOLDER = PurePosixPath("/var/lib/prometheus/node-exporter")
"""As the committed drop-ins name them; another folder takes their place."""
_BROKER_DROP_IN = PurePosixPath("mosquitto.service.d/elma.conf")
_TEXTFILE_DROP_IN = PurePosixPath("elma-edge.service.d/textfile.conf")
_OUTBOX_NAME = "elma-edge.sqlite3"
_PACKAGED_PROGRAM = re.compile(r"/opt/elma-[a-z]+/bin/elma\b")
_PLAIN_PATH = re.compile(r"(/[A-Za-z0-9._-]+)+")
_SECRET_MODE, _PUBLIC_MODE, _FOLDER_MODE, _COMMAND_MODE = 0o600, 0o644, 0o755, 0o755


@dataclass(frozen=True)
class PlannedFile:
    """One file to be: where, with which mode, and what. `content` may be secret."""

    path: Path
    mode: int
    content: bytes

    def is_there(self) -> bool:
        """Whether it lies there already, just so."""
        try:
            mode = stat.S_IMODE(self.path.stat().st_mode)
            return mode == self.mode and self.path.read_bytes() == self.content
        except OSError:
            return False


@dataclass(frozen=True)
class Layout:
    """What makes a machine the member `name`, complete and checked. `write` does it.

    `service`: its unit, "" for a command. `next_steps`: what the operator does after it.
    """

    name: str
    service: str
    files: tuple[PlannedFile, ...]
    next_steps: tuple[str, ...]

    def write(self) -> None:
        """Write every file that is not there, whole or not at all, settings and unit last.

        A unit that stays as it is keeps its time: systemd would want it loaded again. Raises
        EnrolmentError.
        """
        for file in self.files:
            if file.is_there():
                continue
            make_folder(file.path.parent, mode=_FOLDER_MODE)
            write_file(file.path, file.content, mode=file.mode)


def plan_layout(
    role: Role,
    bundle: Path,
    root: Path,
    program: PurePosixPath | None,
    *,
    http_port: int | None = None,
    textfile_folder: PurePosixPath | None = None,
) -> Layout:
    """What to write below `root`, from the bundle as it is now; nothing is written.

    `program` is the `elma` that the unit starts; by default the one of the Debian package. A unit
    that a package has brought is left alone. Settings of the machine that the bundle does not speak
    of stay. `http_port`: where it serves /metrics. `textfile_folder`, for an edge: where
    node_exporter looks for figures. Raises CommandError or EnrolmentError.
    """
    kind = ROLES[role]
    settings = _read_settings(bundle / kind.settings, role)
    name = _name_of(settings, bundle / kind.settings)
    folder = root / kind.configuration.format(name=name)
    before = _settings_of_the_same_member(folder / kind.settings, name)
    settled = _merged(before, _settled(settings, kind.state.format(name=name)))
    if http_port is not None:
        settled["http"] = {**settled.get("http", {}), "port": http_port}
    text = toml_text(settled).encode("utf-8")
    planned = [
        *_keys(kind, bundle, folder),
        *_others(role, settings, bundle, folder),
        PlannedFile(folder / kind.settings, _PUBLIC_MODE, text),
        *_unit(kind, root, program),
    ]
    if textfile_folder is not None:
        planned.append(_drop_in(root, _TEXTFILE_DROP_IN, TEXTFILE_FOLDER, textfile_folder))
    steps = kind.steps(
        name,
        is_there=bool(before),
        is_unit_new=any(SYSTEMD in file.path.parts and not file.is_there() for file in planned),
    )
    return Layout(name, kind.service.format(name=name), tuple(planned), steps)


def plan_broker(folder: PurePosixPath, root: Path) -> Layout:
    """The drop-in by which Debian's mosquitto.service runs what `elma broker init FOLDER` made.

    `folder` is as the machine sees it, absolute; nothing in it is changed. Raises CommandError.
    """
    if folder.parts[1:2] in (("home",), ("root",)):
        raise CommandError(f"{folder}: the unit does not see /home and /root; move it below /var")
    if not (root / folder.relative_to("/") / "mosquitto/mosquitto.conf").is_file():
        raise CommandError(f"{folder} holds no mosquitto.conf; make it with `elma broker init`")
    drop_in = _drop_in(root, _BROKER_DROP_IN, BROKER_FOLDER, folder)
    return Layout(
        "broker",
        "mosquitto",
        (drop_in,),
        ("systemctl daemon-reload", "systemctl enable mosquitto", "systemctl restart mosquitto"),
    )


def _drop_in(
    root: Path, name: PurePosixPath, usual: PurePosixPath, folder: PurePosixPath
) -> PlannedFile:
    """A committed drop-in, with `folder` in the place of the usual one."""
    if not _PLAIN_PATH.fullmatch(str(folder)):
        raise CommandError(
            f"{folder}: a unit takes an absolute path of letters, digits, '.', '_' and '-'",
            exit_status=2,
        )
    text = files("elma").joinpath("units", *name.parts).read_text(encoding="utf-8")
    content = text.replace(str(usual), str(folder)).encode("utf-8")
    return PlannedFile(root / SYSTEM_UNITS / name, _PUBLIC_MODE, content)


def _keys(kind: InstalledRole, bundle: Path, folder: Path) -> Iterator[PlannedFile]:
    for secret in kind.secrets:
        yield PlannedFile(
            folder / secret, _SECRET_MODE, read_secret(bundle / secret, follow_links=False)
        )
    for public in kind.public:
        yield PlannedFile(
            folder / public, _PUBLIC_MODE, read_file(bundle / public, follow_links=False)
        )


def _others(
    role: Role, settings: dict[str, Any], bundle: Path, folder: Path
) -> Iterator[PlannedFile]:
    """Whose releases are believed, and for a worker the devices' public keys."""
    if "releases" in settings:
        trust = read_file(bundle / PUBLISHER_PUBLIC_NAME, follow_links=False)
        yield PlannedFile(folder / PUBLISHER_PUBLIC_NAME, _PUBLIC_MODE, trust)
    if role == "worker":
        edges = bundle / EDGES_FOLDER_NAME
        if not edges.is_dir() or edges.is_symlink():
            raise CommandError(
                f"{edges} is not a folder; a worker that was enrolled with --here uses the pool's "
                "key folder: enrol it without, and bring edges/ to it as docs/operations.md says"
            )
        for path in sorted(edges.glob("*.json")):
            target = folder / EDGES_FOLDER_NAME / path.name
            yield PlannedFile(target, _PUBLIC_MODE, read_file(path, follow_links=False))


def _unit(kind: InstalledRole, root: Path, program: PurePosixPath | None) -> Iterator[PlannedFile]:
    """What systemd starts, or the command that people call."""
    if kind.is_service and program is None and (root / PACKAGED_UNITS / kind.source).exists():
        return
    text = files("elma").joinpath("units", kind.source).read_text(encoding="utf-8")
    if program is not None:
        text = _PACKAGED_PROGRAM.sub(lambda _: str(program), text)
    mode = _PUBLIC_MODE if kind.is_service else _COMMAND_MODE
    yield PlannedFile(root / kind.place / kind.source, mode, text.encode("utf-8"))


def _settled(settings: dict[str, Any], state: str) -> dict[str, Any]:
    """The bundle's settings, with what the process writes in its state folder."""
    changed = dict(settings)
    if "outbox" in changed:
        changed["outbox"] = f"{state}/{_OUTBOX_NAME}"
    if "store" in changed:
        changed["store"] = state
    if "store_file" in changed.get("audit", {}):
        changed["audit"] = {**changed["audit"], "store_file": f"{state}/elma-audit.sqlite3"}
    if "releases" in changed:
        changed["releases"] = {**changed["releases"], "folder": f"{state}/releases"}
    return changed


def _merged(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What is installed, with what the bundle says in its place, table by table."""
    merged = before | after
    for name, table in after.items():
        if isinstance(table, dict) and isinstance(before.get(name), dict):
            merged[name] = _merged(before[name], table)
    return merged


def _read_settings(path: Path, role: Role) -> dict[str, Any]:
    if not path.is_file():
        verb = ROLES[role].verb
        raise CommandError(f"{path} is not there; give --bundle the folder that `{verb}` made")
    try:
        return tomllib.loads(read_file(path, follow_links=False).decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} is not TOML: {error}") from error


def _name_of(settings: dict[str, Any], path: Path) -> str:
    try:
        return check_name("name", settings.get("name"))
    except MalformedMessage as error:
        raise CommandError(f"{path}: {error}") from error


def _settings_of_the_same_member(path: Path, name: str) -> dict[str, Any]:
    """What is installed, or nothing. A machine stays who it is: its outbox and releases belong to
    that name. Raises CommandError for another."""
    if not path.is_file():
        return {}
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandError(f"{path} is there and cannot be read; move it away first") from error
    if settings.get("name") != name:
        raise CommandError(
            f"{path.parent} belongs to {settings.get('name')!r}, and the bundle to {name!r}; move "
            "that folder and its state away first"
        )
    return settings
