"""Every failure of the edge agent, as one tree; no message ever holds text of a question.

EdgeError
├── SettingsError             a setting is wrong, or settings contradict each other
├── ListenError               the HTTP address cannot be used
├── CannotCompute             the reader that is there fails on its first words
├── OutboxError               the outbox cannot be opened, read or written
│   ├── OutboxDamaged         its pages are broken
│   └── OutboxInUse           another process holds it
├── AuditStoreError           the file of audits cannot be used (`audit_store`)
├── UnknownRequest            nothing is stored under this id                      HTTP 404
└── QuestionRefused           a question was not accepted (each knows its HTTP status)
    ├── InvalidQuestion       it cannot be read; another question could            HTTP 422
    ├── BodyTooLarge          it has more bytes than the agent reads               HTTP 413
    ├── BodyTooSlow           its bytes did not arrive in time                     HTTP 408
    ├── UnsupportedBody       it is not declared as JSON                           HTTP 415
    ├── ForeignHost           the request is addressed to some other host          HTTP 421
    ├── ConflictingQuestion   its id belongs to a question with other content      HTTP 409
    ├── QueueFull             the bounded queue has no place; come back later      HTTP 429
    └── NotAccepting          the agent is stopping, or cannot store it            HTTP 503
        └── NoRelease         no weights have come to this device yet              HTTP 503
"""

from __future__ import annotations


class EdgeError(Exception):
    """Root of the tree; the message says what failed, where, and what to do."""


class SettingsError(EdgeError):
    """A setting is wrong, or settings contradict each other."""


class ListenError(EdgeError):
    """The HTTP address cannot be used."""


class CannotCompute(EdgeError):
    """The reader was loaded, and cannot read with its engine on this machine."""


class OutboxError(EdgeError):
    """The outbox cannot be opened, read or written."""


class OutboxDamaged(OutboxError):
    """The file's content is broken; it has to be moved away."""


class OutboxInUse(OutboxError):
    """Another process holds the outbox; two agents would answer the same questions."""


class UnknownRequest(EdgeError):
    """Nothing is stored under this request id: never accepted, or past its retention."""

    status = 404
    code = "unknown_request"


class QuestionRefused(EdgeError):
    """A question was not accepted; `status` is the HTTP status, `code` a stable short name."""

    status = 400
    code = "refused"


class InvalidQuestion(QuestionRefused):
    """The question cannot be read as it stands."""

    status = 422
    code = "invalid_question"


class BodyTooLarge(QuestionRefused):
    """The body has more bytes than the agent is willing to hold in memory."""

    status = 413
    code = "body_too_large"


class BodyTooSlow(QuestionRefused):
    """The body did not arrive within its time."""

    status = 408
    code = "body_too_slow"


class UnsupportedBody(QuestionRefused):
    """The body is not declared as JSON."""

    status = 415
    code = "unsupported_body"


class ForeignHost(QuestionRefused):
    """The request names a host that is not this device."""

    status = 421
    code = "foreign_host"


class ConflictingQuestion(QuestionRefused):
    """The request id already belongs to a question with other content."""

    status = 409
    code = "conflicting_question"


class QueueFull(QuestionRefused):
    """The bounded queue has no place; `retry_after_seconds` says when to come back."""

    status = 429
    code = "queue_full"

    def __init__(self, message: str, *, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NotAccepting(QuestionRefused):
    """The agent is stopping, or its outbox cannot be written."""

    status = 503
    code = "not_accepting"


class NoRelease(NotAccepting):
    """The device waits for its first weights."""
