"""Spans cannot hurt: bounded, counted, sampled as the asker says, and a clear word without them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from pydantic import ValidationError

from broker.span_queue import SpanQueue
from broker.tracing import Tracing, TracingSettings, begin, finish, note, open_tracing
from tests.cloud_worker.harness import wait_until
from tests.system.collector import Collector, run_collector

ROOT = Path(__file__).resolve().parents[2]
SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = SAMPLED[:-2] + "00"
WAIT_SECONDS = 20.0


class KeepingExporter(SpanExporter):
    """Keeps what it is given; `may_go` holds it, `result` is what it says."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.is_asked = threading.Event()
        self.result = SpanExportResult.SUCCESS

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.is_asked.set()
        self.may_go.wait(WAIT_SECONDS)
        if self.result is SpanExportResult.SUCCESS:
            self.spans += spans
        return self.result

    def shutdown(self) -> None:
        self.may_go.set()


class Stage:
    """A tracing over a `KeepingExporter`, and what it counted as dropped."""

    def __init__(self, *, bound: int = 100, share: float = 1.0) -> None:
        self.exporter = KeepingExporter()
        self.queue = SpanQueue(self.exporter, bound=bound, pause_seconds=0.01)
        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)), shutdown_on_exit=False
        )
        provider.add_span_processor(self.queue)
        self.tracing = Tracing(provider, self.queue)
        self.dropped: Counter[str] = Counter()
        self.tracing.count_dropped_with(lambda cause, count: self.dropped.update({cause: count}))

    def names(self) -> list[str]:
        """The spans that arrived, after all of them were sent."""
        self.tracing.close(WAIT_SECONDS)
        return [span.name for span in self.exporter.spans]


@pytest.fixture
def stage() -> Iterator[Stage]:
    """One that ends with the test."""
    made = Stage()
    yield made
    made.exporter.may_go.set()


def test_without_a_span_nothing_happens() -> None:
    assert begin(None, "work", layer=3) is None
    note(None, "seen")
    finish(None, "fault", layer=3)


def test_a_span_ends_once_with_all_that_was_said_of_it(stage: Stage) -> None:
    span = stage.tracing.begin("work", None, request_id="q-1", nothing=None)
    assert span is not None
    note(span, "seen", layer=3)
    finish(span, "broken", layers=[1, 2])
    finish(span, None, layers=[9])
    assert stage.names() == ["work"]
    (sent,) = stage.exporter.spans
    assert dict(sent.attributes or {}) == {
        "elma.request_id": "q-1",
        "elma.layers": (1, 2),
        "error.type": "broken",
    }
    assert [event.name for event in sent.events] == ["seen"]
    assert not sent.status.is_ok


def test_a_span_hangs_below_the_one_of_another_process(stage: Stage) -> None:
    span = stage.tracing.begin("work", SAMPLED)
    child = begin(span, "part")
    assert span is not None
    assert child is not None
    assert span.trace_id == SAMPLED.split("-")[1] == child.trace_id
    assert span.trace_parent.startswith(SAMPLED[:36])
    finish(child)
    finish(span)
    assert stage.names() == ["part", "work"]
    part, work = stage.exporter.spans
    assert work.parent is not None
    assert f"{work.parent.span_id:016x}" == SAMPLED.split("-")[2]
    assert part.parent == work.context


@pytest.mark.parametrize("wrong", [None, "", "nonsense", SAMPLED.upper(), SAMPLED + " "])
def test_what_is_no_trace_parent_begins_a_trace(stage: Stage, wrong: str | None) -> None:
    span = stage.tracing.begin("work", wrong)
    assert span is not None
    assert span.trace_id != SAMPLED.split("-")[1]
    finish(span)
    assert stage.names() == ["work"]
    assert stage.exporter.spans[0].parent is None


@pytest.mark.parametrize(
    ("share", "above", "is_sent"),
    [(0.0, None, False), (0.0, SAMPLED, True), (1.0, UNSAMPLED, False), (1.0, None, True)],
)
def test_who_asks_decides_what_is_sampled_and_the_share_where_nobody_does(
    share: float, above: str | None, is_sent: bool
) -> None:
    stage = Stage(share=share)
    span = stage.tracing.begin("work", above)
    assert span is not None
    assert span.is_sampled is is_sent
    assert span.trace_parent.endswith("-01" if is_sent else "-00")
    finish(begin(span, "part"))
    finish(span)
    assert bool(stage.names()) is is_sent
    assert not stage.dropped


