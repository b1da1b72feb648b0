"""Certificates renewed at a real mosquitto that runs on: whom it takes, and what it shows."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from broker import issued
from broker.authority import Authority
from broker.certificate_expiry import certificate_expiry
from broker.certificates import identity_of, serial_of
from broker.enrolment import revoke
from broker.errors import EnrolmentError
from broker.renewal import renew, renew_broker, retire_older
from broker.roles import Member
from broker.secured import OPERATOR, OwnCertificates, make_secured
from broker.session import Session
from broker.settings import BrokerSettings
from tests.broker.secured import Client, Site, make_site, serving
from tests.broker.test_session import wait_until

KITCHEN = Member("edge", "kitchen")
NOW = datetime.now(UTC)


@pytest.fixture
def site(mosquitto_program: Path, tmp_path: Path, free_port: Callable[[], int]) -> Site:
    """A broker's folder with members, not yet running."""
    return make_site(tmp_path, free_port())


@pytest.fixture
def served(site: Site) -> Iterator[Site]:
    """The same, with its broker."""
    with serving(site):
        yield site


def gets_in(site: Site, card: str) -> bool:
    """Whether the broker takes this certificate, with the rights of its name."""
    client = Client(site, card)
    try:
        return client.is_connected and client.may_publish("elma/v1/req/normal/kitchen/1")
    finally:
        client.close()


