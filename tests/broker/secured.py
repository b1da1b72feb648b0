"""A secured broker for the tests, whose files can be weakened, and clients that try things at it.

A client here is a plain MQTT one of the test's own, so that nothing of ours keeps it from trying.
"""

from __future__ import annotations

import getpass
import json
import queue
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from broker.authority import Authority
from broker.enrolment import enrol
from broker.roles import Kind, Member
from broker.secured import SecuredFolder, make_secured
from broker.secured_run import SecuredBroker, run_secured

WAIT_SECONDS = 15.0
MEMBERS: tuple[tuple[Kind, str], ...] = (
    ("edge", "kitchen"),
    ("edge", "garage"),
    ("worker", "north"),
    ("publisher", "main"),
    ("monitor", "eye"),
)
Weakening = Callable[[SecuredFolder], None]


@dataclass(frozen=True)
class Site:
    """A folder with members, and the files that each of them shows."""

    folder: SecuredFolder
    cards: Path

    def context(self, card: str | None) -> ssl.SSLContext:
        """TLS with somebody's certificate, or without any."""
        context = ssl.create_default_context(cafile=self.cards / "server-authority.pem")
        if card is not None:
            context.load_cert_chain(self.cards / f"{card}.pem", self.cards / f"{card}.key")
        return context

    def add_card(self, card: str, certificate: bytes, key: bytes) -> None:
        """Keep somebody's certificate and key."""
        (self.cards / f"{card}.pem").write_bytes(certificate)
        (self.cards / f"{card}.key").write_bytes(key)


def make_site(tmp_path: Path, port: int) -> Site:
    """A broker's folder with one of everybody, and a stranger of another authority."""
    now = datetime.now(UTC)
    folder = make_secured(
        tmp_path / "broker",
        ["127.0.0.1"],
        now=now,
        port=port,
        listen="127.0.0.1",
        user=getpass.getuser(),
    )
    site = Site(folder, tmp_path / "cards")
    site.cards.mkdir()
    (site.cards / "server-authority.pem").write_bytes(folder.server_authority)
    for kind, name in MEMBERS:
        enrolled = enrol(folder, Member(kind, name), now=now)
        site.add_card(enrolled.member.identity, enrolled.pair.certificate, enrolled.pair.key)
    other = Authority.make("another authority", now)
    (site.cards / "other-authority.pem").write_bytes(other.certificate)
    stranger = other.issue_client("edge-kitchen", now)
    site.add_card("stranger", stranger.certificate, stranger.key)
    return site


@contextmanager
def serving(site: Site, weaken: Weakening | None = None) -> Iterator[SecuredBroker]:
    """The broker with exactly the generated files, or with one of its defences taken out."""
    if weaken is not None:
        weaken(site.folder)
    with run_secured(site.folder) as broker:
        yield broker


def edit_configuration(folder: SecuredFolder, *changes: tuple[str, str]) -> None:
    """Replace lines of mosquitto.conf; each must be there."""
    text = folder.configuration_file.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    folder.configuration_file.write_text(text, encoding="utf-8")


def edit_access(folder: SecuredFolder, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the rights before the broker starts."""
    document = json.loads(folder.access_file.read_bytes())
    change(document)
    folder.access_file.write_text(json.dumps(document), encoding="utf-8")


class Client:
    """One plain connection. `is_connected`, and what the broker says to each attempt."""

    def __init__(self, site: Site, card: str | None, client_id: str = "somebody") -> None:
        self._connects: queue.Queue[bool] = queue.Queue()
        self._codes: queue.Queue[ReasonCode | None] = queue.Queue()
        self.messages: queue.Queue[str] = queue.Queue()
        self.gone: queue.Queue[str] = queue.Queue()
        self._client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
        )
        self._client.tls_set_context(site.context(card))
        self._client.on_connect = lambda _c, _u, _f, code, _p: self._connects.put(
            not code.is_failure
        )
        self._client.on_disconnect = lambda _c, _u, _f, code, _p: self._end(str(code))
        self._client.on_subscribe = lambda _c, _u, _m, codes, _p: self._codes.put(codes[0])
        self._client.on_publish = lambda _c, _u, _m, code, _p: self._codes.put(code)
        self._client.on_message = lambda _c, _u, message: self.messages.put(message.topic)
        try:
            self._client.connect("127.0.0.1", site.folder.port)
            self._client.loop_start()
            self.is_connected = self._connects.get(timeout=WAIT_SECONDS)
        except OSError:  # a TLS alert during the handshake is one
            self.is_connected = False

    def may_subscribe(self, topic_filter: str) -> bool:
        """Whether the broker grants it."""
        self._client.subscribe([(topic_filter, SubscribeOptions(qos=1))])
        return self._is_granted()

    def may_publish(self, topic: str, payload: bytes = b"x", *, retain: bool = False) -> bool:
        """Whether the broker takes it; not when the connection is gone."""
        self._client.publish(topic, payload, qos=1, retain=retain)
        return self._is_granted()

    def hears(self, topic: str) -> bool:
        """Whether the next message is on this topic."""
        with suppress(queue.Empty):
            return self.messages.get(timeout=WAIT_SECONDS) == topic
        return False

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()

    def _is_granted(self) -> bool:
        code = self._codes.get(timeout=WAIT_SECONDS)
        return code is not None and not code.is_failure

    def _end(self, reason: str) -> None:
        """What waits for an answer of the broker gets none any more."""
        self.gone.put(reason)
        self._codes.put(None)
        self._connects.put(False)
