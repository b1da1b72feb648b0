"""Checks of a secured broker's folder as it lies on the disk: mosquitto, its configuration, modes,
owners, room.

Input: a `SecuredFolder`. Output: findings. Neighbours: `broker.mosquitto_files` writes the
configuration that is compared here, `certificates` and `members` look into the files.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from broker.errors import EnrolmentError
from broker.mosquitto import find_mosquitto
from broker.mosquitto_files import find_plugin, secured_configuration
from broker.secured import SecuredFolder
from elma.doctor.finding import Finding, State, in_mb

ASK_SECONDS = 5.0
OWN_NAMES = (
    *("mosquitto.conf", "dynamic-security.json", "server.pem", "server-key.pem"),
    *("members-authority.pem", "revoked.pem", "data"),
)
"""What mosquitto reads, and `data`, which it writes."""
LITTLE_DISK_BYTES = 500e6
STORE_NAME = "mosquitto.db"
_PLUGIN_KEYS = ("plugin", "global_plugin")
_FREE_KEYS = frozenset({"listener", "user", *_PLUGIN_KEYS})
"""What differs between machines; looked at by itself where it matters."""
_LIMITS = frozenset(
    {
        *("max_packet_size", "max_inflight_messages", "max_queued_messages", "max_queued_bytes"),
        *("max_connections", "persistent_client_expiration", "autosave_interval"),
        *("log_dest", "log_type", "connection_messages", "set_tcp_nodelay", "pid_file"),
    }
)
"""What is a matter of size, or of taste. Everything else of ours keeps somebody out."""


def check_mosquitto(folder: SecuredFolder) -> Finding:
    """Whether mosquitto is here, takes this form of configuration, and has its plugin."""
    program = find_mosquitto()
    if program is None:
        advice = "apt-get install mosquitto, or run this where the broker runs"
        return Finding("mosquitto", State.FAILED, "not installed on this machine", advice)
    done = subprocess.run(  # noqa: S603 - the program that runs here anyway, asked its version
        [str(program), "-h"], capture_output=True, text=True, timeout=ASK_SECONDS, check=False
    )
    version = re.search(r"mosquitto version (\d+)\.(\d+)\S*", done.stdout)
    if version is None:
        text = f"{program} does not tell its version"
        return Finding("mosquitto", State.FAILED, text, "install mosquitto 2.0 or 2.1")
    number = version[0].split()[-1]
    text = f"{number} ({program}); its configuration is in the form for {folder.mosquitto}"
    figures = {"program": str(program), "version": number, "form": folder.mosquitto}
    is_new = (int(version[1]), int(version[2])) >= (2, 1)
    plugin = _plugin_of(folder)
    if folder.mosquitto == "2.1" and not is_new:
        advice = "install mosquitto 2.1, or write plugin, allow_anonymous and per_listener_settings"
        return Finding("mosquitto", State.FAILED, f"{text}, which it refuses", advice, figures)
    if plugin is None or not plugin.is_file():
        advice = f"name the installed one in {folder.configuration_file}: {_installed_plugin()}"
        text = f"its plugin is not there: {plugin or 'none is named'}"
        return Finding("mosquitto", State.FAILED, text, advice, figures)
    if str(plugin) != _installed_plugin():
        advice = f"name the one beside {program} in {folder.configuration_file}"
        text = f"{text}; {plugin} belongs to another mosquitto than {_installed_plugin()}"
        return Finding("mosquitto", State.WARNING, text, advice, figures)
    if folder.mosquitto == "2.0" and is_new:
        advice = "it works until mosquitto 3.0; drop per_listener_settings before"
        return Finding("mosquitto", State.WARNING, text, advice, figures)
    return Finding("mosquitto", State.OK, text, figures=figures)


def check_configuration(folder: SecuredFolder) -> Finding:
    """Whether mosquitto.conf still has every line that `elma broker init` wrote."""
    file = folder.configuration_file
    try:
        found = _lines(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        text = f"{file} cannot be read: {error}"
        return Finding("configuration", State.FAILED, text, _see_as(folder))
    expected = _lines(
        secured_configuration(
            folder.broker_files,
            port=folder.port,
            listen=None,
            version=folder.mosquitto,
            user=folder.user,
            plugin=_plugin_of(folder) or Path("none"),
        )
    )
    listeners = [value for key, value in found if key == "listener"]
    problems = [f"{key} {value}" for key, value in expected - found if key not in _FREE_KEYS]
    open_doors = sorted(one for one in problems if one.split()[0] not in _LIMITS)
    changed = sorted(set(problems) - set(open_doors))
    ours = {key for key, _ in expected}
    added = sorted({key for key, _ in found} - ours)
    if [one.split()[0] for one in listeners] != [str(folder.port)]:
        open_doors.append(f"one listener, on {folder.port} (now: {', '.join(listeners) or 'none'})")
    figures = {"missing": open_doors, "changed": changed, "added": added}
    if open_doors:
        text = f"{file} lacks what keeps others out: {'; '.join(open_doors)}"
        advice = "put these lines back as `elma broker init` writes them, and restart mosquitto"
        return Finding("configuration", State.FAILED, text, advice, figures)
    if changed or added:
        parts = [f"not as written: {'; '.join(changed)}"] * bool(changed)
        parts += [f"not ours: {', '.join(added)}"] * bool(added)
        advice = "leave it if you changed it on purpose"
        return Finding(
            "configuration", State.WARNING, f"{file}: {'; '.join(parts)}", advice, figures
        )
    return Finding("configuration", State.OK, f"{file} is as it was written", figures=figures)


def check_files(folder: SecuredFolder) -> Finding:
    """Whether secrets are secret, and mosquitto's user gets at its own files."""
    try:
        user = pwd.getpwnam(folder.user)
    except KeyError:
        text = f"mosquitto is to run as {folder.user!r}, and this machine has no such user"
        advice = f"make it, or name another in {folder.configuration_file}"
        return Finding("files", State.FAILED, text, advice)
    try:
        problems = [*_open_secrets(folder), *_unreachable(folder, user)]
    except OSError as error:
        text = f"{error.filename} cannot be looked at: {error.strerror}"
        return Finding("files", State.FAILED, text, _see_as(folder))
    figures = {"user": folder.user, "problems": [text for text, _ in problems]}
    if problems:
        text = "; ".join(text for text, _ in problems)
        advice = "; ".join(dict.fromkeys(command for _, command in problems))
        return Finding("files", State.FAILED, text, advice, figures)
    text = f"secrets are their owner's only; {folder.user} owns what mosquitto reads and writes"
    return Finding("files", State.OK, text, figures=figures)


