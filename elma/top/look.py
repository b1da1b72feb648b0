"""One look at a running process: its `/healthz` and `/metrics`, read into numbers.

Input: a URL. Output: a `Look`, or a `Silence` that says why there is none; nothing here raises. An
`elma monitor` gives a look at each edge that reports to it. Neighbour: `figures` compares looks.

What a process answers is bounded and checked: it may be anything that listens on that port.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx
from prometheus_client.parser import text_string_to_metric_families

ANSWER_SECONDS = 2.0
MAX_ANSWER_BYTES = 8 * 1024 * 1024

Labels = tuple[tuple[str, str], ...]
ProcessKind = Literal["edge", "worker"]
KINDS: tuple[ProcessKind, ...] = ("edge", "worker")
MONITOR_EDGES = "elma_monitor_edges"
LAST_REPORT = "elma_monitor_last_report_timestamp_seconds"


@dataclass(frozen=True)
class Look:
    """What a process said of itself `at` a moment, in seconds of some clock that does not change.

    `samples` are all of its metrics by name and sorted labels. `url` is where it was asked; of an
    edge that reports to a monitor the monitor's, `#` and its name. `reported_seconds_ago` is the
    age of such a report, None where the process itself has answered.
    """

    url: str
    at: float
    kind: ProcessKind
    health: dict[str, Any]
    samples: dict[tuple[str, Labels], float]
    reported_seconds_ago: float | None = None

    @property
    def name(self) -> str:
        """What it calls itself; where it is where it says nothing."""
        return str(self.health.get("name") or self.url)


NOBODY_REPORTS = (
    "a monitor to which no edge reports; edges do with [metrics] report_seconds in their edge.toml"
)


@dataclass(frozen=True)
class Silence:
    """Nobody answered at `url`, or nobody of ours.

    `name` and `kind` are of whoever answered there before, `seconds` ago.
    """

    url: str
    why: str
    name: str = ""
    kind: ProcessKind | None = None
    seconds: float | None = None


def normal_url(text: str) -> str:
    """`kitchen:8571` and `http://kitchen:8571/metrics` as `http://kitchen:8571`."""
    url = text if "://" in text else f"http://{text}"
    for page in ("/healthz", "/metrics", "/"):
        url = url.removesuffix(page)
    return url


def look_at(
    url: str,
    *,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
) -> tuple[Look, ...] | Silence:
    """Ask the process at `url` how it is, or a monitor how its edges are."""
    try:
        samples, at, health = asyncio.run(_ask(url, clock))
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return Silence(url, f"no answer ({_reason(error)})")
    except ValueError as error:
        return Silence(url, str(error))
    if (MONITOR_EDGES, ()) in samples:
        return _reported(url, samples, now()) or Silence(url, NOBODY_REPORTS)
    for kind in KINDS:
        if any(name.startswith(f"elma_{kind}_") for name, _ in samples):
            return (Look(url, at, kind, health, samples),)
    return Silence(url, "it answers, but is neither an edge, a worker nor a monitor")


def _reported(
    url: str, samples: Mapping[tuple[str, Labels], float], now: float
) -> tuple[Look, ...]:
    """A look at each edge that a monitor knows, at the moment of its last report."""
    by_edge: dict[str, dict[tuple[str, Labels], float]] = {}
    for (name, labels), value in samples.items():
        edge = dict(labels).get("edge")
        if edge is not None:
            own = tuple(pair for pair in labels if pair[0] != "edge")
            by_edge.setdefault(edge, {})[name, own] = value
    looks = []
    for edge, own_samples in sorted(by_edge.items()):
        at = own_samples.get((LAST_REPORT, ()))
        if at is not None:
            health = {"name": edge, "status": "ok"}
            age = max(now - at, 0.0)
            looks.append(Look(f"{url}#{edge}", at, "edge", health, own_samples, age))
    return tuple(looks)


async def _ask(
    url: str, clock: Callable[[], float]
) -> tuple[dict[tuple[str, Labels], float], float, dict[str, Any]]:
    """/metrics, the moment when it was there, and /healthz.

    Raises TimeoutError when that takes longer altogether, however busily bytes drip; ValueError for
    what is neither.
    """
    async with asyncio.timeout(ANSWER_SECONDS):
        async with httpx.AsyncClient(timeout=ANSWER_SECONDS, trust_env=False) as client:
            samples = _parse(await _fetch(client, f"{url}/metrics"))
            at = clock()
            return samples, at, _health(await _fetch(client, f"{url}/healthz"))


async def _fetch(client: httpx.AsyncClient, url: str) -> str:
    """A page; a failing process answers 503 and still says how it is. Raises ValueError."""
    async with client.stream("GET", url) as response:
        if response.status_code not in (200, 503):
            raise ValueError(f"{url} answers with status {response.status_code}")
        content = bytearray()
        async for part in response.aiter_bytes():
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
            if math.isfinite(sample.value)
        }
    except Exception as error:  # prometheus_client raises several kinds
        raise ValueError("it answers, but not with metrics") from error


def _health(text: str) -> dict[str, Any]:
    try:
        health = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("it answers, but /healthz is no JSON") from error
    if not isinstance(health, dict):
        raise ValueError("it answers, but /healthz is no object")
    return health


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return f"not within {ANSWER_SECONDS:g} seconds"
    if "refused" in str(error):
        return "nobody listens there"
    return " ".join(str(error).split()) or type(error).__name__