def test_spans_past_the_bound_are_dropped_and_counted_while_the_collector_hangs() -> None:
    stage = Stage(bound=3)
    stage.exporter.may_go.clear()
    finish(stage.tracing.begin("first", None))
    assert stage.exporter.is_asked.wait(WAIT_SECONDS)  # the sending thread holds it
    for number in range(5):
        finish(stage.tracing.begin(f"later {number}", None))
    assert stage.dropped == {"queue_full": 2}
    stage.exporter.may_go.set()
    assert stage.names() == ["first", "later 0", "later 1", "later 2"]


def test_an_end_does_not_wait_for_a_hanging_collector_and_counts_what_is_left() -> None:
    stage = Stage()
    stage.exporter.may_go.clear()
    finish(stage.tracing.begin("first", None))
    assert stage.exporter.is_asked.wait(WAIT_SECONDS)
    finish(stage.tracing.begin("second", None))
    stage.tracing.close(0.05)
    finish(stage.tracing.begin("third", None))
    assert stage.dropped == {"not_sent": 1, "queue_full": 1}
    stage.exporter.may_go.set()


def test_spans_that_a_collector_refuses_are_counted(stage: Stage) -> None:
    stage.exporter.result = SpanExportResult.FAILURE
    finish(stage.tracing.begin("lost", None))
    assert stage.names() == []
    assert stage.dropped == {"not_sent": 1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"sample_share": 1.1},
        {"sample_share": -0.1},
        {"endpoint": "collector:4318"},
        {"queue_bound": 0},
        {"colour": "red"},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TracingSettings.model_validate(wrong)


def test_where_the_libraries_are_missing_the_error_has_the_command_that_installs_them() -> None:
    code = (
        "import sys\n"
        "sys.modules['opentelemetry.sdk.trace'] = None\n"
        "from broker.tracing import TracingSettings, open_tracing\n"
        "assert open_tracing(TracingSettings(), service='x', name='y') is None\n"
        "open_tracing(TracingSettings(is_on=True), service='x', name='y')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("broker.tracing.TracingExtraMissing: tracing.is_on needs OpenTelemetry")
    assert last.endswith("pip install 'elma-qa[trace]'")


def one_span(settings: TracingSettings) -> None:
    """Make a span of a process and send it."""
    tracing = open_tracing(settings, service="elma-edge", name="kitchen")
    assert tracing is not None
    finish(tracing.begin("work", None))
    tracing.close(WAIT_SECONDS)


def test_the_variables_of_the_standard_count_where_nothing_is_set_and_no_proxy_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with run_collector() as collector:
        base = collector.url.removesuffix("/v1/traces")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", base)
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        one_span(TracingSettings(is_on=True))
        monkeypatch.setenv("OTEL_SERVICE_NAME", "devices")
        one_span(TracingSettings(is_on=True))
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
        one_span(TracingSettings(is_on=True))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        one_span(TracingSettings(is_on=True, endpoint=collector.url, sample_share=1.0))
        services = [(span.service, span.instance) for span in collector.spans()]
    assert services == [("elma-edge", "kitchen"), ("devices", "kitchen"), ("devices", "kitchen")]


def test_a_collector_whose_answer_has_no_end_is_not_read() -> None:
    """Its status has come; the rest would fill the memory."""
    with run_collector() as collector:
        collector.is_endless.set()
        settings = TracingSettings(is_on=True, endpoint=collector.url, send_seconds=0.05)
        tracing = open_tracing(settings, service="elma-edge", name="kitchen")
        assert tracing is not None
        for name in ("first", "second"):
            finish(tracing.begin(name, None))
            wait_until(lambda name=name: name in names(collector), f"the span {name}")
        tracing.close(WAIT_SECONDS)


def names(collector: Collector) -> list[str]:
    """Of all spans that came."""
    return [span.name for span in collector.spans()]
