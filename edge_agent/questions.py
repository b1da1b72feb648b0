"""The records that pass between the parts of the edge agent: a question, and how it ended.

Inputs and outputs: none; frozen data with its JSON form. Neighbours: `app` makes questions from
HTTP, `outbox` stores them, `agent` concludes them with an outcome.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")

ResolvedBy = Literal["edge", "cloud"]


@dataclass(frozen=True)
class Question:
    """A question as it was accepted.

    `created` is in unix seconds, `deadline_seconds` counts from it. `generation` is how many times
    a restart of the agent has taken the question up again.
    """

    request_id: str
    question: str
    passage: str
    top_k: int
    deadline_seconds: float
    created: float
    generation: int = 0

    @property
    def deadline(self) -> float:
        """When the one who asked stops waiting, in unix seconds."""
        return self.created + self.deadline_seconds

    @property
    def fingerprint(self) -> bytes:
        """32 bytes that are equal for equal content; tells a repeated question from another one."""
        content = [self.question, self.passage, self.top_k, self.deadline_seconds]
        return hashlib.sha256(json.dumps(content).encode()).digest()

    def __repr__(self) -> str:
        """Without the text: a record must not carry it into a log by accident."""
        return f"Question(request_id={self.request_id!r}, generation={self.generation})"


@dataclass(frozen=True)
class RankedAnswer:
    """One of the `top_k` answers: `text` is "" and `start`, `end` are -1 for "no answer"."""

    answer: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class FinalAnswer:
    """The one answer that an accepted question gets; the fields are those of the HTTP answer.

    `start` and `end` are characters of the passage (-1 without an answer); `score` and
    `no_answer_score` are probabilities; `exit_layer` is the deepest layer that any window of the
    question needed; `latency_ms` runs from acceptance; `bytes_sent` counts sealed payloads;
    `release` is the digest of the weights that gave the answer, on the device and in the cloud;
    `engine` and `precision` are what computed on the device.
    """

    request_id: str
    answer: str
    start: int
    end: int
    score: float
    no_answer_score: float
    exit_layer: int
    resolved_by: ResolvedBy
    degraded: bool
    latency_ms: float
    bytes_sent: int
    model: str
    release: str = ""
    engine: str = ""
    precision: str = ""
    answers: tuple[RankedAnswer, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The JSON object of the answer; `answers` is there only when more than one was asked."""
        document = asdict(self)
        document["answers"] = list(document["answers"])
        if not self.answers:
            del document["answers"]
        return document

    def __repr__(self) -> str:
        """Without the text, as in `Question`."""
        return f"FinalAnswer(request_id={self.request_id!r}, exit_layer={self.exit_layer})"


@dataclass(frozen=True)
class Failure:
    """The end of a question that could not be read at all: a fault in the agent, not in the asker.

    `reason` names the kind of fault and never quotes the question.
    """

    request_id: str
    reason: str

    def as_json(self) -> dict[str, Any]:
        """The JSON object of an error answer."""
        return {"error": "failed", "reason": self.reason, "request_id": self.request_id}


Outcome = FinalAnswer | Failure


@dataclass(frozen=True)
class OffloadRecord:
    """How a question's way to the cloud went, for the answer and the log; empty without one."""

    wire_id: str | None = None
    publications: int = 0
    bytes_sent: int = 0
    worker: str | None = None


def encode_outcome(outcome: Outcome) -> str:
    """The JSON text under which the outbox keeps an outcome."""
    return json.dumps(asdict(outcome))


def decode_outcome(text: str) -> Outcome:
    """The outcome that `encode_outcome` made the text from."""
    document = json.loads(text)
    if "reason" in document:
        return Failure(**document)
    document["answers"] = tuple(RankedAnswer(**answer) for answer in document["answers"])
    return FinalAnswer(**document)
