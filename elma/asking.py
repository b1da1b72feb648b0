"""Asking one question: of an edge agent over HTTP, or of a reader in this process.

Input: `Asked`. Output: the answer's JSON object, the same from both ways. Errors are CommandErrors
with the agent's own reason. Neighbours: `elma ask` uses it.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Any

import httpx

from elma.output import CommandError

DEFAULT_EDGE_URL = "http://127.0.0.1:8571"
CONNECT_SECONDS = 2.0
LONGEST_WAIT_SECONDS = 630.0
"""The longest deadline that an edge agent can be set to, and some time for its local finish."""
_WRONG_INPUT = {409, 413, 422}


class NoEdgeThere(CommandError):
    """Nobody listens at the URL."""


@dataclass(frozen=True)
class Asked:
    """A question; `deadline_seconds` None leaves the deadline to the agent."""

    question: str
    passage: str
    top_k: int = 1
    deadline_seconds: float | None = None


def ask_edge(asked: Asked, url: str) -> dict[str, Any]:
    """The answer of the agent at `url`. Raises NoEdgeThere or CommandError."""
    body: dict[str, Any] = {
        "question": asked.question,
        "context": asked.passage,
        "top_k": asked.top_k,
    }
    if asked.deadline_seconds is not None:
        body["deadline_seconds"] = asked.deadline_seconds
    give_up_at = time.monotonic() + LONGEST_WAIT_SECONDS
    timeout = httpx.Timeout(LONGEST_WAIT_SECONDS, connect=CONNECT_SECONDS)
    base = url.rstrip("/")
    try:
        # Without the environment's proxies: the agent is on this machine or in this house.
        with httpx.Client(timeout=timeout, trust_env=False) as client:
            response = client.post(f"{base}/v1/answer", json=body)
            while response.status_code == httpx.codes.ACCEPTED and time.monotonic() < give_up_at:
                time.sleep(0.2)
                response = client.get(f"{base}/v1/answers/{response.json()['request_id']}")
    except httpx.ConnectError as error:
        raise NoEdgeThere(
            f"no edge agent at {url} ({error}); start one with `elma edge run`, or use --local"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CommandError(
            f"the edge agent at {url} could not be asked: {type(error).__name__}: {error}"
        ) from error
    return _answer_of(response, url)


def ask_here(
    asked: Asked, model: str, *, engine: str = "auto", precision: str = "auto"
) -> dict[str, Any]:
    """The answer of a reader in this process, all its layers at hand. Raises ReaderError."""
    from edge_agent.local_reading import LocalReading
    from edge_agent.questions import Question
    from reader.model import Reader

    reader = Reader.load(model, engine=engine, precision=precision)
    local = LocalReading(reader, edge_layers=reader.config.layers)
    begin = time.perf_counter()
    question = Question(
        request_id=uuid.uuid4().hex,
        question=asked.question,
        passage=asked.passage,
        top_k=asked.top_k,
        deadline_seconds=asked.deadline_seconds or LONGEST_WAIT_SECONDS,
        created=time.time(),
    )
    reading = local.read(question)
    answer = local.answer(
        reading,
        reading.resolved,
        resolved_by="edge",
        degraded=False,
        latency_seconds=time.perf_counter() - begin,
        bytes_sent=0,
    )
    return answer.as_json()


def _answer_of(response: httpx.Response, url: str) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError as error:
        raise CommandError(
            f"{url} answered with status {response.status_code} and no JSON; is it an edge agent?"
        ) from error
    if response.status_code == httpx.codes.OK and isinstance(document, dict):
        return document
    reason = document.get("reason") if isinstance(document, dict) else None
    raise CommandError(
        f"the edge agent at {url} did not answer ({response.status_code}): {reason or 'no reason'}",
        exit_status=2 if response.status_code in _WRONG_INPUT else 1,
    )
