"""Every metric of ELMA, taken from the registries that the processes really make.

Input: the classes that declare metrics. Outputs: `docs/metrics.md` for people, and
`tests/system/metrics.txt` for a test: names, kinds and labels, so that no metric changes unnoticed.
Neighbours: `__main__` writes both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from cloud_worker.metrics import WorkerMetrics
from edge_agent.audit import AuditMetrics
from edge_agent.metrics import EdgeMetrics
from edge_agent.release_metrics import ReleaseMetrics
from elma.monitor.fleet import ReportedFleet
from publisher.metrics import PublisherMetrics

_HEADER = """# Metrics

Every metric of the four services, made by `python -m deploy.watch metrics` from the registries
that the processes serve; a test fails where this page,
[the golden list](../tests/system/metrics.txt) and the code differ. Times are in seconds, sizes in
bytes, shares from 0 to 1. Counters end in `_total` and begin at 0 when a process starts; a
histogram `x` has the series `x_bucket`, `x_sum` and `x_count`. No label holds the id of a request,
a question's text or a key; the release in a label is its digest, or the first digits of it.

What to do with them: [operations](operations.md#watch). `elma monitor` shows the metrics of devices
that Prometheus cannot reach, with the label `edge`, beside its own.
"""


@dataclass(frozen=True)
class Described:
    """One metric as it is declared; `labels` in the order of its declaration."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


def parts() -> dict[str, CollectorRegistry]:
    """The title of each service and a registry like the one that it serves."""
    edge = EdgeMetrics()
    ReleaseMetrics(edge.registry)
    AuditMetrics(edge.registry)
    monitor = ReportedFleet(
        missed_intervals=1.0,
        max_edges=0,
        max_samples=0,
        is_connected=lambda: False,
        dropped_total=lambda: 0,
    )
    return {
        "Edge agent": edge.registry,
        "Worker": WorkerMetrics().registry,
        "Publisher": PublisherMetrics().registry,
        "Monitor": monitor.registry,
    }


def describe(registry: CollectorRegistry) -> Iterator[Described]:
    """What a registry declares, sorted by name."""
    labels: dict[str, tuple[str, ...]] = {}
    # prometheus_client has no other way to a metric's labels before its first sample.
    for collector in registry._collector_to_names:
        labels[getattr(collector, "_name", "")] = tuple(getattr(collector, "_labelnames", ()))
    for metric in sorted(registry.collect(), key=lambda metric: metric.name):
        suffix = "_total" if metric.type == "counter" else ""
        yield Described(
            metric.name + suffix, metric.type, labels.get(metric.name, ()), metric.documentation
        )


def golden() -> str:
    """One line a metric: name, kind, labels."""
    return "".join(
        " ".join((one.name, one.kind, ",".join(one.labels))).rstrip() + "\n"
        for registry in parts().values()
        for one in describe(registry)
    )


def page() -> str:
    """`docs/metrics.md`."""
    sections = [_HEADER]
    for title, registry in parts().items():
        rows = [
            f"| `{one.name}` | {one.kind} | {', '.join(f'`{name}`' for name in one.labels)} "
            f"| {one.text} |"
            for one in describe(registry)
        ]
        table = ["| metric | kind | labels | |", "|---|---|---|---|", *rows]
        sections.append(f"## {title}\n\n" + "\n".join(table) + "\n")
    return "\n".join(sections)
