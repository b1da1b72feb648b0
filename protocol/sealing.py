"""Sealing: what makes the broker a carrier that can read and forge nothing.

An edge makes a fresh 32-byte key for each request, seals the request with it (XChaCha20-Poly1305,
`nacl.secret.Aead`), and wraps the key in a Box from its own secret to the pool's public key, so
the worker knows which edge it hears. The worker seals its answers with the same key.

    sealed request = frame(SEALED_REQUEST, {header fields, "wrapped_key"}, ciphertext)
    sealed answer  = frame(SEALED_ANSWER, {}, ciphertext)
    sealed cancel  = frame(SEALED_CANCEL, {}, ciphertext)

The header travels in clear and is bound to every ciphertext as associated data, with the
direction: a request cannot come back as an answer. The kind of an answer (accepted, busy, ...)
is inside the ciphertext: nobody on the way sees it or turns one into another.
Inputs and outputs: `messages` on one side, payload bytes of `topics` on the other. Clocks are
passed in as `now`, in unix seconds.
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

import nacl.public
import nacl.secret
import nacl.utils
from nacl.exceptions import CryptoError

from protocol.checks import check_bytes, check_digest, check_float, check_integer, check_name
from protocol.errors import (
    DeadlineTooFar,
    ExpiredRequest,
    MalformedMessage,
    SealingError,
    TamperedMessage,
    WrongKey,
)
from protocol.keys import KEY_BYTES, EdgeDirectory, EdgeKeys, PoolKeys, PoolPublic
from protocol.messages import (
    WORKER_KINDS,
    Cancel,
    ResumeRequest,
    WorkerMessage,
    decode_message,
    encode_message,
)
from protocol.topics import RequestTopic
from protocol.wire import WIRE_VERSION, Kind, decode_frame, encode_frame

CLOCK_SKEW_SECONDS = 5.0
"""How far the clocks of an edge and a worker may differ before a deadline is misjudged."""
MAX_LIFETIME_SECONDS = 3600.0
"""The longest time from `created` to `deadline`."""
MAX_UNIX_SECONDS = 2.0**40

Direction = Literal["request", "answer", "cancel"]
_WRAPPED_BYTES = nacl.public.Box.NONCE_SIZE + KEY_BYTES + 16
_SEAL_BYTES = nacl.secret.Aead.NONCE_SIZE + nacl.secret.Aead.MACBYTES


@dataclass(frozen=True)
class RequestHeader:
    """What travels in clear with a request, and is bound to all that is sealed for it.

    `created` and `deadline` are unix seconds; `release` is the digest of the reader that made
    the states (64 hexadecimal digits).
    """

    version: int
    pool_key_id: str
    edge: str
    request: str
    created: float
    deadline: float
    release: str

    def __post_init__(self) -> None:
        check_integer("version", self.version, WIRE_VERSION, WIRE_VERSION)
        check_name("pool key id", self.pool_key_id)
        check_name("edge", self.edge)
        check_name("request", self.request)
        check_float("created", self.created, 0.0, MAX_UNIX_SECONDS)
        check_float("deadline", self.deadline, 0.0, MAX_UNIX_SECONDS)
        check_digest("release", self.release)
        if not 0.0 < self.deadline - self.created <= MAX_LIFETIME_SECONDS:
            raise MalformedMessage(
                f"deadline must follow created by at most {MAX_LIFETIME_SECONDS:g} seconds"
            )


@dataclass(frozen=True)
class RequestKey:
    """The 32 bytes that seal one request and its answers. The edge keeps it with the request."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        check_bytes("request key", self.secret, KEY_BYTES, KEY_BYTES)

    @classmethod
    def make(cls) -> RequestKey:
        """A fresh key from the operating system's randomness."""
        return cls(nacl.utils.random(KEY_BYTES))


@dataclass(frozen=True)
class OpenedRequest:
    """A request that was proved to come from `header.edge` and to be in time."""

    header: RequestHeader
    body: ResumeRequest
    key: RequestKey


def seal_request(
    header: RequestHeader, body: ResumeRequest, edge_keys: EdgeKeys, pool_public: PoolPublic
) -> tuple[bytes, RequestKey]:
    """The payload to publish, and the key that will open its answers.

    Raises SealingError where header and keys do not fit, OversizedMessage where it grows too big.
    """
    if header.edge != edge_keys.edge:
        raise SealingError(f"the header names edge {header.edge!r}, the key {edge_keys.edge!r}")
    if header.pool_key_id != pool_public.key_id:
        raise SealingError(
            f"the header names pool key {header.pool_key_id!r}, the key {pool_public.key_id!r}"
        )
    key = RequestKey.make()
    box = _box(edge_keys.secret, pool_public.public)
    fields = asdict(header)
    fields["wrapped_key"] = bytes(box.encrypt(key.secret))
    ciphertext = _seal(encode_message(body), header, key, "request")
    return encode_frame(Kind.SEALED_REQUEST, fields, ciphertext), key


