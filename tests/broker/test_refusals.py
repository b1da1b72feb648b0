"""What a broker may refuse, and a peer that is no broker: each has a name and an address.

The peers here speak raw bytes, because no well-behaved broker says these things on demand.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from broker.errors import BrokerError, ConnectFailed, SubscriptionRefused
from broker.session import Session, Subscription
from broker.settings import BrokerSettings

WAIT_SECONDS = 15.0
NOT_AUTHORISED = 0x87
Connect = Callable[..., Session]


def connack(reason: int = 0, properties: bytes = b"") -> bytes:
    """A CONNACK without session."""
    body = bytes([0, reason, len(properties)]) + properties
    return bytes([0x20, len(body)]) + body


def suback(reason: int) -> bytes:
    """A SUBACK for the first subscription that a client makes."""
    body = struct.pack(">H", 1) + bytes([0, reason])
    return bytes([0x90, len(body)]) + body


class Peer:
    """Accepts connections on a free port and answers each packet with the next of its replies."""

    def __init__(self) -> None:
        self.replies: list[bytes] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def settings(self) -> BrokerSettings:
        """How to reach it; short of patience, because it never answers late."""
        return BrokerSettings(port=self.port, connect_timeout_seconds=0.2)

    def close(self) -> None:
        """Stop listening and hang up."""
        self._listener.close()
        for connection in self._open:
            connection.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            for reply in self.replies:
                if not connection.recv(4096):
                    return
                connection.sendall(reply)
            while connection.recv(4096):
                pass
        except OSError:
            return


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A peer that says what the test tells it to."""
    made = Peer()
    yield made
    made.close()


def failure_of(session: Session) -> BrokerError:
    """The reason that a session gives for having no connection."""
    deadline = time.monotonic() + WAIT_SECONDS
    while session.failure is None:
        assert time.monotonic() < deadline, "no failure was noted"
        time.sleep(0.01)
    return session.failure


def test_a_refused_login_is_named_with_what_to_check(peer: Peer, connect: Connect) -> None:
    peer.replies = [connack(NOT_AUTHORISED)]
    failure = failure_of(connect(peer.settings, "edge-1", wait=False))
    assert isinstance(failure, ConnectFailed)
    assert "Not authorized" in str(failure)
    assert "password_file" in str(failure)
    assert str(peer.port) in str(failure)


def test_a_refused_subscription_is_named_and_the_session_is_not_connected(
    peer: Peer, connect: Connect
) -> None:
    peer.replies = [connack(), suback(NOT_AUTHORISED)]
    session = connect(peer.settings, "edge-1", wait=False, subscriptions=[Subscription("t/+")])
    failure = failure_of(session)
    assert isinstance(failure, SubscriptionRefused)
    assert "t/+" in str(failure)
    assert not session.is_connected


def test_a_granted_subscription_connects(peer: Peer, connect: Connect) -> None:
    peer.replies = [connack(), suback(1)]
    assert connect(peer.settings, "edge-1", subscriptions=[Subscription("t/+")]).is_connected


def test_a_peer_that_never_answers_is_given_up(peer: Peer, connect: Connect) -> None:
    failure = failure_of(connect(peer.settings, "edge-1", wait=False))
    assert isinstance(failure, ConnectFailed)
    assert "did not answer" in str(failure)


@pytest.mark.parametrize("noise", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 50, b"\x20\x00"])
def test_a_peer_that_speaks_no_mqtt_is_a_failure_and_no_crash(
    peer: Peer, connect: Connect, noise: bytes
) -> None:
    peer.replies = [noise]
    session = connect(peer.settings, "edge-1", wait=False)
    assert isinstance(failure_of(session), ConnectFailed)
    seen = peer.connections
    deadline = time.monotonic() + WAIT_SECONDS
    while peer.connections <= seen:  # it goes on trying
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_brokers_receive_maximum_bounds_what_is_in_flight(peer: Peer, connect: Connect) -> None:
    peer.replies = [connack(properties=b"\x21\x00\x02")]
    assert connect(peer.settings, "edge-1").in_flight_limit == 2


def test_the_brokers_packet_size_bounds_what_is_published(peer: Peer, connect: Connect) -> None:
    peer.replies = [connack(properties=b"\x27" + struct.pack(">I", 5000))]
    assert connect(peer.settings, "edge-1").maximum_packet_bytes == 5000


def test_a_host_that_does_not_resolve_is_named(connect: Connect) -> None:
    settings = BrokerSettings(host="no-such-host.invalid", connect_timeout_seconds=0.5)
    failure = failure_of(connect(settings, "edge-1", wait=False))
    assert isinstance(failure, ConnectFailed)
    assert "no-such-host.invalid" in str(failure)
