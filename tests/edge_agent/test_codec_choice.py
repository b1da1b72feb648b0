"""The choice of a codec: exact where the link is fast, small where it is thin, within limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.codec_choice import CodecChoice, LinkEstimate, Offer, choose

# A window of 180 tokens of a 384 wide reader.
OFFERS = [
    Offer("fp32", 276_480, 0.0),
    Offer("fp16", 138_240, 0.0),
    Offer("int8", 69_840, 0.02),
    Offer("int4", 38_880, 0.3),
    Offer("bottleneck", 7_000, 0.4),
]
TOKENS = Offer("tokens", 360, 0.0, extra_seconds=0.05)
NO_LIMIT = 10**9


def link(bytes_per_second: float, round_trip_seconds: float) -> LinkEstimate:
    """An estimate after many requests over such a link."""
    estimate = LinkEstimate()
    for number in range(200):
        size = 10_000 * (1 + number % 20)
        estimate.note(size, round_trip_seconds + size / bytes_per_second)
    return estimate


def test_the_estimate_learns_speed_and_round_trip() -> None:
    estimate = link(50_000, 0.3)
    assert estimate.seconds(0) == pytest.approx(0.3, rel=0.05)
    assert estimate.seconds(100_000) == pytest.approx(2.3, rel=0.05)


def test_requests_of_one_size_leave_a_sane_line() -> None:
    estimate = LinkEstimate()
    for _ in range(300):
        estimate.note(70_000, 3.0)
    assert estimate.seconds(70_000) == pytest.approx(3.0, rel=0.05)
    assert 0 <= estimate.seconds(7_000) <= 3.1
    assert estimate.seconds(140_000) >= 2.9


@given(st.lists(st.tuples(st.floats(1, 1e7), st.floats(0, 100)), max_size=30), st.floats(0, 1e7))
def test_no_observation_makes_a_request_arrive_before_it_is_sent(
    seen: list[tuple[float, float]], size: float
) -> None:
    estimate = LinkEstimate()
    for payload_bytes, seconds in seen:
        estimate.note(payload_bytes, seconds)
    assert estimate.seconds(size) >= -1e-9
    assert estimate.seconds(2 * size) >= estimate.seconds(size) - 1e-9


@pytest.mark.parametrize(
    ("bytes_per_second", "expected"),
    [(1e8, "fp16"), (2e6, "int8"), (100_000, "bottleneck"), (5_000, "bottleneck")],
)
def test_the_thinner_the_link_the_smaller_the_state(bytes_per_second: float, expected: str) -> None:
    chosen = choose(OFFERS, link(bytes_per_second, 0.02), limit_bytes=NO_LIMIT, seconds_left=60)
    assert chosen is not None
    assert chosen.codec == expected


def test_of_equally_good_ones_the_smaller_goes() -> None:
    twins = [Offer("fp32", 2_000, 0.0), Offer("fp16", 2_000, 0.0), Offer("int8", 1_000, 0.0)]
    chosen = choose(twins, link(1e12, 0.02), limit_bytes=NO_LIMIT, seconds_left=60)
    assert chosen is not None
    assert chosen.codec == "int8"


def test_what_the_limit_forbids_is_not_taken() -> None:
    fast = link(1e8, 0.01)
    chosen = choose(OFFERS, fast, limit_bytes=40_000, seconds_left=60)
    assert chosen is not None
    assert chosen.codec == "int4"
    assert choose(OFFERS, fast, limit_bytes=6_999, seconds_left=60) is None
    assert choose([], fast, limit_bytes=NO_LIMIT, seconds_left=60) is None


def test_what_would_come_too_late_is_not_taken() -> None:
    exact_but_slow = [Offer("fp16", 138_240, 0.0), Offer("int4", 38_880, 50.0)]
    slow = link(100_000, 0.02)
    patient = choose(exact_but_slow, slow, limit_bytes=NO_LIMIT, seconds_left=10)
    hurried = choose(exact_but_slow, slow, limit_bytes=NO_LIMIT, seconds_left=1)
    assert patient is not None
    assert hurried is not None
    assert (patient.codec, hurried.codec) == ("fp16", "int4")


def test_when_nothing_comes_in_time_the_quickest_goes() -> None:
    chosen = choose(OFFERS, link(1_000, 5.0), limit_bytes=NO_LIMIT, seconds_left=0.5)
    assert chosen is not None
    assert chosen.codec == "bottleneck"


def test_token_ids_win_on_a_thin_link_and_lose_to_exact_states_on_a_fast_one() -> None:
    thin = choose([*OFFERS, TOKENS], link(20_000, 0.1), limit_bytes=NO_LIMIT, seconds_left=60)
    fast = choose([*OFFERS, TOKENS], link(1e8, 0.001), limit_bytes=NO_LIMIT, seconds_left=60)
    assert thin is not None
    assert fast is not None
    assert (thin.codec, fast.codec) == ("tokens", "fp16")


def test_a_codec_that_a_worker_lacks_is_left_out_until_the_connection_is_renewed() -> None:
    choice = CodecChoice()
    offers = [Offer("bottleneck", 7_000, 0.0), Offer("int8", 69_840, 0.0)]

    def picked() -> str:
        chosen = choice.pick(offers, limit_bytes=NO_LIMIT, seconds_left=60)
        assert chosen is not None
        return chosen.codec

    assert picked() == "bottleneck"
    choice.worker_lacks("bottleneck")
    assert picked() == "int8"
    choice.worker_lacks("int8")  # nothing else is left: better tried than given up
    assert picked() == "bottleneck"
    choice.ask_again()
    assert picked() == "bottleneck"
