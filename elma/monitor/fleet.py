"""The last report of each edge, for as long as it is news, in the form that Prometheus reads.

Inputs: messages from the broker. Output: a collector for `prometheus_client`: every sample of every
edge with the label `edge`, and what the monitor says of itself. Neighbours: `service` feeds it,
`protocol.metrics_messages` checks every byte before it counts here.

A message that is not a report by the edge that its topic names, or finds no place, changes nothing
but a counter. Edges may disagree about the kind of a metric (they may be of different ages, or
lie): Prometheus allows one kind a name, so what most edges say is shown, and the others' samples of
that metric are left out.
"""

from __future__ import annotations

import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from broker.exchange import Delivery
from protocol.errors import ProtocolError
from protocol.metrics_messages import RESERVED_LABEL, FamilyKind, MetricsReport
from protocol.topics import MetricsTopic, parse_topic

RESULTS = ("taken", "malformed", "no_place", "retained")
HELP = "As edges report it over MQTT."


@dataclass(frozen=True)
class _Reported:
    """One edge's report, when it came (unix seconds), and until when it is news (monotonic)."""

    report: MetricsReport
    came_at: float
    news_until: float


class ReportedFleet(Collector):
    """What the edges said last. Thread-safe.

    `missed_intervals`: how many of its own intervals an edge may be silent. `clock` is monotonic,
    `wall_clock` gives unix seconds.
    """

    def __init__(
        self,
        *,
        missed_intervals: float,
        max_edges: int,
        max_samples: int,
        is_connected: Callable[[], bool],
        dropped_total: Callable[[], int],
        certificate_expires: Callable[[], float] = lambda: 0.0,
        broker_certificate_expires: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._missed_intervals = missed_intervals
        self._max_edges, self._max_samples = max_edges, max_samples
        self._clock, self._wall_clock = clock, wall_clock
        self._edges: dict[str, _Reported] = {}
        self._sample_count = 0
        self._lock = threading.Lock()
        self.registry = CollectorRegistry()
        self._messages = Counter(
            "elma_monitor_messages_total",
            "Messages on the edges' topics, by what became of them.",
            ["result"],
            registry=self.registry,
        )
        for result in RESULTS:
            self._messages.labels(result)
        connected = Gauge(
            "elma_monitor_broker_connected", "1 while the session is up.", registry=self.registry
        )
        connected.set_function(lambda: float(is_connected()))
        dropped = Gauge(
            "elma_monitor_deliveries_dropped",
            "Messages so far that came faster than they could be read.",
            registry=self.registry,
        )
        dropped.set_function(dropped_total)
        certificate = Gauge(
            "elma_monitor_certificate_expires_timestamp_seconds",
            "When the certificate for the broker ends, unix time; 0 without one.",
            registry=self.registry,
        )
        certificate.set_function(certificate_expires)
        brokers = Gauge(
            "elma_monitor_broker_certificate_expires_timestamp_seconds",
            "When the broker's own certificate expires, as last shown, unix time; 0 without TLS.",
            registry=self.registry,
        )
        brokers.set_function(broker_certificate_expires)
        ProcessCollector(namespace="elma_monitor", registry=self.registry)
        self.registry.register(self)

    def take(self, delivery: Delivery) -> str:
        """Keep a report, if it is one; what became of the message, one of `RESULTS`."""
        result = self._take(delivery)
        self._messages.labels(result).inc()
        return result

    def collect(self) -> Iterator[Metric]:
        """Every metric of every edge whose report is news, and how the monitor stands."""
        with self._lock:
            self._drop_old()
            edges = dict(sorted(self._edges.items()))
            sample_count = self._sample_count
        yield _gauge("elma_monitor_edges", "Edges whose last report is news.", [({}, len(edges))])
        yield _gauge("elma_monitor_samples", "Samples of these reports.", [({}, sample_count)])
        yield _gauge(
            "elma_monitor_last_report_timestamp_seconds",
            "When an edge's last report came, unix time; it has the label `edge`.",
            [({RESERVED_LABEL: edge}, one.came_at) for edge, one in edges.items()],
        )
        yield from _merged({edge: one.report for edge, one in edges.items()})

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is to collect is known when it is collected."""
        return ()

    def _take(self, delivery: Delivery) -> str:
        if delivery.retained:  # nobody retains a report; an old one would look new
            return "retained"
        try:
            topic = parse_topic(delivery.topic)
            report = MetricsReport.decode(delivery.payload)
        except ProtocolError:
            return "malformed"
        if not isinstance(topic, MetricsTopic):
            return "malformed"
        with self._lock:
            self._drop_old()
            return "taken" if self._keep(topic.edge, report) else "no_place"

    def _keep(self, edge: str, report: MetricsReport) -> bool:
        before = self._edges.get(edge)
        added = report.sample_count - (before.report.sample_count if before else 0)
        if before is None and len(self._edges) >= self._max_edges:
            return False
        if self._sample_count + added > self._max_samples:
            return False
        lifetime_seconds = self._missed_intervals * report.interval_seconds
        self._edges[edge] = _Reported(report, self._wall_clock(), self._clock() + lifetime_seconds)
        self._sample_count += added
        return True

    def _drop_old(self) -> None:
        now = self._clock()
        for edge in [edge for edge, one in self._edges.items() if one.news_until <= now]:
            self._sample_count -= self._edges.pop(edge).report.sample_count


def _merged(reports: dict[str, MetricsReport]) -> Iterator[Metric]:
    """One metric for each name, with the samples of all edges that mean the same kind by it."""
    votes: dict[str, Tally[FamilyKind]] = {}
    for report in reports.values():
        for family in report.families:
            votes.setdefault(family.name, Tally())[family.kind] += 1
    metrics = {
        name: Metric(name, HELP, max(sorted(tally), key=lambda kind: tally[kind]))
        for name, tally in ((name, votes[name]) for name in sorted(votes))
    }
    for edge, report in reports.items():
        for family in report.families:
            metric = metrics[family.name]
            if metric.type != family.kind:
                continue
            for sample in family.samples:
                labels = {RESERVED_LABEL: edge, **dict(sample.labels)}
                metric.add_sample(family.name + sample.suffix, labels, sample.value)
    yield from metrics.values()


def _gauge(name: str, text: str, samples: list[tuple[dict[str, str], float]]) -> Metric:
    metric = Metric(name, text, "gauge")
    for labels, value in samples:
        metric.add_sample(name, labels, value)
    return metric
