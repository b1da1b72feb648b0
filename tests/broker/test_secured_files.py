"""The files of a secured broker: certificates, configuration, modes; and one's own certificates."""

from __future__ import annotations

import getpass
import socket
import ssl
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from broker.authority import Authority
from broker.certificates import revoked_serials, serial_of
from broker.control import StoppedAccess, open_access
from broker.enrolment import enrol, revoke
from broker.errors import BrokerStartFailed, EnrolmentError
from broker.issued import members
from broker.mosquitto_files import PLUGIN_NAME, find_plugin, secured_configuration
from broker.roles import Member
from broker.secured import OwnCertificates, SecuredFolder, make_secured
from broker.secured_run import run_secured
from tests.broker.secured import edit_configuration

NOW = datetime.now(UTC)
KITCHEN = Member("edge", "kitchen")


@pytest.fixture
def make(mosquitto_program: Path, tmp_path: Path, free_port: Callable[[], int]) -> Any:
    """Makes a broker's folder that listens on 127.0.0.1."""

    def build(name: str = "broker", **options: Any) -> SecuredFolder:
        return make_secured(
            tmp_path / name,
            options.pop("hosts", ["127.0.0.1"]),
            now=NOW,
            port=free_port(),
            listen="127.0.0.1",
            user=getpass.getuser(),
            **options,
        )

    return build


def modes(folder: Path) -> dict[str, int]:
    """The mode of every file and folder below."""
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in folder.rglob("*")
    }


def test_every_secret_is_for_its_owner_only(make: Any) -> None:
    folder = make()
    found = modes(folder.path)
    secrets = {name for name in found if name.endswith("-key.pem")} | {
        "mosquitto/dynamic-security.json"
    }
    assert len(secrets) == 4
    assert {found[name] for name in secrets} == {0o600}
    assert {found[name] for name in ("authority", "operator", "mosquitto")} == {0o700}
    with pytest.raises(EnrolmentError, match="not empty"):
        make()


def test_certificates_say_what_they_are_for(make: Any) -> None:
    folder = make(hosts=["broker.example", "192.0.2.7"])
    server = x509.load_pem_x509_certificate((folder.broker_files / "server.pem").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"broker.example", "localhost"}
    addresses = {str(one) for one in names.get_values_for_type(x509.IPAddress)}
    assert addresses == {"192.0.2.7", "127.0.0.1"}
    pair = enrol(folder, KITCHEN, now=NOW, days=30).pair
    card = x509.load_pem_x509_certificate(pair.certificate)
    assert card.subject.rfc4514_string() == "CN=edge-kitchen,O=ELMA"
    assert card.not_valid_after_utc - NOW < timedelta(days=30, seconds=1)
    purposes = card.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [purpose.dotted_string for purpose in purposes] == ["1.3.6.1.5.5.7.3.2"]
    assert not card.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_revocation_list_keeps_earlier_entries_and_outlives_every_certificate(make: Any) -> None:
    folder = make()
    serials = set()
    for name in ("kitchen", "garage"):
        member = Member("edge", name)
        serials.add(serial_of(enrol(folder, member, now=NOW).pair.certificate))
        revoke(folder, member, now=NOW)
    assert members(folder) == ["operator-main"]
    content = folder.revocation_file.read_bytes()
    assert revoked_serials(content) == serials
    ends = x509.load_pem_x509_crl(content).next_update_utc
    assert ends is not None
    assert ends > NOW + timedelta(days=3_000)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_before_1_2_is_refused_by_our_line_of_the_configuration(make: Any) -> None:
    folder = make()
    operator = folder.path / "operator"
    context = ssl.create_default_context(cafile=operator / "authority.pem")
    context.load_cert_chain(operator / "client.pem", operator / "client-key.pem")
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    # OpenSSL itself may refuse the old version; with this only our line stands against it.
    ours, weak = "tls_version tlsv1.2", "ciphers DEFAULT:@SECLEVEL=0"
    edit_configuration(folder, (ours, f"{ours}\n{weak}"))
    with run_secured(folder):
        with pytest.raises(BrokerStartFailed, match="runs already, or was left by"):
            run_secured(folder)
        assert not handshakes(context, folder.port)
    edit_configuration(folder, (ours, "tls_version tlsv1.1"))
    with run_secured(folder):
        assert handshakes(context, folder.port)