def open_request(
    payload: bytes,
    pool_keys: PoolKeys,
    edge_directory: EdgeDirectory,
    now: float,
    topic: RequestTopic,
) -> OpenedRequest:
    """Check everything about a sealed request, cheapest first, and open it.

    Raises MalformedMessage, TamperedMessage (topic, header and key disagree), ExpiredRequest,
    UnknownKeyId, UnknownEdge or WrongKey.
    """
    header, wrapped_key, ciphertext = _read_request(payload)
    if (topic.edge, topic.request) != (header.edge, header.request):
        raise TamperedMessage(
            f"request {topic.request}: the topic and the header name different edges or requests"
        )
    _check_deadline(header, now)
    pool_secret = pool_keys.secret_of(header.pool_key_id)
    box = _box(pool_secret, edge_directory.public_key(header.edge))
    try:
        key = RequestKey(box.decrypt(wrapped_key))
    except CryptoError as error:
        raise WrongKey(
            f"request {header.request}: its key was not wrapped by edge {header.edge!r} "
            f"for pool key {header.pool_key_id!r}; enrol the edge again"
        ) from error
    plain = _open(ciphertext, header, key, "request")
    body = decode_message(plain, {Kind.RESUME_REQUEST})
    return OpenedRequest(header, cast(ResumeRequest, body), key)


def peek_header(payload: bytes) -> RequestHeader:
    """The clear header of a sealed request, unproved: for logs and dead letters only."""
    return _read_request(payload)[0]


def seal_answer(header: RequestHeader, key: RequestKey, body: WorkerMessage) -> bytes:
    """The payload of an accepted, busy, answer or error for the request of `header`."""
    return encode_frame(Kind.SEALED_ANSWER, {}, _seal(encode_message(body), header, key, "answer"))


def open_answer(payload: bytes, header: RequestHeader, key: RequestKey) -> WorkerMessage:
    """What a worker says to the request of `header`; raises MalformedMessage or TamperedMessage."""
    frame = decode_frame(payload, {Kind.SEALED_ANSWER})
    plain = _open(frame.attachment, header, key, "answer")
    return cast(WorkerMessage, decode_message(plain, WORKER_KINDS))


def seal_cancel(header: RequestHeader, key: RequestKey) -> bytes:
    """The payload that takes a request back; only the edge that made the request can."""
    return encode_frame(
        Kind.SEALED_CANCEL, {}, _seal(encode_message(Cancel()), header, key, "cancel")
    )


def open_cancel(payload: bytes, header: RequestHeader, key: RequestKey) -> Cancel:
    """Prove that a cancellation belongs to the request of `header`."""
    frame = decode_frame(payload, {Kind.SEALED_CANCEL})
    plain = _open(frame.attachment, header, key, "cancel")
    return cast(Cancel, decode_message(plain, {Kind.CANCEL}))


def _read_request(payload: bytes) -> tuple[RequestHeader, bytes, bytes]:
    """Header, wrapped key and ciphertext of a sealed request; shapes checked, nothing proved."""
    frame = decode_frame(payload, {Kind.SEALED_REQUEST})
    names = tuple(RequestHeader.__dataclass_fields__)
    missing = [name for name in (*names, "wrapped_key") if name not in frame.fields]
    if missing:
        raise MalformedMessage(f"the header lacks {', '.join(missing)}")
    values: dict[str, Any] = {name: frame.fields[name] for name in names}
    header = RequestHeader(**values)
    wrapped_key = check_bytes(
        "wrapped key", frame.fields["wrapped_key"], _WRAPPED_BYTES, _WRAPPED_BYTES
    )
    return header, wrapped_key, frame.attachment


def _check_deadline(header: RequestHeader, now: float) -> None:
    late_seconds = now - header.deadline
    if late_seconds > CLOCK_SKEW_SECONDS:
        raise ExpiredRequest(
            f"request {header.request}: its deadline passed {late_seconds:.1f} seconds ago "
            f"(allowed for clocks: {CLOCK_SKEW_SECONDS:g})"
        )
    if -late_seconds > MAX_LIFETIME_SECONDS + CLOCK_SKEW_SECONDS:
        raise DeadlineTooFar(
            f"request {header.request}: its deadline is {-late_seconds:.0f} seconds ahead; "
            f"set the clock of edge {header.edge!r}"
        )


def _box(secret: bytes, public: bytes) -> nacl.public.Box:
    try:
        return nacl.public.Box(nacl.public.PrivateKey(secret), nacl.public.PublicKey(public))
    except (CryptoError, RuntimeError) as error:
        raise WrongKey("the public key on file is not usable; make it again") from error


def associated_data(header: RequestHeader, direction: Direction) -> bytes:
    """The header and direction in one unambiguous spelling: each part behind its length."""
    parts = (
        b"elma seal",
        struct.pack(">I", header.version),
        header.pool_key_id.encode("ascii"),
        header.edge.encode("ascii"),
        header.request.encode("ascii"),
        struct.pack(">d", header.created),
        struct.pack(">d", header.deadline),
        direction.encode("ascii"),
        header.release.encode("ascii"),
    )
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def _seal(plain: bytes, header: RequestHeader, key: RequestKey, direction: Direction) -> bytes:
    aead = nacl.secret.Aead(key.secret)
    return bytes(aead.encrypt(plain, aad=associated_data(header, direction)))


def _open(ciphertext: bytes, header: RequestHeader, key: RequestKey, direction: Direction) -> bytes:
    if len(ciphertext) < _SEAL_BYTES:
        raise MalformedMessage(f"request {header.request}: the sealed part is too short")
    try:
        return nacl.secret.Aead(key.secret).decrypt(
            ciphertext, aad=associated_data(header, direction)
        )
    except CryptoError as error:
        raise TamperedMessage(
            f"request {header.request}: the sealed {direction} does not belong to its header, "
            "or was changed on the way"
        ) from error
