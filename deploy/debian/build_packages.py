"""Builds the Debian packages elma-edge, elma-worker and elma-tools, each with its libraries.

    .venv/bin/python deploy/debian/build_packages.py edge worker tools --out dist     (`make deb`)

Inputs: this checkout, the package index, dpkg-deb. Outputs: `dist/ROLE_VERSION_ARCH.deb`.

A package holds a virtual environment of its own in /opt, run by the system's Python: Debian has no
packages of half of these libraries, and one that called pip while it is installed would need a
network and could not be taken back. So it is large, and good for one minor version of Python: that
of the interpreter which runs this file, which its dependencies name.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("postinst", "prerm", "postrm")
MAINTAINER = "ELMA <elma@localhost>"


@dataclass(frozen=True)
class Role:
    """What one package is about. `units` may hold a pattern, for instances; `on_path`: whether its
    `elma` is the one that people call."""

    package: str
    extra: str
    unit_files: tuple[str, ...]
    units: str
    paths: str
    about: str
    on_path: bool = False


ROLES = {
    "edge": Role(
        package="elma-edge",
        extra="edge",
        unit_files=("elma-edge.service",),
        units="elma-edge.service",
        paths="etc/elma/edge etc/systemd/system/elma-edge.service.d var/lib/elma-edge "
        "var/lib/private/elma-edge",
        about="question answering on a small device: the agent",
    ),
    "worker": Role(
        package="elma-worker",
        extra="worker,onnx",  # torch for the pool; the publisher tries models as devices run them
        unit_files=("elma-worker@.service", "elma-rollout.service"),
        units="elma-worker@*.service elma-rollout.service",
        paths="etc/elma/workers etc/elma/rollout etc/elma/publishing "
        "usr/local/sbin/elma-publisher var/lib/elma-worker var/lib/private/elma-worker "
        "var/lib/elma-rollout var/lib/private/elma-rollout",
        about="question answering on small devices: a worker of the pool, and the rollout service",
    ),
    "tools": Role(
        package="elma-tools",
        extra="broker",
        unit_files=("elma-monitor.service",),
        units="elma-monitor.service",
        paths="etc/elma/monitor",
        about="question answering on small devices: keys, broker, enrolment, and the monitor",
        on_path=True,
    ),
}


def build(role: Role, out: Path, *, site: Path | None = None, version: str | None = None) -> Path:
    """Build one package; returns its file. `site` is a site-packages folder made before."""
    version, out = version or _version(), out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{role.package}-") as scratch:
        tree = Path(scratch, "tree")
        environment = tree / "opt" / role.package
        libraries = environment / "lib" / f"python{_minor()}" / "site-packages"
        if site is None:
            _install(role, libraries)
        else:
            shutil.copytree(site, libraries)
        _make_environment(environment, f"/opt/{role.package}")
        if role.on_path:
            (tree / "usr/bin").mkdir(parents=True)
            (tree / "usr/bin/elma").symlink_to(f"/opt/{role.package}/bin/elma")
        units = tree / "usr/lib/systemd/system"
        units.mkdir(parents=True)
        for name in role.unit_files:
            shutil.copy(ROOT / "deploy/systemd" / name, units / name)
        documents = tree / "usr/share/doc" / role.package
        documents.mkdir(parents=True)
        shutil.copy(ROOT / "LICENSE", documents / "copyright")
        _control(tree, role, version)
        _open_to_all(tree)
        package = out / f"{role.package}_{version}_{_architecture()}.deb"
        _run("dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", str(tree), str(package))
    return package


def _install(role: Role, libraries: Path) -> None:
    """ELMA and what the role needs; from which index, pip's own settings say."""
    requirement = f"{ROOT}[{role.extra}]"
    _run(sys.executable, "-m", "pip", "install", "-q", "--target", str(libraries), requirement)
    shutil.rmtree(libraries / "bin", ignore_errors=True)
    if (libraries / "nvidia").is_dir():
        print(
            f"{role.package}: the index has torch with CUDA only, some gigabytes more; for the "
            "build for processors, set PIP_EXTRA_INDEX_URL to an index that has it",
            file=sys.stderr,
        )


def _make_environment(environment: Path, home: str) -> None:
    """The few files that make a folder a virtual environment of the system's Python."""
    programs = environment / "bin"
    programs.mkdir(parents=True)
    (environment / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {_minor()}\n"
    )
    (programs / "python3").symlink_to("/usr/bin/python3")
    elma = programs / "elma"
    elma.write_text(f"#!{home}/bin/python3 -I\nfrom elma.cli import main\n\nmain()\n")
    elma.chmod(0o755)


def _control(tree: Path, role: Role, version: str) -> None:
    folder = tree / "DEBIAN"
    folder.mkdir()
    size = sum(file.lstat().st_size for file in tree.rglob("*") if file.is_file()) // 1024
    major, minor = _minor().split(".")
    fields = {
        "Package": role.package,
        "Version": version,
        "Architecture": _architecture(),
        "Maintainer": MAINTAINER,
        "Installed-Size": str(size),
        "Depends": f"python3 (>= {major}.{minor}), python3 (<< {major}.{int(minor) + 1}), "
        "libc6, libstdc++6",
        "Recommends": "systemd (>= 250)",
        "Section": "net",
        "Priority": "optional",
        "Description": role.about,
    }
    text = "".join(f"{name}: {value}\n" for name, value in fields.items())
    (folder / "control").write_text(text)
    for name in SCRIPTS:
        script = (ROOT / "deploy/debian" / name).read_text(encoding="utf-8")
        for field in ("package", "units", "paths"):
            script = script.replace(f"@{field}@", getattr(role, field))
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)


def _open_to_all(tree: Path) -> None:
    """Modes that do not depend on the builder's umask."""
    for path in [tree, *tree.rglob("*")]:
        if not path.is_symlink():
            is_program = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if is_program else 0o644)


def _version() -> str:
    text = (ROOT / "elma/__init__.py").read_text(encoding="utf-8")
    found = re.search(r'__version__ = "([^"]+)"', text)
    if found is None:
        raise SystemExit("elma/__init__.py names no __version__")
    return found.group(1)


def _minor() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _architecture() -> str:
    return _run("dpkg", "--print-architecture").strip()


def _run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ... failed:\n{done.stderr or done.stdout}")
    return done.stdout


def main() -> None:
    """Build what the command line names."""
    parser = argparse.ArgumentParser(description="Build ELMA's Debian packages.")
    parser.add_argument("roles", nargs="+", choices=sorted(ROLES))
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--version", help="default: that of this checkout")
    chosen = parser.parse_args()
    for name in chosen.roles:
        print(build(ROLES[name], chosen.out, version=chosen.version))


if __name__ == "__main__":
    main()
