"""`elma doctor --broker`: a folder of `elma broker init`, sound, and with each fault put in."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker.authority import Authority
from broker.certificates import serial_of
from broker.mosquitto_files import installed_version
from broker.secured import SecuredFolder
from elma.doctor import broker_files
from elma.doctor.broker_examination import examine_broker
from elma.doctor.broker_files import check_files, check_mosquitto, check_store
from elma.doctor.broker_running import check_names, check_running
from elma.doctor.elsewhere import ask_program
from elma.doctor.finding import Finding, State
from elma.doctor.here import Installed, look_around
from protocol.key_files import save_edge_public, save_pool_keys
from protocol.keys import EdgeKeys, PoolKeys
from tests.broker.secured import Site, edit_access, edit_configuration, make_site, serving

NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=900)
Fault = Callable[[SecuredFolder], None]


@pytest.fixture
def site(mosquitto_program: Path, tmp_path: Path, free_port: Callable[[], int]) -> Site:
    """A broker's folder with members, whose edges have their keys in `elma-keys`."""
    made = make_site(tmp_path, free_port())
    keys = tmp_path / "elma-keys"
    (keys / "edges").mkdir(parents=True)
    save_pool_keys(keys / "pool-secret.json", PoolKeys.make("p1"))
    for edge in ("kitchen", "garage"):
        save_edge_public(keys / "edges", edge, EdgeKeys.make(edge).public)
    return made


def examined(folder: SecuredFolder) -> dict[str, Finding]:
    """Every finding about the folder by its name."""
    found = list(examine_broker(folder.path, folder.path.parent / "elma-keys", NOW))
    assert len({finding.name for finding in found}) == len(found)
    return {finding.name: finding for finding in found}


def wrong(folder: SecuredFolder) -> dict[str, Finding]:
    """What is not in order, but for that the broker does not run."""
    found = examined(folder)
    assert found.pop("broker").state is State.FAILED
    return {name: finding for name, finding in found.items() if finding.state is not State.OK}


def test_a_sound_broker_is_sound_in_every_respect_while_it_runs(site: Site) -> None:
    with serving(site):
        found = examined(site.folder)
        done = doctor("--broker", str(site.folder.path), "--json", working=site.folder.path.parent)
    assert {name: one.text for name, one in found.items() if one.state is not State.OK} == {}
    assert set(found) == {
        *("mosquitto", "files", "configuration", "certificate", "authority", "members"),
        *("revocations", "rights", "edge keys", "disk", "broker", "names"),
    }
    assert found["rights"].figures["members"] == 6
    assert found["broker"].figures["version"].startswith("mosquitto version 2.")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert {one["of"] for one in report["findings"]} == {"broker"}
    assert [one["name"] for one in report["findings"]] == list(found)


def test_a_broker_that_does_not_run_is_a_failure_with_the_command_that_starts_it(
    site: Site,
) -> None:
    assert wrong(site.folder) == {}
    done = doctor("--broker", str(site.folder.path), working=site.folder.path.parent)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("failed")]
    assert "does not run" in line
    assert f"-> elma broker run {site.folder.path}" in done.stdout
    assert done.stderr == ""


def own_file(name: str, content: Callable[[SecuredFolder], bytes]) -> Fault:
    """Another content of one of mosquitto's files."""
    return lambda folder: rewrite(folder.broker_files / name, content(folder))


def rewrite(path: Path, content: bytes) -> None:
    """In place: mode and owner stay."""
    path.write_bytes(content)


def configured(*changes: tuple[str, str]) -> Fault:
    """Other lines of mosquitto.conf."""
    return lambda folder: edit_configuration(folder, *changes)


def granted(change: Callable[[dict[str, Any]], None]) -> Fault:
    """Other rights."""
    return lambda folder: edit_access(folder, change)


def new_server(folder: SecuredFolder, began: datetime, days: int) -> None:
    """Another server certificate, with its key."""
    pair = folder.authority().issue_server(["127.0.0.1"], began, days)
    rewrite(folder.broker_files / "server.pem", pair.certificate)
    rewrite(folder.broker_files / "server-key.pem", pair.key)


def issued(name: str, began: datetime, days: int) -> Fault:
    """A member's last certificate."""

    def change(folder: SecuredFolder) -> None:
        pair = folder.authority().issue_client(name, began, days)
        rewrite(folder.issued_folder / f"{name}.pem", pair.certificate)

    return change


def without_rule(name: str, topic: str) -> Fault:
    """A role that lacks what has to do with a topic."""

    def change(document: dict[str, Any]) -> None:
        (role,) = [one for one in document["roles"] if one["rolename"] == name]
        kept = [rule for rule in role["acls"] if topic not in rule["topic"]]
        assert len(kept) < len(role["acls"])
        role["acls"] = kept

    return granted(change)


