"""The bytes of a message: a fixed header, a small msgpack map, and an opaque attachment.

    offset  bytes
    0       4   magic "ELMA"
    4       1   wire version
    5       1   kind (see `Kind`)
    6       4   length of the map, big endian
    10      4   length of the attachment, big endian
    14          the map, then the attachment, and nothing after it

Magic, version, kind and both lengths are checked before msgpack sees a byte. Bulk (states,
ciphertext) travels in the attachment and never through msgpack: a map is at most
`MAX_MAP_BYTES`, so hostile bytes cannot make the decoder build millions of objects.
Neighbours: `messages` gives maps their meaning, `sealing` puts one frame inside another.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import msgpack  # type: ignore[import-untyped]  # ships no types

from protocol.errors import (
    MalformedMessage,
    OversizedMessage,
    TruncatedMessage,
    UnexpectedKind,
    UnsupportedVersion,
)

MAGIC = b"ELMA"
WIRE_VERSION = 1
MAX_MAP_BYTES = 512 * 1024
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_LIST_ITEMS = 1024
MAX_MAP_FIELDS = 64
MAX_TEXT_BYTES = 4096
MAX_FIELD_BYTES = 1024

_FIXED = struct.Struct(">4sBBII")
FIXED_HEADER_BYTES = _FIXED.size


class Kind(IntEnum):
    """What a frame holds. Numbers are for ever; a retired one is not used again."""

    SEALED_REQUEST = 1
    SEALED_ANSWER = 2
    SEALED_CANCEL = 3
    RESUME_REQUEST = 16
    ACCEPTED = 17
    BUSY = 18
    ANSWER = 19
    ERROR = 20
    CANCEL = 21
    PRESENCE = 32
    MANIFEST = 48
    MANIFEST_BODY = 49
    KEY_LIST = 50
    ROLLOUT = 51
    ROLLOUT_BODY = 52
    FILE_INDEX = 53
    MODEL_STATE = 54
    WORKER_RELEASES = 55
    METRICS = 64


@dataclass(frozen=True)
class Frame:
    """A decoded frame: its kind, the fields of its map, and its attachment."""

    kind: Kind
    fields: dict[str, Any]
    attachment: bytes


def encode_frame(kind: Kind, fields: dict[str, Any], attachment: bytes = b"") -> bytes:
    """The bytes of a frame; raises OversizedMessage where the reader would refuse them."""
    body = msgpack.packb(fields, use_bin_type=True)
    total = FIXED_HEADER_BYTES + len(body) + len(attachment)
    if len(body) > MAX_MAP_BYTES or total > MAX_MESSAGE_BYTES:
        raise OversizedMessage(
            f"a {kind.name} of {total} bytes (map {len(body)}); the limits are "
            f"{MAX_MESSAGE_BYTES} and {MAX_MAP_BYTES}: send fewer windows in a request"
        )
    head = _FIXED.pack(MAGIC, WIRE_VERSION, kind, len(body), len(attachment))
    return b"".join((head, body, attachment))


def decode_frame(payload: bytes, expected: Collection[Kind]) -> Frame:
    """Check the fixed header, then decode the map. Raises MalformedMessage or a subclass."""
    if len(payload) > MAX_MESSAGE_BYTES:
        raise OversizedMessage(
            f"a payload of {len(payload)} bytes; the limit is {MAX_MESSAGE_BYTES}"
        )
    if len(payload) < FIXED_HEADER_BYTES:
        raise TruncatedMessage(
            f"a payload of {len(payload)} bytes; the fixed header alone has {FIXED_HEADER_BYTES}"
        )
    magic, version, number, map_bytes, attachment_bytes = _FIXED.unpack_from(payload)
    if magic != MAGIC:
        raise MalformedMessage("the payload does not begin with ELMA's magic bytes")
    if version != WIRE_VERSION:
        raise UnsupportedVersion(
            f"wire version {version}; this program speaks {WIRE_VERSION}: update the older side"
        )
    kind = _expected_kind(number, expected)
    if map_bytes > MAX_MAP_BYTES:
        raise OversizedMessage(f"a map of {map_bytes} bytes; the limit is {MAX_MAP_BYTES}")
    promised = FIXED_HEADER_BYTES + map_bytes + attachment_bytes
    if len(payload) < promised:
        raise TruncatedMessage(f"{len(payload)} bytes of the {promised} that the header promises")
    if len(payload) > promised:
        raise MalformedMessage(f"{len(payload) - promised} bytes after the end of the message")
    map_end = FIXED_HEADER_BYTES + map_bytes
    fields = _decode_map(payload[FIXED_HEADER_BYTES:map_end])
    return Frame(kind, fields, bytes(payload[map_end:]))


def _expected_kind(number: int, expected: Collection[Kind]) -> Kind:
    if number in expected:
        return Kind(number)
    names = ", ".join(sorted(kind.name for kind in expected))
    raise UnexpectedKind(f"a message of kind {number}; expected here: {names}")


def _decode_map(body: bytes) -> dict[str, Any]:
    """msgpack under strict limits; every way it can fail becomes MalformedMessage."""
    try:
        fields = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            use_list=True,
            max_str_len=MAX_TEXT_BYTES,
            max_bin_len=MAX_FIELD_BYTES,
            max_array_len=MAX_LIST_ITEMS,
            max_map_len=MAX_MAP_FIELDS,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise MalformedMessage(f"the map is not valid msgpack ({type(error).__name__})") from error
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise MalformedMessage("the body must be a map with text keys")
    return fields
