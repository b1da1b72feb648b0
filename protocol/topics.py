"""The one home of every topic: built from validated parts, and parsed back.

    elma/v1/req/{priority}/{edge}/{request}    RequestTopic
    elma/v1/ans/{edge}/{request}               AnswerTopic
    elma/v1/cancel/{edge}/{request}            CancelTopic
    elma/v1/model/{channel}/manifest           ManifestTopic
    elma/v1/model/{channel}/rollout            RolloutTopic
    elma/v1/blob/{sha256}/{chunk}              BlobTopic
    elma/v1/state/{edge}/model                 ModelStateTopic
    elma/v1/state/{worker}/releases            WorkerReleasesTopic
    elma/v1/presence/{role}/{id}               PresenceTopic
    elma/v1/dead/{reason}/{edge}/{request}     DeadLetterTopic
    elma/v1/metrics/{edge}                     MetricsTopic

>>> str(RequestTopic("normal", "kitchen", "0f"))
'elma/v1/req/normal/kitchen/0f'
>>> parse_topic("elma/v1/ans/kitchen/0f")
AnswerTopic(edge='kitchen', request='0f')
>>> worker_subscription("normal")
'$share/workers/elma/v1/req/normal/+/+'

A part is `[A-Za-z0-9_-]{1,64}`, so no part can smuggle in a level or a wildcard. `str(topic)` is
the topic; building or parsing a wrong one raises `TopicError`.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, ClassVar

from protocol.checks import is_digest, is_name
from protocol.errors import TopicError

ROOT = "elma/v1"
WORKERS_GROUP = "workers"
DEFAULT_PRIORITY = "normal"
PRESENCE_ROLES = ("edge", "worker", "publisher")
MAX_TOPIC_CHARACTERS = 512
MAX_CHUNKS = 1_000_000


def new_request_id() -> str:
    """A fresh request id: 32 hexadecimal digits of a random UUID (version 4)."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class _Topic:
    """Common part: the levels after `elma/v1`, where `{field}` stands for a field's value."""

    pattern: ClassVar[str]

    def __post_init__(self) -> None:
        for field, value in vars(self).items():
            _check_part(field, value)

    def __str__(self) -> str:
        return f"{ROOT}/{self.pattern.format(**vars(self))}"


@dataclass(frozen=True)
class RequestTopic(_Topic):
    """A question's unresolved windows, from an edge to whichever worker gets them."""

    priority: str
    edge: str
    request: str
    pattern = "req/{priority}/{edge}/{request}"


@dataclass(frozen=True)
class AnswerTopic(_Topic):
    """accepted, busy, answer and error, from a worker to one edge."""

    edge: str
    request: str
    pattern = "ans/{edge}/{request}"


@dataclass(frozen=True)
class CancelTopic(_Topic):
    """An edge no longer wants this request's answer."""

    edge: str
    request: str
    pattern = "cancel/{edge}/{request}"


@dataclass(frozen=True)
class ManifestTopic(_Topic):
    """The signed manifest of a channel's current release (retained)."""

    channel: str
    pattern = "model/{channel}/manifest"


@dataclass(frozen=True)
class RolloutTopic(_Topic):
    """The signed order that says which share of the edges takes a channel's release (retained)."""

    channel: str
    pattern = "model/{channel}/rollout"


@dataclass(frozen=True)
class BlobTopic(_Topic):
    """One chunk of a release's blob (retained); `chunk` counts from 0."""

    sha256: str
    chunk: int
    pattern = "blob/{sha256}/{chunk}"


@dataclass(frozen=True)
class ModelStateTopic(_Topic):
    """What an edge does with a release: init, downloading, verified, active, failed."""

    edge: str
    pattern = "state/{edge}/model"


@dataclass(frozen=True)
class WorkerReleasesTopic(_Topic):
    """Which releases a worker holds, and how its answers agree with the edges' (retained)."""

    worker: str
    pattern = "state/{worker}/releases"


@dataclass(frozen=True)
class PresenceTopic(_Topic):
    """Whether an edge, worker or publisher is connected (retained; last will)."""

    role: str
    id: str
    pattern = "presence/{role}/{id}"


@dataclass(frozen=True)
class DeadLetterTopic(_Topic):
    """A request nobody could handle: metadata and ciphertext only."""

    reason: str
    edge: str
    request: str
    pattern = "dead/{reason}/{edge}/{request}"