def with_rule(name: str, topic: str) -> Fault:
    """A role that may publish something more."""
    rule = {"acltype": "publishClientSend", "topic": topic, "priority": 0, "allow": True}

    def change(document: dict[str, Any]) -> None:
        (role,) = [one for one in document["roles"] if one["rolename"] == name]
        role["acls"].append(rule)

    return granted(change)


def hosts_are(*hosts: str) -> Fault:
    """Other names than the certificate was made for."""

    def change(folder: SecuredFolder) -> None:
        file = folder.path / "broker.json"
        document = json.loads(file.read_bytes())
        file.write_text(json.dumps({**document, "hosts": hosts}), encoding="utf-8")

    return change


def list_of(authority: Authority, at: datetime) -> Fault:
    """A revocation list of an authority."""
    return own_file("revoked.pem", lambda _folder: authority.revocation_list((), at))


def client_is_gone(name: str) -> Fault:
    def change(document: dict[str, Any]) -> None:
        document["clients"] = [one for one in document["clients"] if one["username"] != name]

    return granted(change)


def a_stranger_has_rights(document: dict[str, Any]) -> None:
    document["clients"].append({"username": "edge-attic", "roles": []})


def an_ended_authority(folder: SecuredFolder) -> None:
    for place in (
        folder.broker_files / "members-authority.pem",
        folder.path / "authority/authority.pem",
    ):
        rewrite(place, SHORT.certificate)
    list_of(SHORT, NOW)(folder)


def a_key_more(folder: SecuredFolder) -> None:
    edges = folder.path.parent / "elma-keys" / "edges"
    save_edge_public(edges, "cellar", EdgeKeys.make("cellar").public)


def serial(folder: SecuredFolder, name: str) -> int:
    """The serial number of a member's certificate."""
    return serial_of((folder.issued_folder / f"{name}.pem").read_bytes())


