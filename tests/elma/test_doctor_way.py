"""`elma doctor` on the way to the cloud: the broker, whoever holds its connection, the clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from broker.authority import Authority
from broker.enrolment import revoke
from broker.exchange import Outcome, Publication, Subscription
from broker.roles import Member
from broker.run import run_broker
from broker.session import Session
from broker.settings import BrokerSettings
from cloud_worker.settings import WorkerSettings
from edge_agent.settings import EdgeSettings
from elma.doctor.broker import check_broker, check_certificate
from elma.doctor.clock import check_clock
from elma.doctor.finding import Finding, State
from elma.doctor.rights import Needs, needs_of
from elma.doctor.running import is_connected
from tests.broker.secured import Site, edit_access, make_site, serving

NEEDS = needs_of(EdgeSettings(name="kitchen"))


def only(findings: Iterator[Finding]) -> Finding:
    """The one finding that there is."""
    (finding,) = findings
    return finding


def member(site: Site, name: str) -> BrokerSettings:
    """How a member of a secured broker connects."""
    (site.cards / f"{name}.key").chmod(0o600)
    return BrokerSettings(
        port=site.folder.port,
        connect_timeout_seconds=2.0,
        tls_ca_file=site.cards / "server-authority.pem",
        tls_certificate_file=site.cards / f"{name}.pem",
        tls_key_file=site.cards / f"{name}.key",
    )


def test_a_broker_that_answers_is_ok_and_one_that_does_not_is_a_failure(
    mosquitto_program: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    assert only(check_broker(None)).state is State.OK
    with run_broker("mosquitto", tmp_path / "broker") as broker:
        finding = only(check_broker(broker.settings(), needs=NEEDS))
        assert finding.state is State.OK
        assert finding.figures["maximum_packet_bytes"] <= broker.maximum_packet_bytes
    silent = BrokerSettings(port=free_port(), connect_timeout_seconds=1.0)
    finding = only(check_broker(silent))
    assert finding.state is State.FAILED
    assert silent.address in finding.text


class Answering:
    """A web server that says one thing, with its own `Date`."""

    def __init__(self, content: bytes = b"{}", date: str | None = None) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response_only(200)
                if date is not None:
                    self.send_header("Date", date)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Be quiet."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port

    def __enter__(self) -> Answering:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.parametrize(
    ("ahead_seconds", "state", "word"),
    [
        (0.0, State.OK, ""),
        (5.0, State.WARNING, "ahead of"),
        (-5.0, State.WARNING, "behind"),
        (3_600.0, State.FAILED, "ahead of"),
    ],
)
def test_a_wrong_clock_is_told_by_a_server_s_date(
    ahead_seconds: float, state: State, word: str
) -> None:
    moment = 1_700_000_000.0
    with Answering(date=formatdate(moment, usegmt=True)) as server:
        url = f"http://127.0.0.1:{server.port}/"
        finding = check_clock(url, clock=lambda: moment + 0.5 + ahead_seconds)
    assert finding.state is state
    assert finding.figures["ahead_seconds"] == ahead_seconds
    assert word in finding.text
    assert bool(finding.advice) is (state is not State.OK)


def test_a_clock_that_cannot_be_compared_is_a_warning(free_port: Callable[[], int]) -> None:
    assert check_clock(f"http://127.0.0.1:{free_port()}/").state is State.WARNING
    for date in (None, "yesterday"):
        with Answering(date=date) as server:
            finding = check_clock(f"http://127.0.0.1:{server.port}/")
        assert finding.state is State.WARNING
        assert "without a Date" in finding.text


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b'{"name": "kitchen", "cloud": {"connected": true}}', True),
        (b'{"name": "kitchen", "connected": true}', True),
        (b'{"name": "kitchen", "cloud": {"connected": false}}', False),
        (b'{"name": "kitchen", "cloud": null}', False),
        (b'{"name": "cellar", "connected": true}', False),
        (b"[]", False),
        (b"<html>", False),
    ],
)
def test_only_the_same_edge_or_worker_that_is_connected_counts(said: bytes, expected: bool) -> None:
    with Answering(said) as server:
        assert is_connected("127.0.0.1", server.port, "kitchen") is expected
        assert is_connected("0.0.0.0", server.port, "kitchen") is expected  # noqa: S104 - not bound


def test_nobody_there_is_nobody_connected(free_port: Callable[[], int]) -> None:
    assert not is_connected("127.0.0.1", free_port(), "kitchen")
    assert not is_connected("127.0.0.1", 0, "kitchen")


def test_on_a_secured_broker_no_running_agent_is_pushed_out_and_no_answer_of_one_is_lost(
    mosquitto_program: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    site = make_site(tmp_path, free_port())

    def agent() -> Session:
        return Session(
            member(site, "edge-kitchen"),
            "edge-kitchen",
            subscriptions=[Subscription("elma/v1/ans/kitchen/+")],
            clean_start=False,
            session_expiry_seconds=600,
        )

    with serving(site), Session(member(site, "worker-north"), "worker-north") as worker:
        assert worker.wait_connected(10.0)
        with agent() as running:
            assert running.wait_connected(10.0)
            finding = only(check_broker(member(site, "edge-kitchen"), is_held=lambda: True))
            assert finding.state is State.OK
            assert "not tried" in finding.text
            receipt = worker.publish(Publication("elma/v1/ans/kitchen/first", b"x"))
            assert receipt.wait(10.0) is Outcome.ACKNOWLEDGED
            first = running.receive(10.0)
            assert first is not None
            running.acknowledge(first)
            assert running.connections_total == 1
        receipt = worker.publish(Publication("elma/v1/ans/kitchen/second", b"y"))
        assert receipt.wait(10.0) is Outcome.ACKNOWLEDGED
        finding, rights = check_broker(member(site, "edge-kitchen"), needs=NEEDS)
        assert rights.state is State.OK, rights.text
        assert finding.state is State.OK, finding.text
        assert "accepted us" in finding.text
        with agent() as back:
            second = back.receive(10.0)
            assert second is not None
            assert second.topic == "elma/v1/ans/kitchen/second"


@pytest.fixture
def site(mosquitto_program: Path, tmp_path: Path, free_port: Callable[[], int]) -> Site:
    """A secured broker's folder with members."""
    return make_site(tmp_path, free_port())