def check_store(folder: SecuredFolder) -> Finding:
    """Whether what is retained and queued can be saved."""
    data = folder.process_id_file.parent
    store = data / STORE_NAME
    try:
        free = shutil.disk_usage(data).free
        size = store.stat().st_size if store.exists() else 0
    except OSError as error:
        text = f"{data} cannot be looked at: {error.strerror}"
        return Finding("disk", State.FAILED, text, _see_as(folder))
    text = f"{in_mb(free)} free in {data}; the store has {in_mb(size)}"
    figures = {"folder": str(data), "free_bytes": free, "store_bytes": size}
    # It is written beside the old one before it takes its place.
    if free < size:
        advice = "make room: mosquitto can save nothing any more, and says so in its log only"
        return Finding("disk", State.FAILED, text, advice, figures)
    if free < LITTLE_DISK_BYTES:
        return Finding("disk", State.WARNING, text, "make room", figures)
    return Finding("disk", State.OK, text, figures=figures)


def _plugin_of(folder: SecuredFolder) -> Path | None:
    """The plugin that the configuration names."""
    try:
        lines = _lines(folder.configuration_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return next((Path(value) for key, value in lines if key in _PLUGIN_KEYS), None)


def _installed_plugin() -> str:
    try:
        return str(find_plugin())
    except EnrolmentError:
        return "none is installed (apt-get install mosquitto)"


def _lines(text: str) -> set[tuple[str, str]]:
    """Keys and values of a mosquitto.conf."""
    parts = (line.strip().partition(" ") for line in text.splitlines())
    return {(key, value.strip()) for key, _, value in parts if key and not key.startswith("#")}


def _open_secrets(folder: SecuredFolder) -> Iterator[tuple[str, str]]:
    """Secrets that others may read, each with the command that helps."""
    for path in (
        folder.path / "authority" / "authority-key.pem",
        folder.path / "operator" / "client-key.pem",
        folder.broker_files / "server-key.pem",
        folder.access_file,
    ):
        if path.exists():
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                yield f"{path} is open to other users (mode {mode:04o})", f"chmod 600 {path}"


def _unreachable(folder: SecuredFolder, user: pwd.struct_passwd) -> Iterator[tuple[str, str]]:
    """What mosquitto's user does not own, or does not come to."""
    own = [folder.broker_files / name for name in OWN_NAMES]
    for path in (folder.broker_files, *own):
        if not path.exists():
            yield f"{path} is not there", f"bring {path} from a backup"
        elif path.stat().st_uid != user.pw_uid:
            owner = path.stat().st_uid
            yield (
                f"{path} belongs to user {owner}, not to {user.pw_name}",
                f"chown -R {user.pw_name} {folder.broker_files}",
            )
    groups = set(os.getgrouplist(user.pw_name, user.pw_gid))
    for above in folder.broker_files.parents:
        if user.pw_uid != 0 and not _lets_through(above.stat(), user.pw_uid, groups):
            yield f"{above} does not let {user.pw_name} through", f"chmod o+x {above}"


def _lets_through(status: os.stat_result, user_id: int, groups: set[int]) -> bool:
    if status.st_uid == user_id:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid in groups:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _see_as(folder: SecuredFolder) -> str:
    """What to do where this user may not look."""
    return f"run this as root, or as the user who made {folder.path}"
