"""Certificates that change under a running session: taken up by itself, and nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker import issued, keeper
from broker.authority import Authority, CertifiedKey
from broker.control import tell_to_read
from broker.enrolment import put_on_list
from broker.renewal import renew
from broker.roles import Member
from broker.secret_files import write_file, write_secret
from broker.session import Publication, Session, Subscription
from broker.settings import BrokerSettings
from broker.tls_files import TlsFiles
from tests.broker.conftest import WAIT_SECONDS, Connect
from tests.broker.secured import Client, Site, make_site, serving
from tests.broker.test_session import wait_until

KITCHEN = Member("edge", "kitchen")
NOW = datetime.now(UTC)
ANSWERS = "elma/v1/ans/kitchen/+"


@pytest.fixture
def site(mosquitto_program: Path, tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Site]:
    """A broker with members that runs."""
    site = make_site(tmp_path, free_port())
    with serving(site):
        yield site


def bundle_settings(site: Site) -> BrokerSettings:
    """How the kitchen connects, with files of its own."""
    return BrokerSettings(
        port=site.folder.port,
        username=KITCHEN.identity,
        tls_ca_file=site.cards / "server-authority.pem",
        tls_certificate_file=site.cards / "edge-kitchen.pem",
        tls_key_file=private(site.cards / "edge-kitchen.key"),
    )


def private(path: Path) -> Path:
    path.chmod(0o600)
    return path


def replace(settings: BrokerSettings, pair: CertifiedKey) -> None:
    """Put other files in the place of those that the settings name."""
    assert settings.tls_certificate_file is not None
    assert settings.tls_key_file is not None
    write_secret(settings.tls_key_file, pair.key)
    write_file(settings.tls_certificate_file, pair.certificate)


def connect_kitchen(site: Site, connect: Connect, settings: BrokerSettings) -> Session:
    """A session as an edge has it."""
    return connect(
        settings,
        KITCHEN.identity,
        subscriptions=[Subscription(ANSWERS)],
        clean_start=False,
        session_expiry_seconds=600,
    )


def test_a_renewed_certificate_is_shown_without_a_restart_and_no_message_is_lost(
    site: Site, connect: Connect
) -> None:
    settings = bundle_settings(site)
    session = connect_kitchen(site, connect, settings)
    worker = Client(site, "worker-north")
    old = issued.serials(site.folder, KITCHEN)
    pair = renew(site.folder, KITCHEN, now=NOW).pair
    # From here on the broker takes nobody who shows the old one; the connection that stands stays.
    put_on_list(site.folder, old, NOW)
    assert tell_to_read(site.folder)
    # mosquitto acts on the signal in its next turn, which the worker's message waits for.
    assert worker.may_publish("elma/v1/presence/worker/north")
    assert not Client(site, "edge-kitchen").is_connected
    assert session.is_connected
    assert session.epoch == 1
    numbers = iter(range(10_000))
    heard: list[bytes] = []

    def hears_another() -> int:
        number = next(numbers)
        assert worker.may_publish("elma/v1/ans/kitchen/1", b"%d" % number)
        while (delivery := session.receive(0.05)) is not None:
            heard.append(delivery.payload)
            session.acknowledge(delivery)
        return number

    hears_another()
    replace(settings, pair)
    wait_until(lambda: hears_another() and session.epoch == 2 and session.is_connected)
    last = hears_another()
    wait_until(lambda: b"%d" % last in heard or hears_another() < 0)
    assert {int(payload) for payload in heard} >= set(range(last + 1))
    assert session.failure is None
    worker.close()


def test_a_delivery_in_hand_is_acknowledged_before_the_connection_is_replaced(
    site: Site, connect: Connect
) -> None:
    settings = bundle_settings(site)
    session = connect_kitchen(site, connect, settings)
    worker = Client(site, "worker-north")
    assert worker.may_publish("elma/v1/ans/kitchen/1")
    delivery = session.receive(WAIT_SECONDS)
    assert delivery is not None
    with capture_logs() as lines:
        replace(settings, renew(site.folder, KITCHEN, now=NOW).pair)
        wait_until(lambda: any(line["event"] == "broker_tls_files_read" for line in lines))
    for _ in range(50):  # time enough for a connection that does not wait to be replaced
        session.publish(Publication("elma/v1/metrics/kitchen", b"x")).wait(WAIT_SECONDS)
    assert session.acknowledge(delivery), "it belongs to another connection"
    wait_until(lambda: session.epoch == 2 and session.is_connected)
    worker.close()


def test_a_connection_that_is_never_quiet_is_replaced_and_its_delivery_comes_again(
    site: Site, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "QUIET_SECONDS", 0.1)
    settings = bundle_settings(site)
    session = connect_kitchen(site, connect, settings)
    worker = Client(site, "worker-north")
    assert worker.may_publish("elma/v1/ans/kitchen/1", b"once")
    assert session.receive(WAIT_SECONDS) is not None
    replace(settings, renew(site.folder, KITCHEN, now=NOW).pair)
    wait_until(lambda: session.epoch == 2 and session.is_connected)
    again = session.receive(WAIT_SECONDS)
    assert again is not None
    assert again.payload == b"once"
    assert session.acknowledge(again)
    worker.close()


def test_a_broken_pair_leaves_what_was_read_and_the_next_good_one_counts(tmp_path: Path) -> None:
    authority = Authority.make("an authority", NOW)
    settings = BrokerSettings(
        tls_ca_file=tmp_path / "authority.pem",
        tls_certificate_file=tmp_path / "client.pem",
        tls_key_file=tmp_path / "client-key.pem",
    )
    write_file(tmp_path / "authority.pem", authority.certificate)
    replace(settings, authority.issue_client("edge-kitchen", NOW))
    files = TlsFiles(settings, "edge-kitchen")
    files.load()
    first = files.context()
    os.utime(tmp_path / "client.pem")
    assert not files.have_changed(), "the same content is no reason to connect anew"
    first = files.context()
    pair = authority.issue_client("edge-kitchen", NOW)
    with capture_logs() as lines:
        write_secret(tmp_path / "client-key.pem", pair.key)
        assert not files.have_changed()
        assert not files.have_changed()
        assert files.context() is first
    assert [line["event"] for line in lines] == ["broker_tls_files_not_read"]
    write_file(tmp_path / "client.pem", pair.certificate)
    assert files.have_changed()
    assert files.context() is not first
    assert not files.have_changed()
    (tmp_path / "client-key.pem").chmod(0o644)
    assert not files.have_changed()
    assert files.context() is not None
