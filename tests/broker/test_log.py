"""Logging cannot hurt: it never raises, and lines that others cause are limited."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from broker.delivery_queue import DeliveryQueue
from broker.exchange import Delivery
from broker.log import LineLimit, SafeLog


def delivery(name: str, *, qos: int = 1, size: int = 1) -> Delivery:
    """A delivery of `size` bytes."""
    return Delivery(name, bytes(size), epoch=1, mid=1, qos=qos)


def test_a_limit_admits_so_many_a_second_and_tells_how_many_it_left_out() -> None:
    now = 100.0
    limit = LineLimit(2, clock=lambda: now)
    assert [limit.admit() for _ in range(5)] == [0, 0, None, None, None]
    now = 101.0
    assert [limit.admit() for _ in range(3)] == [3, 0, None]


def test_the_next_line_says_how_many_were_left_out() -> None:
    now = 0.0
    limit, log = LineLimit(1, clock=lambda: now), SafeLog("elma.test")
    with capture_logs() as lines:
        for number in range(3):
            log.limited_warning(limit, "flood", number=number)
        now = 1.0
        log.limited_warning(limit, "flood", number=3)
    assert [(line["number"], line.get("left_out")) for line in lines] == [(0, None), (3, 2)]


def test_no_level_raises_when_the_log_does(broken_log: None) -> None:
    log = SafeLog("elma.test")
    log.info("one")
    log.warning("one")
    log.limited_warning(LineLimit(), "one")
    log.error("one")
    try:
        raise ValueError("at hand")
    except ValueError:
        log.exception("one")


def test_qos_0_gives_way_to_qos_1_and_keeps_the_order() -> None:
    queue = DeliveryQueue(4, 100)
    first, second, third = (delivery(name, qos=0) for name in "abc")
    assert queue.put(first) == []
    assert queue.put(second) == []
    assert queue.put(third) == [third]
    answers = [delivery(f"answer {number}") for number in range(5)]
    assert [queue.put(one) for one in answers] == [[], [], [first], [second], [answers[4]]]
    assert [queue.take() for _ in range(5)] == [*answers[:4], None]


@pytest.mark.parametrize(("qos", "kept"), [(0, 2), (1, 4)])
def test_the_bound_in_bytes_counts_too(qos: int, kept: int) -> None:
    queue = DeliveryQueue(100, 1_000)
    for number in range(10):
        queue.put(delivery(f"t/{number}", qos=qos, size=250))
    assert len(queue) == kept
    queue.take()
    assert queue.put(delivery("again", qos=qos, size=250)) == []
