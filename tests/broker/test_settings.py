"""Settings and values: what is refused, and with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from broker.errors import BrokerSettingsError, InvalidPublication
from broker.exchange import Outcome, Publication, Receipt, Subscription
from broker.in_flight import InFlight
from broker.session import Session
from broker.settings import BrokerSettings


@pytest.mark.parametrize(
    "values",
    [
        {"port": 0},
        {"port": 65536},
        {"host": ""},
        {"keepalive_seconds": 0},
        {"connect_timeout_seconds": 0},
        {"max_in_flight": 11},
        {"maximum_packet_bytes": 2**30},
        {"reconnect_min_seconds": 5, "reconnect_max_seconds": 1},
        {"tls_certificate_file": "a.pem"},
        {"tls_certificate_file": "a.pem", "tls_key_file": "a.key"},
        {"password_file": "secret"},
        {"pasword": "typo"},
    ],
)
def test_a_setting_that_cannot_work_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BrokerSettings(**values)


def test_a_password_is_read_without_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("open sesame\r\n")
    path.chmod(0o600)
    assert BrokerSettings(username="u", password_file=path).password() == "open sesame"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * 2000])
def test_a_password_file_that_holds_no_password_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "password"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(BrokerSettingsError, match="password_file"):
        Session(BrokerSettings(username="u", password_file=path), "edge-1").start()


def test_a_password_file_that_others_may_read_is_refused_with_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("open sesame")
    path.chmod(0o644)
    with pytest.raises(BrokerSettingsError, match=f"chmod 600 {path}"):
        BrokerSettings(username="u", password_file=path).password()
    with pytest.raises(BrokerSettingsError, match="none"):
        BrokerSettings(username="u", password_file=tmp_path / "none").password()


@pytest.mark.parametrize(
    "values",
    [
        {"topic": ""},
        {"topic": "a/+"},
        {"topic": "a/#"},
        {"topic": "a\0b"},
        {"topic": "\ud800"},
        {"topic": "x" * 1025},
        {"qos": 2},
        {"payload": "text"},
        {"expiry_seconds": 0},
        {"expiry_seconds": -5},
        {"expiry_seconds": 1.5},
        {"expiry_seconds": 2**32},
        {"response_topic": ""},
        {"correlation": b"x" * 2000},
    ],
)
def test_a_publication_that_mqtt_cannot_carry_is_not_made(values: dict[str, Any]) -> None:
    good = {"topic": "a/b", "payload": b"x"}
    assert Publication(**good)
    with pytest.raises(InvalidPublication):
        Publication(**{**good, **values})


def test_a_subscription_that_mqtt_cannot_carry_is_not_made() -> None:
    for topic_filter in ("", "a\0", "x" * 1025):
        with pytest.raises(InvalidPublication):
            Subscription(topic_filter)


def test_payloads_do_not_show_in_a_repr() -> None:
    assert "secret" not in repr(Publication("a/b", b"secret"))


def test_an_acknowledgement_that_overtakes_its_publication_is_not_lost() -> None:
    places = InFlight(limit=1)
    assert places.take_place()
    assert not places.take_place()
    places.settle(7, Outcome.ACKNOWLEDGED, "")
    assert places.register(7).outcome is Outcome.ACKNOWLEDGED
    assert places.take_place()


def test_a_publication_registered_after_the_end_is_lost() -> None:
    places = InFlight(limit=2)
    places.take_place()
    waiting = places.register(1)
    places.lose_all("gone")
    places.take_place()
    for receipt in (waiting, places.register(2)):
        assert (receipt.outcome, receipt.reason) == (Outcome.LOST, "gone")


def test_a_receipt_is_settled_once() -> None:
    receipt = Receipt()
    assert receipt.wait(0.0) is Outcome.PENDING
    receipt.settle(Outcome.LOST, "gone")
    receipt.settle(Outcome.ACKNOWLEDGED)
    assert receipt.wait(0.0) is Outcome.LOST
