"""Every failure of the `protocol` package, drawn once.

    ProtocolError
    ├── TopicError                    a topic, or a name in one, is not ours
    ├── MalformedMessage              bytes or fields that are not a valid message
    │   ├── TruncatedMessage          fewer bytes than the fixed header promises
    │   ├── UnsupportedVersion        a wire version that this program does not speak
    │   ├── UnexpectedKind            a known or unknown kind where another was expected
    │   └── OversizedMessage          more bytes than a limit of this module allows
    ├── SealingError                  a message that cannot be sealed or opened
    │   ├── WrongKey                  opened with a key that did not seal it
    │   ├── UnknownKeyId              sealed to a pool key that is not held (any more)
    │   ├── UnknownEdge               the edge has no public key in the directory
    │   ├── BadSignature              signed by another key, for another purpose, or changed since
    │   ├── RevokedKey                signed by a key that the root key has revoked
    │   └── TamperedMessage           header, topic and sealed part do not belong together
    ├── ExpiredRequest                past its deadline
    │   └── DeadlineTooFar            a deadline beyond the longest one allowed: a wrong clock
    ├── ConflictingDuplicate          a request id that came before with other bytes
    └── KeyFileError                  a key file that is missing, readable by others or broken

No message of these errors ever carries key material or content.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Base of everything that `protocol` raises on purpose."""


class TopicError(ProtocolError):
    """A topic, or a name inside one, that does not belong to ELMA's topic tree."""


class MalformedMessage(ProtocolError):
    """Bytes or fields that do not make a valid message."""


class TruncatedMessage(MalformedMessage):
    """The payload ends before the length that its fixed header promises."""


class UnsupportedVersion(MalformedMessage):
    """The fixed header names a wire version that this program does not speak."""


class UnexpectedKind(MalformedMessage):
    """The fixed header names another kind of message than the place allows."""


class OversizedMessage(MalformedMessage):
    """A payload, or a part of it, is larger than its limit."""


class SealingError(ProtocolError):
    """A message could not be sealed or opened."""


class WrongKey(SealingError):
    """The key at hand is not the one the message was sealed with."""


class UnknownKeyId(SealingError):
    """The message is sealed to a pool key that is not held."""


class UnknownEdge(SealingError):
    """No public key is on file for the edge that the message names."""


class BadSignature(SealingError):
    """A signature does not belong to these bytes, this purpose and this key."""


class RevokedKey(SealingError):
    """The signing key stands in the root key's list of those that no longer count."""


class TamperedMessage(SealingError):
    """Topic, clear header and sealed part do not belong together."""


class ExpiredRequest(ProtocolError):
    """The request's deadline has passed."""


class DeadlineTooFar(ExpiredRequest):
    """The deadline lies further ahead than any request may ask: one of the clocks is wrong."""


class ConflictingDuplicate(ProtocolError):
    """The request id was used before with other bytes."""


class KeyFileError(ProtocolError):
    """A key file is missing, broken, or open to other users."""
