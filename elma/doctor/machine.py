"""Checks of the machine: its processor, its memory, the disk under the outbox and the releases.

Output: findings. Neighbour: `elma.bench.machine` knows where the figures stand.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from elma.bench.machine import describe_machine
from elma.doctor.finding import Finding, State, in_mb

LITTLE_MEMORY_BYTES = 300e6
LITTLE_DISK_BYTES = 100e6
MEMORY_FILE = Path("/proc/meminfo")


def check_processor() -> Finding:
    """What computes, and which of its instructions matter to a reader."""
    machine = describe_machine(threads=0)
    flags = machine["flags"]
    text = (
        f"{machine['cpu']}, {machine['cores']} cores, {' '.join(flags) or 'no vector flags seen'}"
    )
    figures = {"cpu": machine["cpu"], "cores": machine["cores"], "flags": flags}
    return Finding("processor", State.OK, text, figures=figures)


def check_memory(memory_file: Path = MEMORY_FILE) -> Finding:
    """How much memory a reader could still have."""
    fields = _read_meminfo(memory_file)
    available, total = fields.get("MemAvailable"), fields.get("MemTotal")
    if available is None or total is None:
        return Finding("memory", State.WARNING, "this system does not tell how much memory is free")
    figures = {"available_bytes": available, "total_bytes": total}
    text = f"{in_mb(available)} free of {in_mb(total)}"
    if available < LITTLE_MEMORY_BYTES:
        advice = "a device needs 200 MB with the onnx engine, 400 MB with torch; end something"
        return Finding("memory", State.WARNING, text, advice, figures)
    return Finding("memory", State.OK, text, figures=figures)


def check_disk(outbox: Path) -> Finding:
    """Whether accepted questions can be stored where the outbox is to lie."""
    folder = outbox.absolute().parent
    return _check_room("disk", folder, f"{folder}, where the outbox lies", "outbox")


def check_store(folder: Path) -> Finding:
    """Whether releases can be stored; the store is made when it is first needed."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    return _check_room("release store", there, f"{folder}, for releases", "releases.folder")


def _check_room(name: str, folder: Path, place: str, setting: str) -> Finding:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(
            name,
            State.FAILED,
            f"the folder {folder} cannot be used: {error.strerror}",
            f"make it: mkdir -p {folder}, or set another `{setting}`",
        )
    figures = {"folder": str(folder), "free_bytes": free}
    text = f"{in_mb(free)} free in {place}"
    if not os.access(folder, os.W_OK | os.X_OK):
        advice = f"let this user write into {folder}, or set another `{setting}`"
        return Finding(name, State.FAILED, f"{folder} is not writable", advice, figures)
    if free < LITTLE_DISK_BYTES:
        return Finding(name, State.WARNING, text, "make room: a full disk refuses", figures)
    return Finding(name, State.OK, text, figures=figures)


def _read_meminfo(file: Path) -> dict[str, int]:
    """The system's figures in bytes; empty where it has none."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in fields if len(words) > 1}
