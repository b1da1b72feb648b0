"""The arithmetic of `elma bench frontier`: from measured questions to rows, without a process.

In: what every way gets right (`frontier_quality`), and what some questions took on loopback. Out:
a row for each way and link. Neighbour: `frontier` measures and hands over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_agent.codec_choice import LinkEstimate, Offer, choose
from elma.bench.frontier_plant import (
    ALWAYS,
    AT_LAYER,
    DEADLINE_SECONDS,
    FULL_DEPTH,
    TEXT,
    Asking,
)
from elma.bench.frontier_quality import Quality, Scores
from elma.bench.frontier_report import name_of
from elma.bench.links import Link
from elma.bench.results import percentile
from reader.model import Reader

TYPICAL_TOKENS = 180
KNOWN_REQUESTS = 100


@dataclass(frozen=True)
class Way:
    """One way to answer: F1 of all questions `[N]`, the share that is sent, and for the timed
    questions seconds, bytes and weights on loopback."""

    name: str
    f1: Scores
    offload_rate: float
    askings: Sequence[Asking]
    weights: Sequence[float]
    is_bound: bool = False


def make_ways(
    quality: Quality,
    askings: Mapping[str, Sequence[Asking]],
    codecs: Sequence[str],
    numbers: Sequence[int],
) -> list[Way]:
    """The rows, from what was measured; `numbers` are the timed questions' places in `quality`."""
    count = len(numbers)
    whole = [1.0] * count
    stay, send = list(askings[AT_LAYER]), list(askings[ALWAYS])
    rate = quality.offload_rate
    sent_by_oracle = quality.oracle_offloads
    knows = [
        send[place] if sent_by_oracle[number] else stay[place]
        for place, number in enumerate(numbers)
    ]
    ways = [
        Way(FULL_DEPTH, quality.full_depth, 0.0, askings[FULL_DEPTH], whole),
        Way(AT_LAYER, quality.at_last_edge_layer, 0.0, stay, whole),
        Way(TEXT, quality.full_depth, 1.0, askings[TEXT], whole),
    ]
    for codec in codecs:
        name = f"ours/{codec}"
        ways.append(Way(name, quality.ours(codec), rate, askings[name], whole))
    ways += [
        Way(ALWAYS, quality.full_depth, 1.0, send, whole),
        Way("random", quality.random, rate, stay + send, [1 - rate] * count + [rate] * count),
        Way("oracle", quality.oracle, float(sent_by_oracle.mean()), knows, whole, is_bound=True),
    ]
    return ways


def row_of(way: Way, link: Link, quality: Quality, joules: float | None) -> dict[str, Any]:
    """One row of the table: a way under a link."""
    metrics = quality.metrics(way.f1)
    milliseconds = [1000 * seconds_over(link, asking) for asking in way.askings]
    sizes = [asking.bytes_up + asking.bytes_down for asking in way.askings]
    return {
        "link": link.name,
        "way": way.name,
        "name": name_of(way.name),
        "f1": round(metrics["f1"], 2),
        "has_answer_f1": _rounded(metrics.get("HasAns_f1")),
        "no_answer_f1": _rounded(metrics.get("NoAns_f1")),
        "p50_ms": round(weighted_percentile(milliseconds, way.weights, 50), 1),
        "p95_ms": round(weighted_percentile(milliseconds, way.weights, 95), 1),
        "bytes": round(float(np.average(sizes, weights=way.weights))),
        "joules": None if joules is None else round(joules, 3),
        "offload_rate": round(way.offload_rate, 4),
        "is_bound": way.is_bound,
    }


def seconds_over(link: Link, asking: Asking) -> float:
    """What a question that was measured on loopback takes over a link."""
    if not asking.by_cloud:
        return asking.seconds
    return asking.seconds + link.seconds(asking.bytes_up, asking.bytes_down)


def auto_codec(reader: Reader, edge_layers: int, link: Link) -> str:
    """The codec that a device with `codec = "auto"` settles on when it knows the link."""
    estimate = LinkEstimate()
    for size in (1_000.0, 100_000.0) * KNOWN_REQUESTS:
        estimate.note(size, link.seconds(size, 0.0))
    offers = [
        Offer(
            name,
            reader.codecs.size(name, edge_layers, TYPICAL_TOKENS),
            reader.codecs.loss(name, edge_layers) or 0.0,
        )
        for name in reader.codecs.names(edge_layers)
    ]
    chosen = choose(offers, estimate, limit_bytes=1 << 30, seconds_left=DEADLINE_SECONDS)
    return offers[0].codec if chosen is None else chosen.codec


def weighted_percentile(values: Sequence[float], weights: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the weight lies; equal weights are interpolated."""
    if len(set(weights)) == 1:
        return percentile(values, percent)
    order = np.argsort(values)
    shares = np.cumsum(np.asarray(weights)[order])
    place = int(np.searchsorted(shares, percent / 100 * shares[-1]))
    return float(np.asarray(values)[order][min(place, len(order) - 1)])


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
