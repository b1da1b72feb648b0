"""What two looks at a process say: rates between them, and how things stand at the later one.

Inputs: an earlier and a later `Look`. Output: a JSON object, units in the names. Quantiles come
from histograms by linear interpolation within a bucket, as PromQL's `histogram_quantile` does; they
are those of the time between the looks where anything was counted in it, else since the process
started (`is_recent` tells). A counter that went back belongs to a process that started again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from elma.top.look import Labels, Look

EXIT_LAYER = "elma_edge_exit_layer"


def describe(before: Look, now: Look) -> dict[str, Any]:
    """All figures of one process."""
    compared = _Compared(before, now)
    own = _edge(compared) if now.kind == "edge" else _worker(compared)
    problems = now.health.get("problems")
    return {
        "url": now.url,
        "kind": now.kind,
        "name": printable(now.health.get("name")),
        "status": printable(now.health.get("status")),
        "problems": [printable(one) for one in problems] if isinstance(problems, list) else [],
        "seconds": round(compared.seconds, 3),
        "reported_seconds_ago": _rounded(now.reported_seconds_ago),
        **own,
    }


def quantile(share: float, cumulative: Mapping[float, float]) -> float | None:
    """The value that `share` of the observations do not exceed; None where there are none.

    `cumulative` has for each upper edge how many observations are not above it, with infinity.
    """
    edges = sorted(cumulative)
    total = cumulative[edges[-1]] if edges else 0.0
    if total <= 0:
        return None
    rank, lower_edge, below = share * total, 0.0, 0.0
    for edge in edges:
        if cumulative[edge] >= rank and cumulative[edge] > below:
            if math.isinf(edge):
                return lower_edge
            return lower_edge + (edge - lower_edge) * (rank - below) / (cumulative[edge] - below)
        lower_edge, below = edge, cumulative[edge]
    return lower_edge


def printable(value: object) -> str:
    """Something a process said, safe for a terminal: no control characters, and not long."""
    text = "" if value is None else str(value)
    return "".join(one if one.isprintable() else "?" for one in text[:200])


class _Compared:
    """Two looks at one process."""

    def __init__(self, before: Look, now: Look) -> None:
        self.now, self._before = now, before
        self.seconds = max(now.at - before.at, 0.0)

    def gauge(self, name: str) -> float | None:
        """A gauge without labels as it is now."""
        return self.now.samples.get((name, ()))

    def totals(self, name: str, *by: str) -> dict[str, float]:
        """A counter now, summed up by the values of some labels, joined by a space."""
        return _summed(self.now, name, by)

    def rates(self, name: str, *by: str) -> dict[str, float]:
        """The same, by second between the looks."""
        before, now = _summed(self._before, name, by), self.totals(name, *by)
        return {key: self._rate(before.get(key, 0.0), value) for key, value in now.items()}

    def buckets(self, name: str) -> tuple[dict[float, float], bool]:
        """A histogram's cumulative counts, and whether they are of the time between the looks."""
        before, now = _cumulative(self._before, name), _cumulative(self.now, name)
        recent = {edge: count - before.get(edge, 0.0) for edge, count in now.items()}
        is_recent = any(recent.values()) and all(count >= 0 for count in recent.values())
        return (recent if is_recent else now), is_recent

    def times(self, name: str) -> dict[str, Any]:
        """Median and 95th percentile of a histogram of seconds."""
        counts, is_recent = self.buckets(name)
        return {
            "p50": _rounded(quantile(0.5, counts)),
            "p95": _rounded(quantile(0.95, counts)),
            "count": int(max(counts.values(), default=0.0)),
            "is_recent": is_recent,
        }

    def names(self, name: str, label: str) -> list[str]:
        """The values of a label of an information metric that is 1."""
        return sorted(
            printable(dict(labels).get(label))
            for (found, labels), value in self.now.samples.items()
            if found == name and value == 1.0
        )

    def is_one(self, name: str) -> bool | None:
        """A gauge that stands for yes or no; None where it is not there."""
        value = self.gauge(name)
        return None if value is None else value == 1.0

    def _rate(self, before: float, now: float) -> float:
        gone_up = now - before if now >= before else now
        return round(gone_up / self.seconds, 3) if self.seconds > 0 else 0.0


