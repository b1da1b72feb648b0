"""Sealing: who can open what, and what nobody can do in between."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.errors import (
    DeadlineTooFar,
    ExpiredRequest,
    MalformedMessage,
    ProtocolError,
    SealingError,
    TamperedMessage,
    UnexpectedKind,
    UnknownEdge,
    UnknownKeyId,
    UnsupportedVersion,
    WrongKey,
)
from protocol.keys import EdgeKeyring, EdgeKeys, PoolKeys, PoolPublic
from protocol.messages import Accepted, AnswerMessage, Busy, ErrorMessage, WindowResult
from protocol.sealing import (
    CLOCK_SKEW_SECONDS,
    MAX_LIFETIME_SECONDS,
    RequestHeader,
    RequestKey,
    associated_data,
    open_answer,
    open_cancel,
    open_request,
    peek_header,
    seal_answer,
    seal_cancel,
    seal_request,
)
from protocol.topics import RequestTopic
from protocol.wire import Kind, decode_frame, encode_frame

WORKER_SAYS = [
    Accepted(3.0, "w-1"),
    Busy(0.5, "w-1"),
    AnswerMessage((WindowResult(0, 12, 0.5, ()),), "w-1", 0.1, 0.2),
    ErrorMessage("unknown_codec", "codec int2 is not known here", "w-1"),
]
# One other valid value for every field of the header.
OTHER_HEADER = {
    "pool_key_id": "pool-2",
    "edge": "cellar",
    "request": "f0" * 16,
    "created": 1_760_000_000.5,
    "deadline": 1_760_000_029.0,
    "release": "cd" * 32,
}


def rewrite(payload: bytes, **changes: Any) -> bytes:
    """A sealed request whose clear header was changed on the way."""
    frame = decode_frame(payload, {Kind.SEALED_REQUEST})
    return encode_frame(frame.kind, {**frame.fields, **changes}, frame.attachment)


def test_a_worker_opens_what_an_edge_sealed(world: Any) -> None:
    payload, key = world.seal()
    opened = world.open(payload)
    assert (opened.header, opened.body, opened.key) == (world.header, world.body, key)


@pytest.mark.parametrize("said", WORKER_SAYS, ids=lambda said: type(said).__name__)
def test_the_edge_opens_what_the_worker_says(world: Any, said: Any) -> None:
    payload, key = world.seal()
    opened = world.open(payload)
    assert open_answer(seal_answer(opened.header, opened.key, said), world.header, key) == said


def test_nothing_of_a_request_or_answer_is_readable_on_the_way(world: Any) -> None:
    payload, key = world.seal()
    assert world.body.windows[0].state[:16] not in payload
    assert b"fp16" not in payload
    answer = seal_answer(world.header, key, ErrorMessage("internal", "readable", "worker-seven"))
    for word in (b"internal", b"readable", b"worker-seven"):
        assert word not in answer


def test_every_request_has_its_own_key_and_bytes(world: Any) -> None:
    (first, first_key), (second, second_key) = world.seal(), world.seal()
    assert first_key != second_key
    assert decode_frame(first, {Kind.SEALED_REQUEST}).attachment != (
        decode_frame(second, {Kind.SEALED_REQUEST}).attachment
    )


@pytest.mark.parametrize("field", sorted(OTHER_HEADER))
def test_no_header_field_can_be_changed_on_the_way(world: Any, field: str) -> None:
    payload, _ = world.seal()
    changed = rewrite(payload, **{field: OTHER_HEADER[field]})
    header = replace(world.header, **{field: OTHER_HEADER[field]})
    # The attacker moves the topic along, and both names are known to the worker.
    pool = PoolKeys({"pool-1": world.pool.secret_of("pool-1"), "pool-2": bytes(range(32))})
    directory = EdgeKeyring(
        {"kitchen": world.edge.public, "cellar": EdgeKeys.make("cellar").public}
    )
    topic = RequestTopic("normal", header.edge, header.request)
    with pytest.raises((TamperedMessage, WrongKey)):
        open_request(changed, pool, directory, world.now, topic)


@pytest.mark.parametrize("field", sorted(OTHER_HEADER))
def test_an_answer_belongs_to_one_header_only(world: Any, field: str) -> None:
    _, key = world.seal()
    answer = seal_answer(world.header, key, WORKER_SAYS[0])
    with pytest.raises(TamperedMessage):
        open_answer(answer, replace(world.header, **{field: OTHER_HEADER[field]}), key)


def test_the_topic_must_name_the_headers_edge_and_request(world: Any) -> None:
    payload, _ = world.seal()
    for topic in (
        RequestTopic("normal", "cellar", world.header.request),
        RequestTopic("normal", "kitchen", "f0" * 16),
    ):
        with pytest.raises(TamperedMessage, match="topic"):
            open_request(payload, world.pool, world.directory, world.now, topic)


def test_an_edge_cannot_speak_for_another(world: Any) -> None:
    thief = EdgeKeys("kitchen", EdgeKeys.make("thief").secret)
    payload, _ = seal_request(world.header, world.body, thief, world.pool.public)
    with pytest.raises(WrongKey, match="kitchen"):
        world.open(payload)


def test_a_key_wrapped_for_another_request_does_not_help(world: Any) -> None:
    first, _ = world.seal()
    second, _ = world.seal()
    wrapped = decode_frame(second, {Kind.SEALED_REQUEST}).fields["wrapped_key"]
    with pytest.raises(TamperedMessage):
        world.open(rewrite(first, wrapped_key=wrapped))


def test_an_edge_that_is_not_enrolled_is_refused(world: Any) -> None:
    payload, _ = world.seal()
    with pytest.raises(UnknownEdge, match="kitchen"):
        open_request(payload, world.pool, EdgeKeyring({}), world.now, world.topic)


def test_two_pool_keys_are_live_and_the_third_is_gone(world: Any) -> None:
    payload, _ = world.seal()
    after_one = world.pool.rotate("pool-2")
    after_two = after_one.rotate("pool-3")
    assert open_request(payload, after_one, world.directory, world.now, world.topic)
    assert after_two.ids == ("pool-2", "pool-3")
    with pytest.raises(UnknownKeyId, match="pool-1"):
        open_request(payload, after_two, world.directory, world.now, world.topic)


def test_sealing_needs_the_keys_that_the_header_names(world: Any) -> None:
    with pytest.raises(SealingError, match="edge"):
        seal_request(world.header, world.body, EdgeKeys.make("cellar"), world.pool.public)
    other = PoolPublic("pool-9", world.pool.public.public)
    with pytest.raises(SealingError, match="pool-9"):
        seal_request(world.header, world.body, world.edge, other)


def test_a_request_is_refused_past_its_deadline_and_the_clock_allowance(world: Any) -> None:
    payload, _ = world.seal()
    last = world.header.deadline + CLOCK_SKEW_SECONDS
    assert world.open(payload, now=last)
    with pytest.raises(ExpiredRequest, match=r"6\.0 seconds ago"):
        world.open(payload, now=last + 1.0)


def test_a_deadline_beyond_the_longest_is_refused(world: Any) -> None:
    payload, _ = world.seal()
    early = world.header.deadline - MAX_LIFETIME_SECONDS - CLOCK_SKEW_SECONDS - 1.0
    with pytest.raises(DeadlineTooFar, match="clock"):
        world.open(payload, now=early)
    with pytest.raises(MalformedMessage, match="deadline"):
        replace(world.header, deadline=world.header.created + MAX_LIFETIME_SECONDS + 1)


def test_a_request_does_not_come_back_as_its_own_answer(world: Any) -> None:
    payload, key = world.seal()
    frame = decode_frame(payload, {Kind.SEALED_REQUEST})
    with pytest.raises(UnexpectedKind):
        open_answer(payload, world.header, key)
    reflected = encode_frame(Kind.SEALED_ANSWER, {}, frame.attachment)
    with pytest.raises(TamperedMessage):
        open_answer(reflected, world.header, key)


def test_an_answer_is_no_cancellation_and_the_other_way_round(world: Any) -> None:
    _, key = world.seal()
    answer = decode_frame(
        seal_answer(world.header, key, WORKER_SAYS[0]), {Kind.SEALED_ANSWER}
    ).attachment
    cancel = decode_frame(seal_cancel(world.header, key), {Kind.SEALED_CANCEL}).attachment
    with pytest.raises(TamperedMessage):
        open_cancel(encode_frame(Kind.SEALED_CANCEL, {}, answer), world.header, key)
    with pytest.raises(TamperedMessage):
        open_answer(encode_frame(Kind.SEALED_ANSWER, {}, cancel), world.header, key)


def test_only_the_holder_of_the_requests_key_cancels_it(world: Any) -> None:
    _, key = world.seal()
    open_cancel(seal_cancel(world.header, key), world.header, key)
    with pytest.raises(TamperedMessage):
        open_cancel(seal_cancel(world.header, RequestKey.make()), world.header, key)


def test_what_a_worker_says_is_one_kind_only(world: Any) -> None:
    """An accepted cannot be turned into anything else: its kind is inside the sealed part."""
    _, key = world.seal()
    sealed = seal_answer(world.header, key, Accepted(3.0, "w-1"))
    for position in range(len(sealed)):
        flipped = bytearray(sealed)
        flipped[position] ^= 0x03
        with pytest.raises(ProtocolError):
            open_answer(bytes(flipped), world.header, key)


def test_another_key_opens_no_answer(world: Any) -> None:
    _, key = world.seal()
    with pytest.raises(TamperedMessage):
        open_answer(seal_answer(world.header, key, WORKER_SAYS[0]), world.header, RequestKey.make())


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"version": "1"},
        {"edge": "a/b"},
        {"edge": 7},
        {"request": "#"},
        {"release": "latest"},
        {"created": "now"},
        {"deadline": float("nan")},
        {"deadline": 0},
        {"wrapped_key": b"short"},
        {"wrapped_key": "text"},
    ],
)
def test_a_header_with_a_wrong_field_is_malformed(world: Any, changes: dict[str, Any]) -> None:
    payload, _ = world.seal()
    with pytest.raises(MalformedMessage):
        world.open(rewrite(payload, **changes))


@pytest.mark.parametrize("field", [*RequestHeader.__dataclass_fields__, "wrapped_key"])
def test_a_header_without_a_field_is_malformed(world: Any, field: str) -> None:
    frame = decode_frame(world.seal()[0], {Kind.SEALED_REQUEST})
    del frame.fields[field]
    with pytest.raises(MalformedMessage, match=field):
        world.open(encode_frame(frame.kind, frame.fields, frame.attachment))


def test_an_unknown_header_field_is_ignored(world: Any) -> None:
    payload, _ = world.seal()
    assert world.open(rewrite(payload, colour="red")).body == world.body


def test_an_unknown_version_is_refused_before_anything_is_decoded(world: Any) -> None:
    payload = bytearray(world.seal()[0])
    payload[4] = 9
    payload[14:] = b"\xc1" * (len(payload) - 14)
    with pytest.raises(UnsupportedVersion):
        world.open(bytes(payload))


def test_the_clear_header_can_be_read_for_a_log(world: Any) -> None:
    payload, _ = world.seal()
    assert peek_header(payload) == world.header


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_a_damaged_request_raises_nothing_but_protocol_errors(
    world: Any, data: st.DataObject
) -> None:
    payload = bytearray(world.seal()[0])
    position = data.draw(st.integers(0, len(payload) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != payload[position]))
    payload[position] = value
    with pytest.raises(ProtocolError):
        world.open(bytes(payload))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=400), key=st.binary(min_size=32, max_size=32))
def test_random_bytes_raise_nothing_but_protocol_errors(
    world: Any, noise: bytes, key: bytes
) -> None:
    for payload in (noise, encode_frame(Kind.SEALED_ANSWER, {}, noise)):
        with pytest.raises(ProtocolError):
            open_answer(payload, world.header, RequestKey(key))
        with pytest.raises(ProtocolError):
            world.open(payload)


_NAMES = st.from_regex(r"\A[A-Za-z0-9_-]{1,12}\Z")


@given(
    first=st.tuples(_NAMES, _NAMES, _NAMES, st.floats(0, 1e9), st.floats(0.5, 3000)),
    second=st.tuples(_NAMES, _NAMES, _NAMES, st.floats(0, 1e9), st.floats(0.5, 3000)),
)
def test_two_headers_share_associated_data_only_if_they_are_equal(first: Any, second: Any) -> None:
    def header(parts: Any) -> RequestHeader:
        pool, edge, request, created, life = parts
        return RequestHeader(1, pool, edge, request, created, created + life, "ab" * 32)

    same = associated_data(header(first), "request") == associated_data(header(second), "request")
    assert same == (header(first) == header(second))


def test_directions_have_different_associated_data(world: Any) -> None:
    spellings = {associated_data(world.header, d) for d in ("request", "answer", "cancel")}
    assert len(spellings) == 3


def test_no_secret_shows_in_a_repr(world: Any) -> None:
    payload, key = world.seal()
    shown = repr((world.edge, world.pool, key, world.open(payload)))
    for secret in (world.edge.secret, world.pool.secret_of("pool-1"), key.secret):
        assert repr(secret) not in shown
        assert secret.hex() not in shown


def test_the_header_is_a_small_map_in_clear(world: Any) -> None:
    """Documented for people who read dead letters: the header needs no key."""
    frame = decode_frame(world.seal()[0], {Kind.SEALED_REQUEST})
    clear = {name: frame.fields[name] for name in dataclasses.asdict(world.header)}
    assert clear == dataclasses.asdict(world.header)
    assert len(msgpack.packb(frame.fields)) < 400
