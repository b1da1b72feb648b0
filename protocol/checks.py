"""Checks shared by topics, messages and headers: names, numbers, byte strings, lists, fields.

Each takes the field's name first, returns the value, and raises `MalformedMessage` with the
field and its bounds. Values themselves are not repeated in the error unless they are numbers,
because an error may reach a log.
"""

from __future__ import annotations

import math
import re
from typing import Any

from protocol.errors import MalformedMessage

NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}", re.ASCII)


def is_name(value: object) -> bool:
    """Whether `value` may stand as one topic level or identifier: `[A-Za-z0-9_-]{1,64}`."""
    return isinstance(value, str) and NAME_PATTERN.fullmatch(value) is not None


def is_digest(value: object) -> bool:
    """Whether `value` is a sha256 in lower-case hexadecimal."""
    return isinstance(value, str) and DIGEST_PATTERN.fullmatch(value) is not None


def check_name(field: str, value: object) -> str:
    """A name: 1 to 64 of letters, digits, `_` and `-`."""
    if isinstance(value, str) and is_name(value):
        return value
    raise MalformedMessage(f"{field} must be 1 to 64 letters, digits, '_' or '-'")


def check_digest(field: str, value: object) -> str:
    """A sha256 in 64 lower-case hexadecimal digits."""
    if isinstance(value, str) and is_digest(value):
        return value
    raise MalformedMessage(f"{field} must be 64 lower-case hexadecimal digits")


def check_integer(field: str, value: object, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise MalformedMessage(f"{field} must be a whole number, not {type(value).__name__}")
    if not low <= value <= high:
        raise MalformedMessage(f"{field} must be from {low} to {high}")
    return value


def check_float(field: str, value: object, low: float = -1e30, high: float = 1e30) -> float:
    """A finite number from `low` to `high`; whole numbers count."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise MalformedMessage(f"{field} must be a number, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError as error:
        raise MalformedMessage(f"{field} must be from {low:g} to {high:g}") from error
    if not math.isfinite(number) or not low <= number <= high:
        raise MalformedMessage(f"{field} must be finite and from {low:g} to {high:g}")
    return number


def check_bytes(field: str, value: object, low: int, high: int) -> bytes:
    """A byte string of `low` to `high` bytes."""
    if not isinstance(value, bytes):
        raise MalformedMessage(f"{field} must be bytes, not {type(value).__name__}")
    if not low <= len(value) <= high:
        raise MalformedMessage(f"{field} must have {low} to {high} bytes, has {len(value)}")
    return value


def check_text(field: str, value: object, high: int) -> str:
    """Text of at most `high` characters, without control characters."""
    if not isinstance(value, str):
        raise MalformedMessage(f"{field} must be text, not {type(value).__name__}")
    if len(value) > high:
        raise MalformedMessage(f"{field} must have at most {high} characters, has {len(value)}")
    if any(ord(character) < 32 or 0xD800 <= ord(character) <= 0xDFFF for character in value):
        raise MalformedMessage(f"{field} must not hold control characters")
    return value


def check_list(field: str, value: object, high: int, low: int = 0) -> list[Any]:
    """A list of `low` to `high` items."""
    if not isinstance(value, list) or not low <= len(value) <= high:
        raise MalformedMessage(f"{field} must be a list of {low} to {high}")
    return value


def check_maps(field: str, value: object, high: int, low: int = 0) -> list[dict[str, Any]]:
    """A list of `low` to `high` maps."""
    items = check_list(field, value, high, low)
    if not all(isinstance(item, dict) for item in items):
        raise MalformedMessage(f"{field} must hold maps")
    return items


def check_map(field: str, value: object) -> dict[str, Any]:
    """One map."""
    if not isinstance(value, dict):
        raise MalformedMessage(f"{field} must be a map")
    return value


def take(fields: dict[str, Any], *names: str) -> list[Any]:
    """The named fields in order; a missing one makes the message malformed."""
    try:
        return [fields[name] for name in names]
    except KeyError as error:
        raise MalformedMessage(f"field {error.args[0]!r} is missing") from error


def digest_from_bytes(field: str, value: object) -> str:
    """A sha256 as it travels, 32 bytes, in the hexadecimal that dataclasses hold."""
    return check_bytes(field, value, 32, 32).hex()


def check_boolean(field: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise MalformedMessage(f"{field} must be true or false")
    return value