def _edge(compared: _Compared) -> dict[str, Any]:
    by_who = {"edge": 0.0, "cloud": 0.0, "none": 0.0}
    layers, _ = compared.buckets(EXIT_LAYER)
    return {
        "release": compared.names("elma_edge_release_info", "release"),
        "broker_connected": _connected(compared),
        "questions_per_second": by_who | compared.rates("elma_edge_questions_total", "resolved_by"),
        "questions_total": by_who | compared.totals("elma_edge_questions_total", "resolved_by"),
        "degraded_per_second": _one(compared.rates("elma_edge_degraded_total")),
        "degraded_total": _one(compared.totals("elma_edge_degraded_total")),
        "refused_per_second": _one(compared.rates("elma_edge_refused_total")),
        "queue_questions": compared.gauge("elma_edge_waiting_questions"),
        "in_flight_requests": compared.gauge("elma_edge_in_flight_requests"),
        "outbox_pending": compared.gauge("elma_edge_outbox_pending"),
        "exit_layers": _single_layers(layers),
        "answer_seconds": compared.times("elma_edge_answer_seconds"),
        "offload_seconds": compared.times("elma_edge_offload_seconds"),
    }


def _worker(compared: _Compared) -> dict[str, Any]:
    return {
        "release": compared.names("elma_worker_release_info", "release"),
        "broker_connected": compared.is_one("elma_worker_broker_connected"),
        "is_draining": compared.is_one("elma_worker_draining"),
        "requests_per_second": compared.rates("elma_worker_requests_total", "outcome"),
        "requests_total": compared.totals("elma_worker_requests_total", "outcome"),
        "queue_requests": compared.gauge("elma_worker_queue_requests"),
        "queue_windows": compared.gauge("elma_worker_queue_windows"),
        "queue_seconds": compared.times("elma_worker_queue_seconds"),
        "compute_seconds": compared.times("elma_worker_compute_seconds"),
        "tokens_per_second": _one(compared.rates("elma_worker_tokens_total")),
    }


def _connected(compared: _Compared) -> bool | None:
    """Whether an edge has its broker; None for one that has no cloud at all."""
    if compared.now.health.get("cloud", False) is None:
        return None
    return compared.is_one("elma_edge_broker_connected")


def _summed(look: Look, name: str, by: tuple[str, ...]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for (found, labels), value in look.samples.items():
        if found == name:
            key = " ".join(printable(dict(labels).get(label)) for label in by)
            sums[key] = sums.get(key, 0.0) + value
    return sums


def _cumulative(look: Look, name: str) -> dict[float, float]:
    """A histogram's counts by upper edge, summed up over its labels."""
    counts: dict[float, float] = {}
    for (found, labels), value in look.samples.items():
        edge = _edge_of(labels) if found == f"{name}_bucket" else None
        if edge is not None:
            counts[edge] = counts.get(edge, 0.0) + value
    return counts


def _edge_of(labels: Labels) -> float | None:
    try:
        return float(dict(labels)["le"])
    except (KeyError, ValueError):
        return None


def _single_layers(cumulative: Mapping[float, float]) -> dict[str, int]:
    """How many questions needed each layer; the last bucket's is named after the one before it."""
    layers: dict[str, int] = {}
    below, last = 0.0, "0"
    for edge in sorted(cumulative):
        name = f">{last}" if math.isinf(edge) else f"{edge:g}"
        if cumulative[edge] > below:
            layers[name] = int(cumulative[edge] - below)
        below, last = cumulative[edge], name
    return layers


def _one(sums: Mapping[str, float]) -> float:
    return sums.get("", 0.0)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
