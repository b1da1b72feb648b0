"""One look at a running process: its `/healthz` and `/metrics`, read into numbers.

Input: a URL. Output: a `Look`, or a `Silence` that says why there is none; nothing here raises.
Neighbour: `figures` compares two looks.

What a process answers is bounded and checked: it may be anything that listens on that port.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import httpx
from prometheus_client.parser import text_string_to_metric_families

ANSWER_SECONDS = 2.0
MAX_ANSWER_BYTES = 8 * 1024 * 1024

Labels = tuple[tuple[str, str], ...]
ProcessKind = Literal["edge", "worker"]
KINDS: tuple[ProcessKind, ...] = ("edge", "worker")


@dataclass(frozen=True)
class Look:
    """What a process said of itself `at` a moment, in monotonic seconds.

    `samples` are all of its metrics by name and sorted labels.
    """

    url: str
    at: float
    kind: ProcessKind
    health: dict[str, Any]
    samples: dict[tuple[str, Labels], float]


@dataclass(frozen=True)
class Silence:
    """Nobody answered at `url`, or nobody of ours."""

    url: str
    why: str


def normal_url(text: str) -> str:
    """`kitchen:8571` and `http://kitchen:8571/metrics` as `http://kitchen:8571`."""
    url = text if "://" in text else f"http://{text}"
    for page in ("/healthz", "/metrics", "/"):
        url = url.removesuffix(page)
    return url


def look_at(url: str, *, clock: Callable[[], float] = time.monotonic) -> Look | Silence:
    """Ask the process at `url` how it is."""
    try:
        with httpx.Client(timeout=ANSWER_SECONDS, trust_env=False) as client:
            samples = _parse(_fetch(client, f"{url}/metrics"))
            at = clock()
            health = _health(_fetch(client, f"{url}/healthz"))
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return Silence(url, f"no answer ({_reason(error)})")
    except ValueError as error:
        return Silence(url, str(error))
    for kind in KINDS:
        if any(name.startswith(f"elma_{kind}_") for name, _ in samples):
            return Look(url, at, kind, health, samples)
    return Silence(url, "it answers, but is neither an edge nor a worker")


def _fetch(client: httpx.Client, url: str) -> str:
    """A page; a failing process answers 503 and still says how it is. Raises ValueError."""
    with client.stream("GET", url) as response:
        if response.status_code not in (200, 503):
            raise ValueError(f"{url} answers with status {response.status_code}")
        content = bytearray()
        for part in response.iter_bytes():
            content += part
            if len(content) > MAX_ANSWER_BYTES:
                raise ValueError(f"{url} answers with more than {MAX_ANSWER_BYTES} bytes")
    return content.decode("utf-8", errors="replace")


def _parse(text: str) -> dict[tuple[str, Labels], float]:
    try:
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): float(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    except Exception as error:  # prometheus_client raises several kinds
        raise ValueError("it answers, but not with metrics") from error


def _health(text: str) -> dict[str, Any]:
    try:
        health = json.loads(text)
    except ValueError as error:
        raise ValueError("it answers, but /healthz is no JSON") from error
    if not isinstance(health, dict):
        raise ValueError("it answers, but /healthz is no object")
    return health


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"not within {ANSWER_SECONDS:g} seconds"
    return " ".join(str(error).split()) or type(error).__name__