@dataclass(frozen=True)
class MetricsTopic(_Topic):
    """Metrics of an edge that no Prometheus can reach."""

    edge: str
    pattern = "metrics/{edge}"


Topic = (
    RequestTopic
    | AnswerTopic
    | CancelTopic
    | ManifestTopic
    | RolloutTopic
    | BlobTopic
    | ModelStateTopic
    | WorkerReleasesTopic
    | PresenceTopic
    | DeadLetterTopic
    | MetricsTopic
)
TOPIC_CLASSES: tuple[type[Topic], ...] = (
    RequestTopic,
    AnswerTopic,
    CancelTopic,
    ManifestTopic,
    RolloutTopic,
    BlobTopic,
    ModelStateTopic,
    WorkerReleasesTopic,
    PresenceTopic,
    DeadLetterTopic,
    MetricsTopic,
)


def parse_topic(text: str) -> Topic:
    """The topic that `text` spells; anything but a concrete topic of ELMA is a TopicError."""
    if len(text) > MAX_TOPIC_CHARACTERS:
        raise TopicError(f"a topic of {len(text)} characters; ours have {MAX_TOPIC_CHARACTERS}")
    levels = text.split("/")
    for topic_class in TOPIC_CLASSES:
        values = _match(topic_class, levels)
        if values is not None:
            return topic_class(**values)
    raise TopicError(f"not a topic of {ROOT}: {text!r}; see protocol/topics.py for the tree")


def worker_subscription(priority: str = DEFAULT_PRIORITY) -> str:
    """The shared subscription that spreads a priority's requests over all workers.

    Its exact spelling is what the broker's access rules grant.
    """
    _check_part("priority", priority)
    return f"$share/{WORKERS_GROUP}/{ROOT}/req/{priority}/+/+"


def answer_subscription(edge: str) -> str:
    """All that workers send to one edge."""
    _check_part("edge", edge)
    return f"{ROOT}/ans/{edge}/+"


def cancel_subscription() -> str:
    """All cancellations; a plain subscription, because each worker must see each of them."""
    return f"{ROOT}/cancel/+/+"


def presence_subscription(role: str) -> str:
    """Who of a role is connected."""
    _check_part("role", role)
    return f"{ROOT}/presence/{role}/+"


def manifest_subscription(channel: str) -> str:
    """A channel's current manifest."""
    return str(ManifestTopic(channel))


def rollout_subscription(channel: str) -> str:
    """A channel's current rollout order."""
    return str(RolloutTopic(channel))


def model_state_subscription() -> str:
    """What every edge does with its release."""
    return f"{ROOT}/state/+/model"


def worker_releases_subscription() -> str:
    """Which releases every worker holds."""
    return f"{ROOT}/state/+/releases"


def metrics_subscription() -> str:
    """The metrics of every edge that reports them."""
    return f"{ROOT}/metrics/+"


def _check_part(field: str, value: object) -> None:
    """Refuse a value that could not stand as the topic level `field`."""
    if field == "chunk":
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_CHUNKS:
            raise TopicError(f"topic level chunk must be a number from 0 to {MAX_CHUNKS - 1}")
    elif field == "sha256":
        if not is_digest(value):
            raise TopicError("topic level sha256 must be 64 lower-case hexadecimal digits")
    elif field == "role":
        if value not in PRESENCE_ROLES:
            raise TopicError(f"topic level role must be one of {', '.join(PRESENCE_ROLES)}")
    elif not is_name(value):
        raise TopicError(f"topic level {field} must be 1 to 64 letters, digits, '_' or '-'")


def _match(topic_class: type[Topic], levels: list[str]) -> dict[str, Any] | None:
    """The fields of `topic_class` in `levels`, or None where the fixed levels differ."""
    pattern = f"{ROOT}/{topic_class.pattern}".split("/")
    if len(pattern) != len(levels):
        return None
    values: dict[str, Any] = {}
    for expected, level in zip(pattern, levels, strict=True):
        if not expected.startswith("{"):
            if expected != level:
                return None
        elif expected == "{chunk}":
            values["chunk"] = _chunk_number(level)
        else:
            values[expected[1:-1]] = level
    return values


def _chunk_number(level: str) -> int:
    """The chunk number in its one canonical spelling (no sign, no leading zero)."""
    if level.isascii() and level.isdigit() and len(level) <= 7 and str(int(level)) == level:
        return int(level)
    raise TopicError("topic level chunk must be a decimal number without leading zeros")
