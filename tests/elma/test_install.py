"""`elma install`: a bundle laid out below a root; tests/deploy asks systemd what it thinks."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from broker import secured
from broker.secret_files import write_file, write_secret
from elma import installed_roles
from elma.cli import app
from elma.demonstration.setup import write_toml

ROOT = Path(__file__).resolve().parents[2]
CONNECTION = {"host": "broker.example", "port": 8883, "tls_ca_file": "authority.pem"}


def make_bundle(folder: Path, role: str, name: str, **settings: Any) -> Path:
    """What `elma enroll` makes, with words for keys."""
    folder.mkdir()
    for secret in ("edge-secret.json", "pool-secret.json", "client-key.pem"):
        write_secret(folder / secret, f"the secret {secret}".encode())
    for public in ("client.pem", "authority.pem", "pool-public.json", "publisher-public.json"):
        write_file(folder / public, public.encode())
    (folder / "edges").mkdir()
    write_secret(folder / "edges" / "kitchen.json", b"a public key")
    tables = {"broker": CONNECTION, "releases": {"folder": "releases"}}
    write_toml(folder / f"{role}.toml", {"name": name, **settings, **tables})
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The device kitchen's."""
    return make_bundle(tmp_path / "bundle", "edge", "kitchen", outbox="elma-edge.sqlite3")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty machine."""
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def install(bundle: Path, root: Path, *options: str, role: str = "edge", status: int = 0) -> str:
    """Run the verb; what it says."""
    arguments = ["install", role, "--bundle", str(bundle), "--root", str(root), *options]
    done = CliRunner().invoke(app, arguments)
    assert bool(done.exit_code) == bool(status), done.output
    return done.output if not status else str(done.exception)


def laid_out(root: Path) -> dict[str, str]:
    """Each file below, with its mode."""
    return {
        str(path.relative_to(root)): f"{stat.S_IMODE(path.stat().st_mode):04o}"
        for path in root.rglob("*")
        if path.is_file()
    }


def test_a_device_has_its_unit_its_settings_and_secrets_for_root_only(
    bundle: Path, root: Path
) -> None:
    said = json.loads(install(bundle, root, "--json"))
    assert laid_out(root) == {
        "etc/systemd/system/elma-edge.service": "0644",
        "etc/elma/edge/edge.toml": "0644",
        "etc/elma/edge/edge-secret.json": "0600",
        "etc/elma/edge/client-key.pem": "0600",
        "etc/elma/edge/client.pem": "0644",
        "etc/elma/edge/authority.pem": "0644",
        "etc/elma/edge/pool-public.json": "0644",
        "etc/elma/edge/publisher-public.json": "0644",
    }
    assert stat.S_IMODE((root / "etc/elma/edge").stat().st_mode) == 0o755
    assert {str(root / path) for path in laid_out(root)} == {one["path"] for one in said["files"]}
    assert said["next"][-1] == "systemctl enable --now elma-edge"


def test_what_the_agent_writes_goes_to_its_state_folder(bundle: Path, root: Path) -> None:
    install(bundle, root)
    settings = tomllib.loads((root / "etc/elma/edge/edge.toml").read_text())
    assert settings["outbox"] == "/var/lib/elma-edge/elma-edge.sqlite3"
    assert settings["releases"]["folder"] == "/var/lib/elma-edge/releases"
    assert settings["broker"] == CONNECTION


def test_a_worker_has_a_folder_of_its_name_and_the_devices_public_keys(
    tmp_path: Path, root: Path
) -> None:
    for name in ("north", "south"):
        install(make_bundle(tmp_path / name, "worker", name), root, role="worker")
    files = laid_out(root)
    for name in ("north", "south"):
        assert files[f"etc/elma/workers/{name}/pool-secret.json"] == "0600"
        assert files[f"etc/elma/workers/{name}/edges/kitchen.json"] == "0644"
    assert "etc/systemd/system/elma-worker@.service" in files


def test_the_rollout_service_has_no_secret_but_its_key_and_a_store_of_its_own(
    tmp_path: Path, root: Path
) -> None:
    made = make_bundle(tmp_path / "main", "publisher", "main", store="../elma-publisher")
    said = json.loads(install(made, root, "--json", role="publisher"))
    assert said["service"] == "elma-rollout"
    secrets = [one["path"] for one in said["files"] if one["mode"] == "0600"]
    assert secrets == [str(root / "etc/elma/rollout/client-key.pem")]
    assert laid_out(root)["etc/elma/rollout/publisher-public.json"] == "0644"
    settings = tomllib.loads((root / "etc/elma/rollout/publisher.toml").read_text())
    assert settings["store"] == "/var/lib/elma-rollout"


def test_the_monitor_has_its_unit_its_settings_and_one_secret(tmp_path: Path, root: Path) -> None:
    made = make_bundle(tmp_path / "eye", "monitor", "eye")
    said = json.loads(install(made, root, "--json", "--http-port", "9574", role="monitor"))
    assert said["next"] == ["systemctl daemon-reload", "systemctl enable --now elma-monitor"]
    files = laid_out(root)
    assert files["etc/systemd/system/elma-monitor.service"] == "0644"
    assert [path for path, mode in files.items() if mode == "0600"] == [
        "etc/elma/monitor/client-key.pem"
    ]
    settings = tomllib.loads((root / "etc/elma/monitor/monitor.toml").read_text())
    assert settings["http"] == {"port": 9574}


def test_who_publishes_beside_the_service_has_a_command_that_works_in_its_store(
    tmp_path: Path, root: Path
) -> None:
    made = make_bundle(tmp_path / "desk", "publisher", "desk", store="../elma-publisher")
    program = ("--program", "/srv/elma/bin/elma")
    said = json.loads(install(made, root, "--json", *program, role="publishing"))
    assert said["service"] == ""
    assert "elma-publisher publish" in said["next"][0]
    command = root / "usr/local/sbin/elma-publisher"
    assert laid_out(root)["usr/local/sbin/elma-publisher"] == "0755"
    assert "exec /srv/elma/bin/elma " in command.read_text()
    assert "/opt/" not in command.read_text()
    settings = tomllib.loads((root / "etc/elma/publishing/publisher.toml").read_text())
    assert settings["store"] == "/var/lib/elma-rollout"


def test_what_the_bundle_does_not_speak_of_stays_as_the_operator_has_set_it(
    bundle: Path, root: Path
) -> None:
    install(bundle, root)
    path = root / "etc/elma/edge/edge.toml"
    settings = tomllib.loads(path.read_text())
    changed = {**settings, "max_edge_layers": 3, "metrics": {"report_seconds": 60.0}}
    changed["broker"] = {**CONNECTION, "host": "old.example", "keep_alive_seconds": 20}
    write_toml(path, changed)
    install(bundle, root)
    after = tomllib.loads(path.read_text())
    assert after == {**changed, "broker": {**CONNECTION, "keep_alive_seconds": 20}}


def test_a_port_that_was_chosen_stays_when_the_bundle_is_renewed(
    tmp_path: Path, root: Path
) -> None:
    made = make_bundle(tmp_path / "south", "worker", "south")
    for options in (("--http-port", "8582"), ()):
        install(made, root, *options, role="worker")
        settings = tomllib.loads((root / "etc/elma/workers/south/worker.toml").read_text())
        assert settings["http"] == {"port": 8582}


def test_a_device_brings_its_figures_to_node_exporter_where_that_looks_for_them(
    bundle: Path, root: Path
) -> None:
    install(bundle, root, "--textfile", "/srv/figures")
    drop_in = (root / "etc/systemd/system/elma-edge.service.d/textfile.conf").read_text()
    assert " /srv/figures/elma-edge.prom\n" in drop_in
    assert "/var/lib/prometheus" not in drop_in


@pytest.mark.parametrize("folder", ["figures", "/a folder", "/a%d", "/a;b", "/"])
def test_a_folder_that_a_unit_would_misread_is_refused(
    bundle: Path, root: Path, folder: str
) -> None:
    assert "absolute path" in install(bundle, root, "--textfile", folder, status=2)
    assert laid_out(root) == {}


def test_mosquitto_is_told_where_the_broker_s_folder_is(root: Path) -> None:
    made = root / "srv/broker/mosquitto"
    made.mkdir(parents=True)
    (made / "mosquitto.conf").touch()
    arguments = ["install", "broker", "--folder", "/srv/broker", "--root", str(root), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["next"][-1] == "systemctl restart mosquitto"
    drop_in = (root / "etc/systemd/system/mosquitto.service.d/elma.conf").read_text()
    assert "ExecStart=/usr/sbin/mosquitto -c /srv/broker/mosquitto/mosquitto.conf" in drop_in
    settings = [line for line in drop_in.splitlines() if not line.startswith("#")]
    assert not any("/var/lib/elma-broker" in line for line in settings)


@pytest.mark.parametrize("folder", ["/var/lib/elma-broker", "/root/elma-broker", "elma-broker"])
def test_a_folder_that_mosquitto_could_not_use_is_refused(root: Path, folder: str) -> None:
    made = root / "root/elma-broker/mosquitto"
    made.mkdir(parents=True)
    (made / "mosquitto.conf").touch()
    arguments = ["install", "broker", "--folder", folder, "--root", str(root)]
    assert CliRunner().invoke(app, arguments).exit_code != 0
    assert not (root / "etc").exists()


def test_a_dry_run_writes_nothing_and_says_nothing_secret(bundle: Path, root: Path) -> None:
    said = install(bundle, root, "--dry-run")
    assert "would write" in said
    assert "the secret" not in said
    assert laid_out(root) == {}


def test_a_second_time_renews_the_keys_and_keeps_the_modes(bundle: Path, root: Path) -> None:
    install(bundle, root)
    before = laid_out(root)
    unit = root / "etc/systemd/system/elma-edge.service"
    written_at = unit.stat().st_mtime_ns
    write_secret(bundle / "client-key.pem", b"another")
    said = json.loads(install(bundle, root, "--json"))
    assert laid_out(root) == before
    assert (root / "etc/elma/edge/client-key.pem").read_bytes() == b"another"
    assert [Path(one["path"]).name for one in said["files"] if not one["was_there"]] == [
        "client-key.pem"
    ]
    assert unit.stat().st_mtime_ns == written_at, "systemd would ask for a reload"
    assert said["next"] == ["systemctl restart elma-edge"]
    unit.chmod(0o600)
    again = json.loads(install(bundle, root, "--json"))
    assert again["next"] == ["systemctl daemon-reload", "systemctl restart elma-edge"]
    assert laid_out(root) == before


def test_a_machine_that_is_another_device_is_left_as_it_is(
    bundle: Path, root: Path, tmp_path: Path
) -> None:
    install(bundle, root)
    other = make_bundle(tmp_path / "other", "edge", "garage")
    assert "belongs to 'kitchen'" in install(other, root, status=1)
    assert tomllib.loads((root / "etc/elma/edge/edge.toml").read_text())["name"] == "kitchen"


def test_a_secret_that_others_could_read_in_the_bundle_is_not_installed(
    bundle: Path, root: Path
) -> None:
    (bundle / "edge-secret.json").chmod(0o644)
    assert "chmod 600" in install(bundle, root, status=1)
    assert laid_out(root) == {}


@pytest.mark.parametrize("name", ["../../root", "a/b", "", 7])
def test_a_name_that_is_a_path_is_refused(tmp_path: Path, root: Path, name: Any) -> None:
    evil = make_bundle(tmp_path / "evil", "worker", name)
    assert "worker.toml" in install(evil, root, role="worker", status=1)
    assert laid_out(root) == {}


@pytest.mark.parametrize("name", ["authority.pem", "edge-secret.json", "edge.toml"])
@pytest.mark.parametrize("make", ["link", "fifo"])
def test_what_is_no_plain_file_in_a_bundle_is_not_installed(
    bundle: Path, root: Path, tmp_path: Path, name: str, make: str
) -> None:
    """Root reads the bundle, and what it writes may be read by all."""
    kept = tmp_path / "shadow"
    (bundle / name).rename(kept)
    if make == "link":
        (bundle / name).symlink_to(kept)
    else:
        os.mkfifo(bundle / name, 0o600)
    assert name in install(bundle, root, status=1)
    assert laid_out(root) == {}


def test_the_devices_folder_of_a_bundle_is_no_link(tmp_path: Path, root: Path) -> None:
    bundle = make_bundle(tmp_path / "north", "worker", "north")
    (bundle / "edges").rename(tmp_path / "elsewhere")
    (bundle / "edges").symlink_to(tmp_path / "elsewhere")
    assert "edges" in install(bundle, root, role="worker", status=1)
    assert laid_out(root) == {}


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path, root: Path) -> None:
    assert "elma enroll" in install(tmp_path, root, status=1)


def test_the_unit_starts_the_program_that_was_named_and_a_package_s_unit_is_left_alone(
    bundle: Path, root: Path
) -> None:
    unit = root / "etc/systemd/system/elma-edge.service"
    packaged = root / "usr/lib/systemd/system/elma-edge.service"
    packaged.parent.mkdir(parents=True)
    packaged.write_text("[Unit]\n")
    install(bundle, root)
    assert not unit.exists()
    install(bundle, root, "--program", "/srv/elma/bin/elma")
    starts = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
    assert starts == [
        "ExecStart=/srv/elma/bin/elma --log-format json edge run --config /etc/elma/edge/edge.toml"
    ]


def test_the_names_of_a_bundle_s_files_are_those_that_enrolment_gives() -> None:
    for name in ("AUTHORITY_NAME", "CERTIFICATE_NAME", "KEY_NAME"):
        assert getattr(installed_roles, name) == getattr(secured, name)
