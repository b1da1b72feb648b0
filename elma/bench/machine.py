"""What a figure of time was read on: processor, threads, versions, commit.

Output: a dictionary that goes into every result. It names no path, no host and no person.
Neighbours: every benchmark of `elma.bench` puts it into its JSON.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from elma import __version__

# What decides how fast a matrix product is.
FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)
ARM_FLAGS = ("asimd", "asimddp", "bf16", "i8mm", "sve")
LIBRARIES = ("torch", "onnxruntime", "transformers", "numpy", "tokenizers")
ENERGY_FILE = Path("/sys/class/powercap/intel-rapl:0/energy_uj")
CPU_FILE = Path("/proc/cpuinfo")


def describe_machine(threads: int, isa: str = "native") -> dict[str, Any]:
    """The machine, the threads that a benchmark used, and the instruction set it was held to."""
    fields = _cpu_fields()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "cpu": fields.get("model name") or platform.machine(),
        "cores": os.cpu_count() or 1,
        "flags": [flag for flag in (*FLAGS, *ARM_FLAGS) if flag in flags],
        "memory_mb": _memory_mb(),
        "threads": threads,
        "isa": isa,
        "python": platform.python_version(),
        "system": platform.system(),
        "versions": {name: _version_of(name) for name in LIBRARIES},
        "elma": __version__,
        "commit": _commit(),
    }


def read_energy_joules() -> float | None:
    """The processor's energy counter in joules; None where the machine reports none."""
    try:
        return int(ENERGY_FILE.read_text(encoding="ascii")) / 1e6
    except (OSError, ValueError):
        return None


def memory_of(process_id: int) -> dict[str, float]:
    """Resident memory of a process in MB (10^6 bytes): `rss_mb` now, `peak_mb` since it began.

    Raises OSError when there is no such process.
    """
    fields = _pairs(Path(f"/proc/{process_id}/status").read_text(encoding="utf-8"))
    return {
        "rss_mb": _kib(fields["VmRSS"]),
        "peak_mb": _kib(fields["VmHWM"]),
    }


def _kib(text: str) -> float:
    return round(int(text.split()[0]) * 1024 / 1e6, 1)


def _cpu_fields() -> dict[str, str]:
    try:
        return _pairs(CPU_FILE.read_text(encoding="utf-8").split("\n\n")[0])
    except OSError:
        return {}


def _pairs(text: str) -> dict[str, str]:
    lines = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _memory_mb() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6)


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, `+` behind it for local changes."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    # git's own program with words of our own, and no shell.
    done = subprocess.run(  # noqa: S603
        ["git", "-C", str(root), *arguments],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=10.0,
        check=True,
    )
    return done.stdout.strip()
