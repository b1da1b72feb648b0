"""`elma doctor` on the way to the cloud: the broker, whoever holds its connection, the clock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from broker.exchange import Outcome, Publication, Subscription
from broker.run import run_broker
from broker.session import Session
from broker.settings import BrokerSettings
from elma.doctor.broker import check_broker
from elma.doctor.clock import check_clock
from elma.doctor.finding import State
from elma.doctor.running import is_connected
from tests.broker.secured import make_site, serving


def test_a_broker_that_answers_is_ok_and_one_that_does_not_is_a_failure(
    mosquitto_program: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    assert check_broker(None).state is State.OK
    with run_broker("mosquitto", tmp_path / "broker") as broker:
        finding = check_broker(broker.settings())
        assert finding.state is State.OK
        assert finding.figures["maximum_packet_bytes"] <= broker.maximum_packet_bytes
    silent = BrokerSettings(port=free_port(), connect_timeout_seconds=1.0)
    finding = check_broker(silent)
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

    def settings(member: str) -> BrokerSettings:
        (site.cards / f"{member}.key").chmod(0o600)
        return BrokerSettings(
            port=site.folder.port,
            tls_ca_file=site.cards / "server-authority.pem",
            tls_certificate_file=site.cards / f"{member}.pem",
            tls_key_file=site.cards / f"{member}.key",
        )

    def agent() -> Session:
        return Session(
            settings("edge-kitchen"),
            "edge-kitchen",
            subscriptions=[Subscription("elma/v1/ans/kitchen/+")],
            clean_start=False,
            session_expiry_seconds=600,
        )

    with serving(site), Session(settings("worker-north"), "worker-north") as worker:
        assert worker.wait_connected(10.0)
        with agent() as running:
            assert running.wait_connected(10.0)
            finding = check_broker(settings("edge-kitchen"), is_held=lambda: True)
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
        finding = check_broker(settings("edge-kitchen"))
        assert finding.state is State.OK, finding.text
        assert "accepted us" in finding.text
        with agent() as back:
            second = back.receive(10.0)
            assert second is not None
            assert second.topic == "elma/v1/ans/kitchen/second"
