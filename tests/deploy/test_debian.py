"""The Debian packages: built, installed, upgraded, removed and purged below a folder by real dpkg.

Their libraries are a stand-in here, so that it takes seconds. The packages' own scripts run on this
machine with DPKG_ROOT set, as dpkg does for machines that cannot run their own programs.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from elma.installed_roles import Role
from elma.installing import TEXTFILE_FOLDER, plan_layout
from tests.conftest import find_program
from tests.elma.test_install import make_bundle

ROOT = Path(__file__).resolve().parents[2]


def _load() -> ModuleType:
    path = ROOT / "deploy/debian/build_packages.py"
    specification = importlib.util.spec_from_file_location("build_packages", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


building = _load()


@pytest.fixture(scope="module", autouse=True)
def dpkg() -> None:
    """This machine's dpkg; a skip where there is none, a failure under CI=true."""
    find_program("dpkg-deb", package="dpkg")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Libraries that are one file."""
    package = tmp_path / "site" / "elma"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "cli.py").write_text("def main():\n    print('a stand-in')\n")
    return package.parent


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A root with nothing but dpkg's own files."""
    root = tmp_path / "machine"
    for name in ("info", "updates", "triggers"):
        (root / "var/lib/dpkg" / name).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    return root


def run_dpkg(machine: Path, *arguments: str) -> str:
    """Real dpkg on that root."""
    done = subprocess.run(
        [
            *("dpkg", f"--root={machine}", "--force-script-chrootless", "--force-depends"),
            *("--force-not-root", "--log=/dev/null", *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def left(machine: Path) -> set[str]:
    """Files of anybody but dpkg."""
    return {
        str(path.relative_to(machine))
        for path in machine.rglob("*")
        if not path.is_dir() and "var/lib/dpkg" not in str(path)
    }


@pytest.mark.parametrize(
    ("role", "bundle"), [("edge", "edge"), ("worker", "worker"), ("tools", "monitor")]
)
def test_a_package_installs_upgrades_and_purges_cleanly(
    role: str, bundle: Role, site: Path, machine: Path, tmp_path: Path
) -> None:
    about = building.ROLES[role]
    old, new = (
        building.build(about, tmp_path / "dist", site=site, version=version)
        for version in ("0.1.0", "0.2.0")
    )
    run_dpkg(machine, "--install", str(old))
    units = {f"usr/lib/systemd/system/{name}" for name in about.unit_files}
    assert units | {f"opt/{about.package}/bin/elma"} <= left(machine)
    enrolled = make_bundle(tmp_path / "bundle", bundle, "north")
    textfile_folder = TEXTFILE_FOLDER if role == "edge" else None
    plan_layout(bundle, enrolled, machine, None, textfile_folder=textfile_folder).write()
    kept = {path for path in left(machine) if path.startswith("etc/elma/")}
    assert kept
    assert not any(path.endswith(about.unit_files[0]) for path in left(machine) - units)
    state = machine / about.paths.split()[-1]
    state.mkdir(parents=True, exist_ok=True)
    (state / "outbox.sqlite3").touch()
    wants = machine / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / about.unit_files[0].replace("@", "@north")).symlink_to("/dev/null")

    run_dpkg(machine, "--install", str(new))
    assert kept <= left(machine)

    run_dpkg(machine, "--remove", about.package)
    assert kept <= left(machine)
    assert (state / "outbox.sqlite3").exists()
    assert not any(path.startswith(("opt/", "usr/")) for path in left(machine))

    run_dpkg(machine, "--purge", about.package)
    assert left(machine) == set()


def test_the_program_is_an_environment_of_the_system_s_python(site: Path, tmp_path: Path) -> None:
    package = building.build(building.ROLES["edge"], tmp_path, site=site, version="1")
    subprocess.run(["dpkg-deb", "-x", package, tmp_path / "x"], check=True, timeout=60)
    environment = tmp_path / "x/opt/elma-edge"
    assert (environment / "bin/python3").readlink() == Path("/usr/bin/python3")
    assert (environment / "bin/elma").read_text().startswith("#!/opt/elma-edge/bin/python3 -I\n")
    assert "home = /usr/bin" in (environment / "pyvenv.cfg").read_text()
    fields = subprocess.run(
        ["dpkg-deb", "-f", package, "Depends"], check=True, timeout=60, capture_output=True
    ).stdout.decode()
    minor = sys.version_info.minor
    assert f"python3 (>= 3.{minor}), python3 (<< 3.{minor + 1})" in fields


def test_modes_in_a_package_do_not_come_from_the_builder(site: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        package = building.build(building.ROLES["edge"], tmp_path, site=site, version="1")
    finally:
        os.umask(before)
    listing = subprocess.run(
        ["dpkg-deb", "-c", package], check=True, timeout=60, capture_output=True, text=True
    ).stdout
    modes = {line.split()[0] for line in listing.splitlines()}
    assert modes == {"drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x", "lrwxrwxrwx"}
    assert {line.split()[1] for line in listing.splitlines()} == {"root/root"}


def test_the_tools_bring_the_command_that_people_call_and_no_other_package_does(
    site: Path, tmp_path: Path
) -> None:
    for role in building.ROLES.values():
        package = building.build(role, tmp_path, site=site, version="1")
        folder = tmp_path / role.package
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True, timeout=60)
        command = folder / "usr/bin/elma"
        assert command.is_symlink() == (role.package == "elma-tools")
    assert command.readlink() == Path("/opt/elma-tools/bin/elma")
