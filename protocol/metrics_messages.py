"""What a device that no Prometheus can reach says of itself: its metrics, in clear, as samples.

    MetricsReport   edge -> monitors, QoS 0, gone after two intervals

A report only informs. Its bounds are those of a monitor that shows the reports of many devices:
names begin with `elma_edge_`, no label is called `edge` (that one is the monitor's), no sample
stands twice. Neighbours: `topics.MetricsTopic` says whose report it is; `edge_agent` makes them,
`elma.monitor` shows them to Prometheus.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, cast

from protocol.checks import check_float, check_list, check_map, check_text, take
from protocol.errors import MalformedMessage, OversizedMessage
from protocol.wire import Kind, decode_frame, encode_frame

MAX_REPORT_BYTES = 128 * 1024
MAX_FAMILIES = 256
MAX_SAMPLES = 1024
MAX_LABELS = 8
MAX_LABEL_CHARACTERS = 128
MIN_INTERVAL_SECONDS = 0.1
MAX_INTERVAL_SECONDS = 3_600.0
MAX_VALUE = 1e30
RESERVED_LABEL = "edge"

FamilyKind = Literal["counter", "gauge", "histogram"]
SUFFIXES: dict[FamilyKind, tuple[str, ...]] = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}
"""What a sample's name adds to its family's name."""
_FAMILY_NAME = re.compile(r"elma_edge_[a-z0-9_]{1,80}", re.ASCII)
_LABEL_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)
_UPPER_EDGE = re.compile(r"\+Inf|-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?", re.ASCII)
_SUFFIXES_OF_OTHERS = ("_total", "_bucket", "_sum", "_count", "_created")


@dataclass(frozen=True)
class Sample:
    """One number: `suffix` is what its name adds to the family's, `labels` are sorted by name."""

    suffix: str
    labels: tuple[tuple[str, str], ...]
    value: float

    def __post_init__(self) -> None:
        if len(self.labels) > MAX_LABELS:
            raise MalformedMessage(f"a sample has at most {MAX_LABELS} labels")
        for name, value in self.labels:
            if _LABEL_NAME.fullmatch(name) is None or name == RESERVED_LABEL:
                raise MalformedMessage(
                    f"a label is 1 to 32 of a-z, 0-9 and '_', and not {RESERVED_LABEL!r}"
                )
            check_text("label", value, MAX_LABEL_CHARACTERS)
        if [name for name, _ in self.labels] != sorted({name for name, _ in self.labels}):
            raise MalformedMessage("the labels of a sample are sorted, each of them there once")
        check_float("sample", self.value, -MAX_VALUE, MAX_VALUE)


@dataclass(frozen=True)
class Family:
    """All samples of one metric; a counter's and a histogram's `name` is without its suffix."""

    name: str
    kind: FamilyKind
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        if _FAMILY_NAME.fullmatch(self.name) is None:
            raise MalformedMessage("a metric's name is elma_edge_ and 1 to 80 of a-z, 0-9, '_'")
        if self.name.endswith(_SUFFIXES_OF_OTHERS):
            raise MalformedMessage(f"metric {self.name} ends like a sample of another metric")
        if self.kind not in SUFFIXES:
            raise MalformedMessage(f"a metric is one of {', '.join(SUFFIXES)}")
        if any(sample.suffix not in SUFFIXES[self.kind] for sample in self.samples):
            raise MalformedMessage(f"{self.kind} {self.name} has a sample of another kind")
        for sample in self.samples:
            if sample.suffix == "_bucket" and not _has_upper_edge(sample):
                raise MalformedMessage(f"histogram {self.name} has a bucket without its upper edge")
        if len({(one.suffix, one.labels) for one in self.samples}) != len(self.samples):
            raise MalformedMessage(f"metric {self.name} has a sample twice")


@dataclass(frozen=True)
class MetricsReport:
    """All metrics of an edge now; the next report comes after `interval_seconds`."""

    interval_seconds: float
    families: tuple[Family, ...]

    def __post_init__(self) -> None:
        check_float(
            "interval_seconds", self.interval_seconds, MIN_INTERVAL_SECONDS, MAX_INTERVAL_SECONDS
        )
        if len(self.families) > MAX_FAMILIES or self.sample_count > MAX_SAMPLES:
            raise MalformedMessage(
                f"a report has at most {MAX_FAMILIES} metrics and {MAX_SAMPLES} samples"
            )
        if len({family.name for family in self.families}) != len(self.families):
            raise MalformedMessage("a report names each metric once")

    @property
    def sample_count(self) -> int:
        """How many numbers it holds."""
        return sum(len(family.samples) for family in self.families)

    def encode(self) -> bytes:
        """The bytes for the broker. Raises OversizedMessage where a monitor would not take them."""
        families = [
            [
                family.name,
                family.kind,
                [[one.suffix, dict(one.labels), one.value] for one in family.samples],
            ]
            for family in self.families
        ]
        fields = {"interval_seconds": self.interval_seconds, "families": families}
        content = encode_frame(Kind.METRICS, fields)
        _check_size(content)
        return content

    @classmethod
    def decode(cls, content: bytes) -> MetricsReport:
        """The report in `content`. Raises MalformedMessage."""
        _check_size(content)
        frame = decode_frame(content, {Kind.METRICS})
        if frame.attachment:
            raise MalformedMessage("a report of metrics has no attachment")
        interval_seconds, families = take(frame.fields, "interval_seconds", "families")
        return cls(
            check_float("interval_seconds", interval_seconds),
            tuple(_family(one) for one in check_list("families", families, MAX_FAMILIES)),
        )


def _has_upper_edge(bucket: Sample) -> bool:
    """Whether its label `le` is a number, as every reader of histograms expects."""
    return _UPPER_EDGE.fullmatch(dict(bucket.labels).get("le", "")) is not None


def _family(value: object) -> Family:
    name, kind, samples = check_list("a metric", value, 8, 3)[:3]
    return Family(
        check_text("metric name", name, 128),
        cast(FamilyKind, check_text("metric kind", kind, 16)),
        tuple(_sample(one) for one in check_list("samples", samples, MAX_SAMPLES)),
    )


def _sample(value: object) -> Sample:
    suffix, labels, number = check_list("a sample", value, 8, 3)[:3]
    return Sample(
        check_text("suffix", suffix, 16),
        _labels(check_map("labels", labels)),
        check_float("sample", number),
    )


def _labels(labels: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    if not all(isinstance(name, str) and isinstance(text, str) for name, text in labels.items()):
        raise MalformedMessage("labels are text")
    return tuple(sorted(labels.items()))


def _check_size(content: bytes) -> None:
    if len(content) > MAX_REPORT_BYTES:
        raise OversizedMessage(
            f"a report of metrics of {len(content)} bytes; the limit is {MAX_REPORT_BYTES}"
        )