def handshakes(context: ssl.SSLContext, port: int) -> bool:
    """Whether a broker there agrees to this TLS."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1"),
        ):
            return True
    except ssl.SSLError:
        return False


def test_certificates_of_ones_own_serve_and_sign(make: Any, tmp_path: Path) -> None:
    web, ours = Authority.make("web", NOW), Authority.make("house", NOW)
    server = web.issue_server(["127.0.0.1"], NOW)
    files = {
        "server": server.certificate,
        "server_key": server.key,
        "server_authority": web.certificate,
        "authority": ours.certificate,
        "authority_key": ours.key,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    own = OwnCertificates(**{name: tmp_path / name for name in files})
    folder = make("own", own=own)
    with run_secured(folder):
        enrolled = enrol(folder, KITCHEN, now=NOW)
        assert enrolled.is_live
        assert enrolled.server_authority == web.certificate
        x509.load_pem_x509_certificate(enrolled.pair.certificate).verify_directly_issued_by(
            x509.load_pem_x509_certificate(ours.certificate)
        )


def test_certificates_of_ones_own_that_do_not_fit_are_refused(make: Any, tmp_path: Path) -> None:
    one, other = Authority.make("one", NOW), Authority.make("other", NOW)
    leaf = one.issue_client("edge-kitchen", NOW)
    for name, content in (
        ("one.pem", one.certificate),
        ("one.key", one.key),
        ("other.key", other.key),
        ("leaf.pem", leaf.certificate),
        ("leaf.key", leaf.key),
    ):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)

    def own(certificate: str, key: str) -> OwnCertificates:
        return OwnCertificates(authority=tmp_path / certificate, authority_key=tmp_path / key)

    with pytest.raises(EnrolmentError, match="does not belong"):
        make(own=own("one.pem", "other.key"))
    with pytest.raises(EnrolmentError, match="may sign no others"):
        make(own=own("leaf.pem", "leaf.key"))
    (tmp_path / "one.key").chmod(0o644)
    with pytest.raises(EnrolmentError, match=r"chmod 600 .*one\.key"):
        make(own=own("one.pem", "one.key"))
    with pytest.raises(EnrolmentError, match="three files"):
        OwnCertificates(server=tmp_path / "one.pem")
    assert not (tmp_path / "broker").exists()


def test_mosquitto_2_1_gets_no_option_that_it_deprecates(tmp_path: Path) -> None:
    def lines(version: Any) -> set[str]:
        text = secured_configuration(
            tmp_path, port=8883, listen=None, version=version, user="u", plugin=Path("p.so")
        )
        return {line for line in text.splitlines() if line and not line.startswith("#")}

    old, new = lines("2.0"), lines("2.1")
    assert old - new == {"per_listener_settings false", "allow_anonymous false", "plugin p.so"}
    assert new - old == {"listener_allow_anonymous false", "global_plugin p.so"}
    assert "listener 8883" in new


def test_the_plugin_is_the_one_beside_the_mosquitto_that_runs(
    mosquitto_program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, plugin = tmp_path / "sbin" / "mosquitto", tmp_path / "lib" / PLUGIN_NAME
    for path in (program, plugin):
        path.parent.mkdir()
        path.touch(mode=0o755)
    assert find_plugin() != plugin
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    assert find_plugin() == plugin


def test_a_broker_that_is_down_is_changed_in_its_file_and_one_that_hides_is_not(make: Any) -> None:
    folder = make()
    with open_access(folder) as access:
        assert isinstance(access, StoppedAccess)
    with pytest.raises(EnrolmentError, match="cannot be reached"), open_access(folder, "127.0.0.2"):
        pass
    # The broker of another container: its process cannot be seen here, and it writes the file too.
    folder.process_id_file.write_text("4000000\n")
    with pytest.raises(EnrolmentError, match="--broker-host"):
        enrol(folder, KITCHEN, now=NOW)
    folder.process_id_file.unlink()
    enrol(folder, KITCHEN, now=NOW)
    with pytest.raises(EnrolmentError, match="enrolled already"):
        enrol(folder, KITCHEN, now=NOW)
    with pytest.raises(EnrolmentError, match="nobody could enrol"):
        revoke(folder, Member("operator", "main"), now=NOW)
    with pytest.raises(EnrolmentError, match="not enrolled"):
        revoke(folder, Member("worker", "kitchen"), now=NOW)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "k\nn", "x" * 49])
def test_a_name_that_could_reach_further_than_itself_is_no_member(name: str) -> None:
    with pytest.raises(EnrolmentError, match="letters"):
        Member("edge", name)
