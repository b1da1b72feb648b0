"""Orders and reports about releases: round trips, bounds, and who takes part in a share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadSignature, MalformedMessage, OversizedMessage, TruncatedMessage
from protocol.release_messages import (
    MAX_AGREEMENTS,
    MAX_REPORT_BYTES,
    MAX_REPORTED_RELEASES,
    MODEL_PHASES,
    Agreement,
    ModelState,
    RolloutOrder,
    SignedRollout,
    WorkerReleases,
    edge_fraction,
)
from protocol.signing import SigningKey
from protocol.wire import Kind, decode_frame, encode_frame
from tests.protocol.release_samples import (
    FIXED_KEY,
    NOW,
    model_state,
    order,
    sha,
    worker_releases,
)


@given(st.floats(0, 1), st.booleans(), st.integers(1, 2**53 - 1))
def test_every_order_survives_its_bytes(share: float, paused: bool, sequence: int) -> None:
    made = order(share=share, paused=paused, sequence=sequence)
    signed = SignedRollout.decode(made.sign(FIXED_KEY).encode())
    assert signed.open(FIXED_KEY.public) == made


def test_an_order_of_another_key_is_refused() -> None:
    signed = order().sign(SigningKey.make("thief"))
    with pytest.raises(BadSignature):
        signed.open(FIXED_KEY.public)


def test_an_order_costs_a_few_hundred_bytes() -> None:
    assert len(order().sign(FIXED_KEY).encode()) < 400


@given(st.text(max_size=20), st.text(max_size=20))
def test_an_edge_stands_at_one_place_in_a_rollout(edge: str, release: str) -> None:
    fraction = edge_fraction(edge, release)
    assert 0.0 <= fraction < 1.0
    assert fraction == edge_fraction(edge, release)


def test_where_an_edge_stands_is_for_ever() -> None:
    """Edges and publisher of different ages must agree."""
    assert edge_fraction("kitchen", "ab" * 32) == 0.9209345123990132


def test_a_share_of_edges_takes_part_and_stays_in_as_it_grows() -> None:
    edges = [f"edge-{number}" for number in range(2_000)]
    taking = [
        {edge for edge in edges if order(share=share).includes(edge)}
        for share in (0.0, 0.05, 0.5, 1.0)
    ]
    assert taking[0] == set()
    assert 60 < len(taking[1]) < 140
    assert taking[1] < taking[2] < taking[3] == set(edges)
    other = {edge for edge in edges if order(share=0.05, release=sha("other")).includes(edge)}
    assert len(other & taking[1]) < len(taking[1]) / 2  # not the same edges go first each time


def test_nobody_begins_while_an_order_is_paused() -> None:
    assert order(share=1.0).includes("kitchen")
    assert not order(share=1.0, paused=True).includes("kitchen")


@pytest.mark.parametrize(
    "changes",
    [
        {"channel": ""},
        {"release": "ab"},
        {"version": 0},
        {"sequence": 0},
        {"sequence": 2**53},
        {"share": -0.01},
        {"share": 1.01},
        {"share": float("nan")},
        {"share": "1"},
        {"paused": 1},
        {"reason": "x" * 501},
        {"reason": "two\nlines"},
        {"expires": NOW - 1},
        {"created": float("inf")},
    ],
)
def test_an_order_out_of_bounds_is_not_made(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage):
        order(**changes)


@pytest.mark.parametrize("name", [*RolloutOrder.__dataclass_fields__])
def test_a_signed_order_that_lacks_a_field_names_it(name: str) -> None:
    fields = decode_frame(order().sign(FIXED_KEY).payload, {Kind.ROLLOUT_BODY}).fields
    del fields[name]
    payload = encode_frame(Kind.ROLLOUT_BODY, fields)
    with pytest.raises(MalformedMessage, match=name):
        SignedRollout(payload, FIXED_KEY.sign("rollout", payload)).open(FIXED_KEY.public)


@pytest.mark.parametrize("phase", MODEL_PHASES)
def test_every_state_survives_its_bytes(phase: Any) -> None:
    for made in (
        model_state(state=phase),
        ModelState(phase, None, None, None, None, "", 0, 0, NOW),
        model_state(state=phase, reason="canary 3 failed", manifest_expires=None),
    ):
        assert ModelState.decode(made.encode()) == made


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "running"},
        {"state": None},
        {"release": "ab"},
        {"release": 7},
        {"version": 0},
        {"target": "zz" * 32},
        {"target_version": -1},
        {"reason": "x" * 501},
        {"reason_code": "x" * 65},
        {"reason_code": 7},
        {"done_bytes": -1},
        {"total_bytes": 1.5},
        {"updated": float("nan")},
        {"manifest_expires": -1.0},
    ],
)
def test_a_state_out_of_bounds_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage):
        model_state(**changes)
    fields = decode_frame(model_state().encode(), {Kind.MODEL_STATE}).fields
    with pytest.raises(MalformedMessage):
        ModelState.decode(encode_frame(Kind.MODEL_STATE, {**fields, **changes}))


def test_a_workers_report_survives_its_bytes() -> None:
    assert WorkerReleases.decode(worker_releases().encode()) == worker_releases()
    empty = worker_releases(loaded=(), loading=(), failed=(), agreement=())
    assert WorkerReleases.decode(empty.encode()) == empty


def test_the_largest_report_can_be_read() -> None:
    full = worker_releases(
        loaded=tuple(sha(f"a{number}") for number in range(MAX_REPORTED_RELEASES)),
        loading=tuple(sha(f"b{number}") for number in range(MAX_REPORTED_RELEASES)),
        failed=tuple((sha(f"c{number}"), "x" * 500) for number in range(MAX_REPORTED_RELEASES)),
        agreement=tuple(
            Agreement(sha(f"a{number}"), 64, "offload", 2**53 - 1, 2**53 - 1)
            for number in range(MAX_AGREEMENTS)
        ),
    )
    assert WorkerReleases.decode(full.encode()) == full


@pytest.mark.parametrize(
    "changes",
    [
        {"worker": "a/b"},
        {"worker": 7},
        {"loaded": [sha("a")] * (MAX_REPORTED_RELEASES + 1)},
        {"loaded": [7]},
        {"loaded": sha("a")},
        {"loading": [b"bytes"]},
        {"failed": [[sha("a")]]},
        {"failed": [[sha("a"), "line\nbreak"]]},
        {"failed": [sha("a")]},
        {"agreement": [[sha("a"), 4, "offload", 11, 10]]},
        {"agreement": [[sha("a"), 4, "guess", 1, 10]]},
        {"agreement": [[sha("a"), 4, ["audit"], 1, 10]]},
        {"agreement": [[sha("a"), 65, "audit", 1, 10]]},
        {"agreement": [[sha("a"), 4, "audit", 1]]},
        {"agreement": [[sha("a"), 4, "audit", -1, 10]]},
        {"agreement": [[sha("a"), 4, "audit", 0, 0]] * (MAX_AGREEMENTS + 1)},
        {"updated": None},
    ],
)
def test_a_report_out_of_bounds_is_refused(changes: dict[str, Any]) -> None:
    fields = decode_frame(worker_releases().encode(), {Kind.WORKER_RELEASES}).fields
    with pytest.raises(MalformedMessage):
        WorkerReleases.decode(encode_frame(Kind.WORKER_RELEASES, {**fields, **changes}))


def test_a_report_that_nobody_would_take_is_not_made() -> None:
    with pytest.raises(MalformedMessage, match="at most"):
        worker_releases(loaded=(sha("a"),) * (MAX_REPORTED_RELEASES + 1))
    one = worker_releases().agreement[0]
    with pytest.raises(MalformedMessage, match="at most"):
        worker_releases(agreement=(one,) * (MAX_AGREEMENTS + 1))
    with pytest.raises(MalformedMessage):
        replace(one, agreed=101)


def test_reports_of_a_later_program_are_understood() -> None:
    state = decode_frame(model_state().encode(), {Kind.MODEL_STATE}).fields
    later = encode_frame(Kind.MODEL_STATE, {**state, "battery": 0.5})
    assert ModelState.decode(later) == model_state()
    report = decode_frame(worker_releases().encode(), {Kind.WORKER_RELEASES}).fields
    report["agreement"][0].append("new")
    report["failed"][0].append("new")
    again = WorkerReleases.decode(encode_frame(Kind.WORKER_RELEASES, {**report, "memory": 1}))
    assert again == worker_releases()


def test_sizes_are_checked_before_anything_is_decoded() -> None:
    for decode in (SignedRollout.decode, ModelState.decode, WorkerReleases.decode):
        with pytest.raises(OversizedMessage):
            decode(bytes(MAX_REPORT_BYTES + 1))
        with pytest.raises(TruncatedMessage):
            decode(b"ELMA")
