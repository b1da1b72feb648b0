"""One session for all: each delivery goes to who takes it; one listener's fault ends no other."""

from __future__ import annotations

import threading
from collections import deque

import pytest

from broker.exchange import Delivery
from edge_agent import link as link_module
from edge_agent.link import Link, Listener
from tests.edge_agent.conftest import wait_until


class Script:
    """A session that delivers what it was given, and raises the errors in between."""

    def __init__(self, *items: Delivery | Exception) -> None:
        self.items = deque(items)
        self.acknowledged: list[str] = []
        self.on_connection_change = None
        self.stopped = threading.Event()

    def start(self) -> None:
        pass

    def stop(self) -> None:
        self.stopped.set()

    def receive(self, _timeout_seconds: float) -> Delivery | None:
        if not self.items:
            self.stopped.wait(0.01)
            return None
        item = self.items.popleft()
        if isinstance(item, Exception):
            raise item
        return item

    def acknowledge(self, delivery: Delivery) -> bool:
        self.acknowledged.append(delivery.topic)
        return True


def delivery(topic: str) -> Delivery:
    return Delivery(topic, b"", epoch=1, mid=1)


class Taker:
    """Takes the topics that begin with a letter; fails once when it is told to."""

    def __init__(self, first: str, fault: Exception | None = None) -> None:
        self.first, self.fault = first, fault
        self.taken: list[str] = []
        self.changes: list[bool] = []
        self.listener = Listener(self.take, self.connection_changed)

    def take(self, delivery: Delivery) -> bool:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        if not delivery.topic.startswith(self.first):
            return False
        self.taken.append(delivery.topic)
        return True

    def connection_changed(self, is_connected: bool) -> None:
        self.changes.append(is_connected)
        if self.fault is not None:
            raise self.fault


@pytest.fixture(autouse=True)
def _quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "RECEIVE_SECONDS", 0.01)


def run(session: Script, *takers: Taker) -> Link:
    link = Link(session)  # type: ignore[arg-type]
    for taker in takers:
        link.add(taker.listener)
    link.start()
    return link


def test_each_delivery_goes_to_the_first_that_takes_it_and_the_rest_is_acknowledged() -> None:
    session = Script(*(delivery(topic) for topic in ("a1", "b1", "c1", "a2")))
    one, two, late = Taker("a"), Taker("b"), Taker("a")
    link = run(session, one, two, late)
    wait_until(lambda: one.taken == ["a1", "a2"])
    assert two.taken == ["b1"]
    assert late.taken == []
    assert session.acknowledged == ["c1"]
    link.stop()
    assert not link.is_alive


def test_faults_of_session_and_listeners_do_not_end_the_receiver() -> None:
    session = Script(RuntimeError("unforeseen"), delivery("a1"), delivery("a2"))
    faulty = Taker("a", ValueError("unforeseen"))
    link = run(session, faulty)
    wait_until(lambda: faulty.taken == ["a2"])
    assert link.is_alive
    link.stop()


def test_every_listener_hears_of_the_connection_whatever_the_others_do() -> None:
    session = Script()
    faulty, sound = Taker("a", ValueError("unforeseen")), Taker("b")
    link = run(session, faulty, sound)
    assert session.on_connection_change is not None
    session.on_connection_change(True)
    assert faulty.changes == sound.changes == [True]
    link.stop()