def stale_list(folder: SecuredFolder) -> bytes:
    """A list of the folder's own authority that was good for a day, long ago."""
    authority = folder.path / "authority"
    key = serialization.load_pem_private_key((authority / "authority-key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    name = x509.load_pem_x509_certificate((authority / "authority.pem").read_bytes()).subject
    builder = x509.CertificateRevocationListBuilder().issuer_name(name)
    builder = builder.last_update(LONG_AGO).next_update(LONG_AGO + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


OTHER = Authority.make("another authority", NOW)
SHORT = Authority.make("one that ends", LONG_AGO, days=800)
FAULTS: dict[str, tuple[Fault, set[str], State, str]] = {
    "an ended certificate": (
        lambda folder: new_server(folder, LONG_AGO, 825),
        {"certificate"},
        State.FAILED,
        "ended on",
    ),
    "a certificate that ends soon": (
        lambda folder: new_server(folder, LONG_AGO, 910),
        {"certificate"},
        State.WARNING,
        "good until",
    ),
    "a clock that is behind": (
        lambda folder: new_server(folder, NOW + timedelta(days=2), 825),
        {"certificate"},
        State.FAILED,
        "not valid before",
    ),
    "a key that is not the certificate's": (
        own_file("server-key.pem", lambda _: OTHER.issue_server(["x"], NOW).key),
        {"certificate"},
        State.FAILED,
        "is not the key of",
    ),
    "a wrong host name": (
        hosts_are("broker.example", "127.0.0.1"),
        {"certificate"},
        State.FAILED,
        "broker.example",
    ),
    "another authority": (
        own_file("members-authority.pem", lambda _: OTHER.certificate),
        {"authority", "revocations"},
        State.FAILED,
        "another authority",
    ),
    "an ended authority": (an_ended_authority, {"authority"}, State.FAILED, "ended on"),
    "a member whose certificate has ended": (
        issued("edge-kitchen", LONG_AGO, 730),
        {"members"},
        State.FAILED,
        "edge-kitchen",
    ),
    "a member whose certificate ends soon": (
        issued("worker-north", LONG_AGO, 905),
        {"members"},
        State.WARNING,
        "worker-north",
    ),
    "no revocation list": (
        lambda folder: folder.revocation_file.unlink(),
        {"files", "revocations"},
        State.FAILED,
        "revoked.pem is not there",
    ),
    "a revocation list of another authority": (
        list_of(OTHER, NOW),
        {"revocations"},
        State.FAILED,
        "another authority's",
    ),
    "a stale revocation list": (
        own_file("revoked.pem", lambda folder: stale_list(folder)),
        {"revocations"},
        State.FAILED,
        "is over since",
    ),
    "a member that is on the list": (
        lambda folder: rewrite(
            folder.revocation_file,
            folder.authority().revocation_list([serial(folder, "edge-kitchen")], NOW),
        ),
        {"revocations"},
        State.FAILED,
        "edge-kitchen",
    ),
    "a key that others may read": (
        lambda folder: (folder.broker_files / "server-key.pem").chmod(0o644),
        {"files"},
        State.FAILED,
        "mode 0644",
    ),
    "an authority's key that others may read": (
        lambda folder: (folder.path / "authority" / "authority-key.pem").chmod(0o640),
        {"files"},
        State.FAILED,
        "authority-key.pem",
    ),
    "a role that is not there": (
        granted(lambda document: document.update(roles=document["roles"][:-1])),
        {"rights"},
        State.FAILED,
        "monitor-eye",
    ),
    "a client that is not there": (
        client_is_gone("worker-north"),
        {"rights"},
        State.FAILED,
        "worker-north",
    ),
    "a rule that is not there": (
        without_rule("edge-garage", "/ans/"),
        {"rights"},
        State.FAILED,
        "edge-garage",
    ),
    "a rule too many": (
        with_rule("edge-garage", "elma/v1/ans/+/+"),
        {"rights"},
        State.FAILED,
        "may do more than their kind: edge-garage",
    ),
    "rights that nobody was given": (
        granted(lambda document: document["defaultACLAccess"].update(subscribe=True)),
        {"rights"},
        State.FAILED,
        "by default",
    ),
    "somebody unknown": (
        granted(a_stranger_has_rights),
        {"rights", "edge keys"},
        State.WARNING,
        "edge-attic",
    ),
    "damaged rights": (
        lambda folder: rewrite(folder.access_file, b"{"),
        {"rights", "edge keys"},
        State.FAILED,
        "does not start with it",
    ),
    "an edge without its key": (
        lambda folder: (folder.path.parent / "elma-keys/edges/garage.json").unlink(),
        {"edge keys"},
        State.FAILED,
        "garage",
    ),
    "an edge without rights": (a_key_more, {"edge keys"}, State.WARNING, "cellar"),
    "anonymous clients": (
        configured(("allow_anonymous false", "allow_anonymous true")),
        {"configuration"},
        State.FAILED,
        "allow_anonymous false",
    ),
    "no certificate needed": (
        configured(("require_certificate true", "")),
        {"configuration"},
        State.FAILED,
        "require_certificate true",
    ),
    "no list read": (
        configured(("crlfile ", "# crlfile ")),
        {"configuration"},
        State.FAILED,
        "crlfile",
    ),
    "a second door": (
        configured(("protocol mqtt", "protocol mqtt\nlistener 1883")),
        {"configuration"},
        State.FAILED,
        "one listener",
    ),
    "another limit": (
        configured(("max_queued_messages 10000", "max_queued_messages 10")),
        {"configuration"},
        State.WARNING,
        "max_queued_messages",
    ),
    "a line that is not ours": (
        configured(("protocol mqtt", "protocol mqtt\nmax_keepalive 60")),
        {"configuration"},
        State.WARNING,
        "max_keepalive",
    ),
    "a plugin that is not there": (
        configured(("mosquitto_dynamic_security.so", "gone.so")),
        {"mosquitto"},
        State.FAILED,
        "gone.so",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_nothing_else_is(name: str, site: Site) -> None:
    fault, names, state, words = FAULTS[name]
    fault(site.folder)
    found = wrong(site.folder)
    assert set(found) == names, {one: finding.text for one, finding in found.items()}
    finding = found[min(names, key=lambda one: found[one].state is not state)]
    assert finding.state is state
    assert any(words in one.text for one in found.values()), finding.text
    assert all(one.advice for one in found.values())


def test_mosquitto_s_user_has_to_own_its_files_and_to_come_to_them(site: Site) -> None:
    assert check_files(site.folder).state is State.OK
    nobody = check_files(replace(site.folder, user="nobody"))
    assert nobody.state is State.FAILED
    assert "not to nobody" in nobody.text
    assert "chown -R nobody" in nobody.advice
    stranger = check_files(replace(site.folder, user="no-such-user"))
    assert (stranger.state, "no such user" in stranger.text) == (State.FAILED, True)
    site.folder.path.chmod(0o700)
    assert "does not let nobody through" in check_files(replace(site.folder, user="nobody")).text


def test_the_form_of_the_configuration_has_to_be_mosquitto_s(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_mosquitto(site.folder).state is State.OK
    other = "2.0" if installed_version() == "2.1" else "2.1"
    finding = check_mosquitto(replace(site.folder, mosquitto=other))
    # 2.1 takes the form for 2.0 and complains; 2.0 does not start with the one for 2.1.
    assert finding.state is (State.FAILED if other == "2.1" else State.WARNING)
    monkeypatch.setattr(broker_files, "find_mosquitto", lambda: None)
    finding = check_mosquitto(site.folder)
    assert (finding.state, "apt-get" in finding.advice) == (State.FAILED, True)


def test_a_disk_that_cannot_hold_the_store_twice_is_a_failure(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site.folder.process_id_file.parent / "mosquitto.db").write_bytes(b"x" * 100)
    usage = namedtuple("usage", "free")
    for free, state in ((99, State.FAILED), (1000, State.WARNING), (10**10, State.OK)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _path, free=free: usage(free))
        assert check_store(site.folder).state is state


def test_another_program_on_the_port_is_not_taken_for_the_broker(site: Site) -> None:
    with socket.create_server(("127.0.0.1", site.folder.port)) as listener:
        listener.settimeout(5)
        finding = check_running(replace(site.folder))
    assert finding.state is State.FAILED
    assert "another program listens" in finding.text


def test_a_running_broker_is_seen_from_its_clients_side(site: Site) -> None:
    folder = site.folder
    with serving(site):
        assert check_names(folder).state is State.OK
        away = check_names(replace(folder, hosts=("127.0.0.1", "127.0.0.9")))
        assert (away.state, "127.0.0.9" in away.text) == (State.WARNING, True)
        pair = folder.authority().issue_server(["127.0.0.1"], NOW)
        rewrite(folder.broker_files / "server.pem", pair.certificate)
        older = check_names(folder)
        assert (older.state, "older certificate" in older.text) == (State.WARNING, True)
        rewrite(folder.path / "operator" / "authority.pem", OTHER.certificate)
        refused = check_names(folder)
        assert (refused.state, "turn away" in refused.text) == (State.FAILED, True)
        assert check_running(folder).state is State.FAILED


def test_small_packets_only_are_a_warning(site: Site) -> None:
    edit_configuration(site.folder, ("max_packet_size ", "max_packet_size 2000000\n# "))
    with serving(site):
        finding = check_running(site.folder)
    assert (finding.state, "2,000,000" in finding.text) == (State.WARNING, True)


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    done = doctor("--broker", str(tmp_path))
    assert done.returncode == 1
    assert f"{tmp_path} is no folder of a secured broker" in done.stdout
    assert doctor("--broker", "a", "--config", "b").returncode == 2


def test_what_is_installed_is_found_and_a_folder_at_hand_comes_first(tmp_path: Path) -> None:
    root, working = tmp_path / "root", tmp_path / "work"
    nothing = look_around(root, working)
    assert (nothing.edge, nothing.workers, nothing.broker) == (None, (), None)
    for file in (
        *("etc/elma/edge/edge.toml", "etc/elma/workers/south/worker.toml"),
        *("etc/elma/workers/north/worker.toml", "var/lib/elma-broker/broker.json"),
    ):
        (root / file).parent.mkdir(parents=True)
        (root / file).touch()
    here = look_around(root, working)
    assert here.edge == Installed(root / "etc/elma/edge/edge.toml", program=None)
    assert [one.settings.parent.name for one in here.workers] == ["north", "south"]
    assert here.broker == root / "var/lib/elma-broker"
    (working / "elma-broker").mkdir(parents=True)
    (working / "elma-broker" / "broker.json").touch()
    assert look_around(root, working).broker == working / "elma-broker"


@pytest.mark.parametrize("folder", ["etc/systemd/system", "usr/lib/systemd/system"])
def test_the_program_that_a_unit_starts_is_found(tmp_path: Path, folder: str) -> None:
    for file in ("etc/elma/workers/north/worker.toml", f"{folder}/elma-worker@.service"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("[Service]\nExecStart=/srv/own/bin/elma worker run\n")
    (north,) = look_around(tmp_path, tmp_path).workers
    assert north.program == Path("/srv/own/bin/elma")


def test_a_service_s_own_program_is_asked_what_it_finds(tmp_path: Path) -> None:
    program = tmp_path / "elma"
    found = [{"name": "engine", "state": "warning", "text": "onnx", "advice": "none", "of": "edge"}]
    program.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"print(json.dumps({{'ok': True, 'findings': {found}}}) if sys.argv[1:] == "
        "['doctor', '--config', 'a.toml', '--json'] else sys.argv)\n"
    )
    program.chmod(0o755)
    says, engine = ask_program(program, ["--config", "a.toml"])
    assert str(program) in says.text
    assert engine == Finding("engine", State.WARNING, "onnx", "none")
    (wrong,) = ask_program(program, ["--config", "b.toml"])
    assert (wrong.state, "exit status 0" in wrong.text) == (State.FAILED, True)
    (missing,) = ask_program(tmp_path / "nowhere", [])
    assert (missing.state, "No such file" in missing.text) == (State.FAILED, True)
    assert missing.advice


def doctor(*arguments: str, working: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the real program, where `elma-keys` may be."""
    return subprocess.run(
        [sys.executable, "-m", "elma", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=working,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
