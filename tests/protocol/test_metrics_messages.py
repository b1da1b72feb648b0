"""Reports of metrics: round trips, bounds, and bytes of others."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import MalformedMessage, OversizedMessage
from protocol.metrics_messages import (
    MAX_LABELS,
    MAX_REPORT_BYTES,
    MAX_SAMPLES,
    SUFFIXES,
    Family,
    MetricsReport,
    Sample,
)
from protocol.topics import MetricsTopic, metrics_subscription, parse_topic
from protocol.wire import Kind, decode_frame, encode_frame

LABEL_NAMES = st.sampled_from(["result", "resolved_by", "layer"])
LABELS = st.dictionaries(LABEL_NAMES, st.text("abc +.é", max_size=8), max_size=4)


def with_edge(suffix: str, labels: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """A bucket has its upper edge."""
    return tuple(sorted((*labels, ("le", "+Inf")))) if suffix == "_bucket" else labels


@st.composite
def families(draw: st.DrawFn) -> Family:
    """A metric of any kind with different samples."""
    kind = draw(st.sampled_from(list(SUFFIXES)))
    keys = draw(
        st.sets(
            st.tuples(
                st.sampled_from(SUFFIXES[kind]),
                LABELS.map(lambda all_: tuple(sorted(all_.items()))),
            ),
            max_size=5,
        )
    )
    samples = (
        Sample(suffix, with_edge(suffix, labels), draw(st.floats(-1e30, 1e30)))
        for suffix, labels in sorted(keys)
    )
    return Family(f"elma_edge_{draw(st.text('abc_', min_size=1, max_size=8))}x", kind, (*samples,))


@given(st.lists(families(), max_size=4, unique_by=lambda family: family.name), st.floats(0.1, 3600))
def test_every_report_survives_its_bytes(made: list[Family], seconds: float) -> None:
    report = MetricsReport(seconds, tuple(made))
    assert MetricsReport.decode(report.encode()) == report


@pytest.mark.parametrize(
    ("name", "kind", "suffix"),
    [
        ("elma_worker_requests", "counter", "_total"),
        ("elma_monitor_edges", "gauge", ""),
        ("up", "gauge", ""),
        ("elma_edge_" + "x" * 81, "gauge", ""),
        ("elma_edge_a\n# TYPE b gauge", "gauge", ""),
        ("elma_edge_questions_total", "gauge", ""),
        ("elma_edge_seconds_bucket", "gauge", ""),
        ("elma_edge_questions", "counter", ""),
        ("elma_edge_pending", "gauge", "_total"),
        ("elma_edge_seconds", "histogram", ""),
        ("elma_edge_seconds", "summary", ""),
    ],
)
def test_a_metric_that_is_not_an_edge_s_own_is_not_made(name: str, kind: Any, suffix: str) -> None:
    with pytest.raises(MalformedMessage):
        Family(name, kind, (Sample(suffix, (), 1.0),))


@pytest.mark.parametrize(
    "labels",
    [
        (("edge", "cellar"),),
        (("Result", "x"),),
        (("", "x"),),
        (("a", "x"), ("a", "y")),
        (("b", "x"), ("a", "y")),
        (("a", "x" * 129),),
        (("a", "two\nlines"),),
        tuple((f"a{number}", "x") for number in range(MAX_LABELS + 1)),
    ],
)
def test_labels_that_a_monitor_could_not_show_are_refused(labels: Any) -> None:
    with pytest.raises(MalformedMessage):
        Sample("", labels, 1.0)


@pytest.mark.parametrize(
    "labels", [(), *((("le", text),) for text in ("x", "NaN", "1_0", " 1", ""))]
)
def test_a_bucket_has_a_number_as_its_upper_edge(labels: Any) -> None:
    with pytest.raises(MalformedMessage, match="upper edge"):
        Family("elma_edge_seconds", "histogram", (Sample("_bucket", labels, 1.0),))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e31, "1", None, True])
def test_what_is_no_number_is_no_sample(value: Any) -> None:
    with pytest.raises(MalformedMessage):
        Sample("", (), value)


def test_nothing_stands_twice_in_a_report() -> None:
    sample = Sample("", (), 1.0)
    with pytest.raises(MalformedMessage, match="twice"):
        Family("elma_edge_a", "gauge", (sample, Sample("", (), 2.0)))
    family = Family("elma_edge_a", "gauge", (sample,))
    with pytest.raises(MalformedMessage, match="once"):
        MetricsReport(1.0, (family, family))


def test_a_report_has_its_bounds() -> None:
    many = tuple(Sample("", (("a", str(number)),), 1.0) for number in range(MAX_SAMPLES))
    assert MetricsReport(1.0, (Family("elma_edge_a", "gauge", many),)).sample_count == MAX_SAMPLES
    one = Family("elma_edge_b", "gauge", (Sample("", (), 1.0),))
    with pytest.raises(MalformedMessage, match="at most"):
        MetricsReport(1.0, (Family("elma_edge_a", "gauge", many), one))
    wide = tuple(
        Sample("", (("a", f"{number:>0128}"), ("b", "x" * 128)), 1.0) for number in range(1_000)
    )
    with pytest.raises(OversizedMessage):
        MetricsReport(1.0, (Family("elma_edge_a", "gauge", wide),)).encode()
    with pytest.raises(OversizedMessage):
        MetricsReport.decode(bytes(MAX_REPORT_BYTES + 1))
    for seconds in (0.0, 3_601.0, float("nan")):
        with pytest.raises(MalformedMessage):
            MetricsReport(seconds, ())


@pytest.mark.parametrize(
    "changes",
    [
        {"interval_seconds": "1"},
        {"families": None},
        {"families": [["elma_edge_a", "gauge"]]},
        {"families": [[b"elma_edge_a", "gauge", []]]},
        {"families": [["elma_edge_a", "gauge", [["", {"a": 1}, 1.0]]]]},
        {"families": [["elma_edge_a", "gauge", [["", [], 1.0]]]]},
        {"families": [["elma_edge_a", "gauge", [["", {}, "1"]]]]},
        {"families": [["elma_edge_a", [], []]]},
    ],
)
def test_fields_of_another_form_are_malformed(changes: dict[str, Any]) -> None:
    fields = {"interval_seconds": 1.0, "families": []} | changes
    with pytest.raises(MalformedMessage):
        MetricsReport.decode(encode_frame(Kind.METRICS, fields))


def test_unknown_fields_are_left_for_later_versions() -> None:
    fields = {"interval_seconds": 1.0, "families": [["elma_edge_a", "gauge", [], "help"]], "new": 1}
    report = MetricsReport.decode(encode_frame(Kind.METRICS, fields))
    assert report == MetricsReport(1.0, (Family("elma_edge_a", "gauge", ()),))


def test_damaged_bytes_are_malformed_or_a_report_of_the_same_form() -> None:
    sample = Sample("_total", (("result", "answered"),), 3.0)
    content = MetricsReport(1.0, (Family("elma_edge_q", "counter", (sample,)),)).encode()
    generator = random.Random(5)
    for _ in range(3_000):
        damaged = bytearray(content)
        damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        try:
            report = MetricsReport.decode(bytes(damaged[: generator.randrange(len(damaged) + 1)]))
        except MalformedMessage:
            continue
        assert MetricsReport.decode(report.encode()) == report


def test_the_kind_s_number_is_for_ever_and_the_topic_names_the_edge() -> None:
    assert decode_frame(MetricsReport(1.0, ()).encode(), {Kind.METRICS}).kind == 64
    assert metrics_subscription() == "elma/v1/metrics/+"
    assert parse_topic("elma/v1/metrics/kitchen") == MetricsTopic("kitchen")