def shown_serial(site: Site) -> int:
    """The serial number of the certificate that the broker shows now."""
    context = site.context("edge-garage")
    address = ("127.0.0.1", site.folder.port)
    with (
        socket.create_connection(address, timeout=5.0) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        certificate = connection.getpeercert(binary_form=True)
    assert certificate is not None
    return serial_of(ssl.DER_cert_to_PEM_cert(certificate).encode())


def renewed_card(site: Site, card: str, *, keeps_key: bool = False) -> None:
    """Renew the kitchen's certificate and keep it under another name."""
    pair = renew(site.folder, KITCHEN, now=NOW, keeps_key=keeps_key).pair
    key = pair.key or (site.cards / "edge-kitchen.key").read_bytes()
    site.add_card(card, pair.certificate, key)


def test_a_renewed_member_gets_in_with_both_certificates_and_has_its_rights(served: Site) -> None:
    renewed_card(served, "second")
    assert gets_in(served, "edge-kitchen")
    assert gets_in(served, "second")
    keys = {(served.cards / f"{card}.key").read_bytes() for card in ("edge-kitchen", "second")}
    assert len(keys) == 2, "the key is the old one"


def test_a_member_may_keep_its_key(served: Site) -> None:
    renewed_card(served, "second", keeps_key=True)
    assert gets_in(served, "second")


def test_the_older_certificates_are_denied_once_they_are_retired_and_only_they(
    served: Site,
) -> None:
    garage = Client(served, "edge-garage")
    renewed_card(served, "second")
    renewed_card(served, "third")
    thief = Client(served, "edge-kitchen")
    assert thief.is_connected
    assert retire_older(served.folder, KITCHEN, now=NOW)
    assert thief.gone.get(timeout=15) == "Administrative action"
    assert garage.may_publish("elma/v1/metrics/garage")
    assert not gets_in(served, "edge-kitchen")
    assert not gets_in(served, "second")
    assert gets_in(served, "third")
    assert garage.gone.empty(), "another edge lost its connection"
    garage.close()


def test_a_revocation_denies_every_certificate_that_the_name_has(served: Site) -> None:
    renewed_card(served, "second")
    renewed_card(served, "third")
    assert revoke(served.folder, KITCHEN, now=NOW).list_is_read
    watcher = Client(served, "edge-garage")  # its handshake comes after the signal
    assert watcher.may_publish("elma/v1/metrics/garage")
    watcher.close()
    for card in ("edge-kitchen", "second", "third"):
        assert not Client(served, card).is_connected, card
    assert KITCHEN.identity not in issued.members(served.folder)


def test_a_running_broker_shows_its_new_certificate_and_no_connection_ends(served: Site) -> None:
    before = shown_serial(served)
    garage = Client(served, "edge-garage")
    renewed = renew_broker(served.folder, now=NOW)
    assert renewed.is_read
    assert renewed.server_is_new
    wait_until(lambda: shown_serial(served) != before)
    assert garage.may_publish("elma/v1/metrics/garage")
    assert garage.gone.empty()
    assert gets_in(served, "edge-kitchen")
    renewed_card(served, "second")
    assert retire_older(served.folder, KITCHEN, now=NOW), "the operator's new certificate works"
    garage.close()


def test_a_member_tells_the_end_of_the_certificate_that_the_broker_shows_it(served: Site) -> None:
    card = served.cards / "edge-garage"
    card.with_suffix(".key").chmod(0o600)
    settings = BrokerSettings(
        host="127.0.0.1",
        port=served.folder.port,
        tls_ca_file=served.cards / "server-authority.pem",
        tls_certificate_file=card.with_suffix(".pem"),
        tls_key_file=card.with_suffix(".key"),
    )

    def end_of_file() -> float:
        return certificate_expiry(served.folder.broker_files / "server.pem")

    before = end_of_file()
    with Session(settings, "edge-garage") as garage:
        assert garage.wait_connected(15.0)
        assert garage.broker_certificate_expires() == before
        serial = shown_serial(served)
        assert renew_broker(served.folder, now=NOW - timedelta(days=1)).is_read
        assert end_of_file() != before
        wait_until(lambda: shown_serial(served) != serial)
        assert garage.broker_certificate_expires() == before, "it has seen no other one yet"
    with Session(settings, "edge-garage") as garage:
        assert garage.wait_connected(15.0)
        assert garage.broker_certificate_expires() == end_of_file()


def test_the_authority_becomes_good_for_longer_and_what_it_signed_before_still_counts(
    site: Site,
) -> None:
    before = site.folder.authority()
    renewed = renew_broker(site.folder, now=NOW + timedelta(days=30), with_authority=True)
    after = site.folder.authority()
    assert after.expires > before.expires + timedelta(days=29)
    assert renewed.authority_expires == after.expires.timestamp()
    assert after.key == before.key
    revoked = x509.load_pem_x509_crl(site.folder.revocation_file.read_bytes())
    assert revoked.next_update_utc == after.expires, "the list would run out before the authority"
    assert site.folder.server_authority == after.certificate, "the operator has the old one"


def test_members_verify_a_renewed_authority_by_the_certificate_that_they_have(
    served: Site,
) -> None:
    before = shown_serial(served)
    renew_broker(served.folder, now=NOW, with_authority=True)
    wait_until(lambda: shown_serial(served) != before)
    assert gets_in(served, "edge-kitchen"), "its bundle has the authority's old certificate"
    assert revoke(served.folder, KITCHEN, now=NOW).is_live, "the operator has the new one"
    assert not Client(served, "edge-kitchen").is_connected, "mosquitto does not take the list"
    assert not Client(served, "stranger").is_connected


def test_no_certificate_outlives_its_authority_and_an_ended_one_signs_nothing() -> None:
    authority = Authority.make("an authority", NOW, days=100)
    assert authority.issue_client("edge-kitchen", NOW, days=730).expires == authority.expires
    assert authority.issue_client("edge-kitchen", NOW, days=50).expires < authority.expires
    with pytest.raises(EnrolmentError, match="renew --authority"):
        authority.issue_client("edge-kitchen", NOW + timedelta(days=101))
    again = authority.renewed(NOW + timedelta(days=101))
    assert again.issue_client("edge-kitchen", NOW + timedelta(days=101)).expires > authority.expires


def test_what_has_ended_is_forgotten_and_what_has_not_can_be_revoked(site: Site) -> None:
    first, second = (
        serial_of(renew(site.folder, KITCHEN, now=NOW, days=days).pair.certificate)
        for days in (10, 400)
    )
    assert issued.serials(site.folder, KITCHEN)[:2] == [second, first]
    third = renew(site.folder, KITCHEN, now=NOW + timedelta(days=11)).pair
    assert first not in issued.serials(site.folder, KITCHEN)
    assert issued.serials(site.folder, KITCHEN)[:2] == [third.serial, second]
    assert identity_of(third.certificate) == KITCHEN.identity


def test_nobody_is_renewed_who_is_not_enrolled_and_not_the_operator_as_a_member(
    site: Site,
) -> None:
    revoke(site.folder, KITCHEN, now=NOW)
    with pytest.raises(EnrolmentError, match="elma enroll"):
        renew(site.folder, KITCHEN, now=NOW)
    with pytest.raises(EnrolmentError, match="elma broker renew"):
        renew(site.folder, OPERATOR, now=NOW)


def test_a_broker_s_own_certificate_from_elsewhere_is_replaced_by_the_one_given(
    mosquitto_program: Path, tmp_path: Path
) -> None:
    other = Authority.make("a public authority", NOW)
    files = []
    for number in (1, 2):
        pair = other.issue_server(["127.0.0.1"], NOW, days=90 * number)
        certificate, key = tmp_path / f"{number}.pem", tmp_path / f"{number}.key"
        certificate.write_bytes(pair.certificate)
        key.write_bytes(pair.key)
        key.chmod(0o600)
        files.append((certificate, key))
    authority = tmp_path / "public.pem"
    authority.write_bytes(other.certificate)
    own = OwnCertificates(*files[0], authority)
    folder = make_secured(tmp_path / "broker", ["127.0.0.1"], now=NOW, own=own)
    kept = renew_broker(folder, now=NOW)
    assert not kept.server_is_new
    shown = folder.broker_files / "server.pem"
    assert shown.read_bytes() == files[0][0].read_bytes()
    with pytest.raises(EnrolmentError, match="does not belong"):
        renew_broker(folder, now=NOW, own=(files[1][0], files[0][1]))
    assert renew_broker(folder, now=NOW, own=files[1]).server_is_new
    assert shown.read_bytes() == files[1][0].read_bytes()


def test_our_own_certificate_is_not_replaced_by_one_that_no_client_would_verify(
    site: Site,
) -> None:
    card = (site.cards / "stranger.pem", site.cards / "stranger.key")
    with pytest.raises(EnrolmentError, match="our own authority"):
        renew_broker(site.folder, now=NOW, own=card)