def worker_needs(site: Site) -> Needs:
    """Those of the worker `north`, which follows a channel."""
    releases: Any = {"publisher_public_key_file": "publisher.json", "folder": "releases"}
    broker = member(site, "worker-north")
    return needs_of(WorkerSettings(name="north", model="none", broker=broker, releases=releases))


def rules_without(role: str, access: str, topic: str) -> Callable[[dict[str, Any]], None]:
    """Takes what a role may do with a topic out of the rights."""

    def change(document: dict[str, Any]) -> None:
        (found,) = [one for one in document["roles"] if one["rolename"] == role]
        kept = [
            rule
            for rule in found["acls"]
            if not (rule["acltype"] == access and topic in rule["topic"])
        ]
        assert len(kept) < len(found["acls"])
        found["acls"] = kept

    return change


def test_members_with_their_rights_are_told_so(site: Site) -> None:
    with serving(site):
        for name, needs in (("edge-kitchen", NEEDS), ("worker-north", worker_needs(site))):
            found = list(check_broker(member(site, name), needs=needs, keeps_session=False))
            assert [(one.name, one.state) for one in found] == [
                ("broker", State.OK),
                ("rights", State.OK),
            ], found


@pytest.mark.parametrize(
    ("name", "access", "topic"),
    [
        ("edge-kitchen", "publishClientSend", "elma/v1/req/"),
        ("edge-kitchen", "subscribePattern", "elma/v1/ans/kitchen/+"),
        ("edge-kitchen", "subscribePattern", "elma/v1/presence/worker/+"),
        ("worker-north", "subscribeLiteral", "$share/workers/elma/v1/req/normal/+/+"),
        ("worker-north", "subscribePattern", "elma/v1/cancel/+/+"),
        ("worker-north", "subscribePattern", "/manifest"),
        ("worker-north", "publishClientSend", "elma/v1/ans/"),
    ],
)
def test_a_right_that_is_missing_is_named(site: Site, name: str, access: str, topic: str) -> None:
    edit_access(site.folder, rules_without(name, access, topic))
    needs = NEEDS if name == "edge-kitchen" else worker_needs(site)
    with serving(site):
        broker, rights = check_broker(member(site, name), needs=needs)
    assert broker.state is State.OK
    assert rights.state is State.FAILED
    assert topic in rights.text
    assert rights.text.count("subscribe to") + rights.text.count("publish on") == 1


def test_the_certificate_of_another_member_has_not_the_rights(site: Site) -> None:
    with serving(site):
        _, rights = check_broker(member(site, "edge-garage"), needs=NEEDS)
    assert rights.state is State.FAILED
    assert "edge kitchen may not subscribe to elma/v1/ans/kitchen/+" in rights.text
    assert "its own" in rights.advice


def test_what_keeps_a_connection_from_being_made_has_its_own_advice(
    site: Site, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    kitchen, now = member(site, "edge-kitchen"), datetime.now(UTC)
    (tmp_path / "other.pem").write_bytes(Authority.make("other", now).certificate)
    pair = site.folder.authority().issue_server(["127.0.0.1"], now)  # not for localhost
    for name, content in (("server.pem", pair.certificate), ("server-key.pem", pair.key)):
        (site.folder.broker_files / name).write_bytes(content)
    revoke(site.folder, Member("edge", "garage"), now=now)

    def advice(settings: BrokerSettings, **changes: Any) -> str:
        finding = only(check_broker(settings.model_copy(update=changes), needs=NEEDS))
        assert finding.state is State.FAILED
        return finding.advice

    with serving(site), run_broker("mosquitto", tmp_path / "plain") as plain:
        assert "not this broker's authority" in advice(kitchen, tls_ca_file=tmp_path / "other.pem")
        assert "write as host a name" in advice(kitchen, host="localhost")
        garage = member(site, "edge-garage")
        assert "revoked" in advice(garage)
        assert str(garage.tls_certificate_file) in only(check_broker(garage)).text
        assert "start a broker" in advice(kitchen, port=free_port())
        assert "speak TLS?" in advice(kitchen, port=plain.port)
        (site.cards / "edge-kitchen.key").chmod(0o644)
        assert "mend the file" in advice(kitchen)


def test_how_long_our_own_certificate_is_good_is_said(site: Site) -> None:
    settings = member(site, "edge-kitchen")
    ends = settings.certificate_expires()
    for moment, state in (
        (ends - 30 * 86_400, State.OK),
        (ends - 86_400, State.WARNING),
        (ends + 1, State.FAILED),
    ):
        finding = only(check_certificate(settings, clock=lambda moment=moment: moment))
        assert finding.state is state
        assert ("elma renew" in finding.advice) is (state is not State.OK)
    assert list(check_certificate(None)) == []
    (site.cards / "edge-kitchen.pem").write_text("no certificate")
    assert only(check_certificate(settings)).state is State.FAILED
