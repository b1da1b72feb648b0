"""The units, as systemd reads them, with the files that `elma install` lays out beside them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from elma.installing import TEXTFILE_FOLDER, plan_layout
from tests.conftest import find_program
from tests.elma.test_install import make_bundle

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "deploy" / "systemd"
SERVICES = [
    "elma-edge.service",
    "elma-worker@.service",
    "elma-rollout.service",
    "elma-monitor.service",
]
PROGRAMS = (
    *(f"opt/elma-{package}/bin/elma" for package in ("edge", "worker", "tools")),
    *("usr/sbin/mosquitto", "bin/ln", "bin/rm"),
)


@pytest.fixture(scope="session")
def analyze() -> str:
    """This machine's systemd-analyze; a skip where there is none, a failure under CI=true."""
    return str(find_program("systemd-analyze", package="systemd"))


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A root with an enrolled device, a worker, the other units, and programs in their places."""
    root = tmp_path / "machine"
    root.mkdir()
    edge = make_bundle(tmp_path / "edge", "edge", "kitchen")
    plan_layout("edge", edge, root, None, textfile_folder=TEXTFILE_FOLDER).write()
    worker = make_bundle(tmp_path / "worker", "worker", "north")
    plan_layout("worker", worker, root, None).write()
    eye = make_bundle(tmp_path / "eye", "monitor", "eye")
    plan_layout("monitor", eye, root, None).write()
    units = root / "etc/systemd/system"
    shutil.copy(UNITS / "elma-rollout.service", units)
    shutil.copytree(UNITS / "mosquitto.service.d", units / "mosquitto.service.d")
    (units / "mosquitto.service").write_text(
        "[Service]\nType=notify\nExecStartPre=/bin/mkdir x\nExecStart=/usr/sbin/mosquitto\n"
    )
    for target in ("sysinit", "basic", "shutdown", "network-online", "time-sync", "multi-user"):
        (units / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    (units / "system.slice").write_text("[Unit]\nDefaultDependencies=no\n")
    for program in PROGRAMS:
        (root / program).parent.mkdir(parents=True, exist_ok=True)
        (root / program).write_text("#!/bin/sh\n")
        (root / program).chmod(0o755)
    return root


def verify(analyze: str, machine: Path, unit: str) -> str:
    """What `systemd-analyze verify` complains about."""
    done = subprocess.run(
        [analyze, "verify", "--root", str(machine), "--man=no", unit],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # It wants a socket for the journal below the root, which is no matter of the unit.
    lines = [line for line in done.stderr.splitlines() if unit.split(".")[0].split("@")[0] in line]
    return "\n".join(lines) + ("" if done.returncode == 0 else f"\nstatus {done.returncode}")


@pytest.mark.parametrize(
    "unit",
    [
        *("elma-edge.service", "elma-worker@north.service", "elma-rollout.service"),
        *("elma-monitor.service", "mosquitto.service"),
    ],
)
def test_systemd_finds_nothing_wrong_with_a_unit(analyze: str, machine: Path, unit: str) -> None:
    assert verify(analyze, machine, unit) == ""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Type=notify", "Type=notifies"),
        ("WatchdogSec=60", "WatchdogSec=often"),
        ("/opt/elma-edge/bin/elma", "/opt/elma-edge/bin/missing"),
        ("LockPersonality=yes", "LockPersonalty=yes"),
    ],
)
def test_systemd_would_have_found_a_mistake(
    analyze: str, machine: Path, before: str, after: str
) -> None:
    unit = machine / "etc/systemd/system/elma-edge.service"
    text = unit.read_text()
    assert before in text
    unit.write_text(text.replace(before, after))
    assert verify(analyze, machine, unit.name) != ""


@pytest.mark.parametrize("unit", SERVICES)
def test_a_unit_is_exposed_no_more_than_the_documentation_says(analyze: str, unit: str) -> None:
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    documented = re.search(rf"\| `{re.escape(unit)}` \| ([\d.]+) \|", page)
    assert documented is not None
    tenths = round(10 * float(documented.group(1)))
    done = subprocess.run(
        [analyze, "security", "--offline=yes", f"--threshold={tenths}", str(UNITS / unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("unit", SERVICES)
def test_a_unit_reports_progress_owns_nothing_and_is_lent_its_secrets(unit: str) -> None:
    service = options(UNITS / unit)
    assert service["Type"] == ["notify"]
    assert int(service["WatchdogSec"][0]) > 0
    assert service["DynamicUser"] == ["yes"]
    assert ("StateDirectory" in service) == (unit != "elma-monitor.service")  # it keeps nothing
    lent = {one.split(":")[0] for one in service["LoadCredential"]}
    named = {one.rsplit("/", 1)[1] for one in service["Environment"] if "=%d/" in one}
    assert lent == named


def test_what_torch_needs_is_not_denied_to_workers() -> None:
    assert "MemoryDenyWriteExecute" not in options(UNITS / "elma-worker@.service")
    edge = options(UNITS / "elma-edge.service")
    assert edge["MemoryDenyWriteExecute"] == ["yes"]
    assert "ELMA_EDGE_ENGINE=onnx" in edge["Environment"]  # even where torch is installed too


def test_units_come_with_the_installed_package() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"units/*", "units/*/*"' in project
    assert (ROOT / "elma/units").resolve() == UNITS


def test_the_command_beside_the_service_shares_its_user_store_and_settings() -> None:
    command = (UNITS / "elma-publisher").read_text(encoding="utf-8")
    unit = options(UNITS / "elma-rollout.service")
    assert unit["StateDirectory"] == ["elma-rollout"]
    for shared in ("User=elma-rollout", "StateDirectory=elma-rollout", "StateDirectoryMode=0700"):
        assert f"-p {shared} " in command
    assert "User" not in unit  # then it is the unit's own name
    store = [one for one in unit["Environment"] if "STORE" in one]
    assert [one.replace("%S", "/var/lib") for one in store] == [
        "ELMA_PUBLISHER_STORE=/var/lib/elma-rollout"
    ]
    assert f"-E {store[0].replace('%S', '/var/lib')} " in command


def options(unit: Path) -> dict[str, list[str]]:
    """The [Service] section; a name may stand there more than once."""
    section = unit.read_text(encoding="utf-8").split("[Service]\n")[1].split("\n[")[0]
    found: dict[str, list[str]] = {}
    for line in section.splitlines():
        if line and not line.startswith("#"):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found
