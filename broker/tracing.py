"""Traces of OpenTelemetry, where they are wanted: spans that cannot hurt, and None where not.

Input: `TracingSettings`, the table [tracing]. Output: a `Tracing` that begins spans and sends them
to a collector (OTLP over HTTP) from a thread of its own, or None when it is off: then nothing of
OpenTelemetry is imported. Neighbours: `span_queue` sends; edge agent and worker begin their spans
through `begin`, `note` and `finish`, which take None for a span that is not there.

A fault of the library costs a span and never an answer. What becomes an attribute is named here
and by the callers: ids, names, counts, sizes and times, never a text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from broker.errors import BrokerSettingsError
from protocol.trace_parent import is_trace_parent, parse_trace_parent

if TYPE_CHECKING:
    from broker.span_queue import SpanQueue

Kind = Literal["internal", "server", "producer", "consumer"]
Value = bool | int | float | str | Sequence[int] | None
CountDropped = Callable[[str, int], None]
CLOSING_SECONDS = 2.0
"""How long a process that ends waits for its collector."""

_STANDARD_NAMES = {
    "http_method": "http.request.method",
    "http_route": "http.route",
    "http_status": "http.response.status_code",
    "fault": "error.type",
}
"""Attributes that OpenTelemetry's conventions name; all others are `elma.*`."""


class TracingExtraMissing(BrokerSettingsError):
    """Traces are on, and the libraries that make them are not installed."""


class TracingSettings(BaseModel):
    """The table [tracing]: whether and where spans go.

    `endpoint` is the full URL of a collector; without one, `OTEL_EXPORTER_OTLP_ENDPOINT` and its
    like count, else http://localhost:4318/v1/traces. `sample_share` of the questions are traced
    that come without a `traceparent`, which else decides; `OTEL_TRACES_SAMPLER` where it is not
    set. At most `queue_bound` ended spans wait to be sent; a collector has `timeout_seconds`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    is_on: bool = False
    endpoint: Annotated[str, Field(pattern=r"^https?://[^\s]+$")] | None = None
    sample_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    queue_bound: Annotated[int, Field(ge=1, le=1_000_000)] = 2_048
    send_seconds: Annotated[float, Field(ge=0.05, le=600)] = 2.0
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0


class Span:
    """One piece of work in a trace; every method raises nothing and may come from any thread."""

    __slots__ = ("_otel", "_tracer")

    def __init__(self, tracer: Any, otel: Any) -> None:
        self._tracer, self._otel = tracer, otel

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._otel.get_span_context().trace_id:032x}"

    @property
    def is_sampled(self) -> bool:
        """Whether it goes to the collector."""
        return bool(self._otel.get_span_context().trace_flags & 1)

    @property
    def trace_parent(self) -> str:
        """What another process needs to go on below this span."""
        own = self._otel.get_span_context()
        return f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags & 1:02x}"

    def child(self, name: str, kind: Kind, attributes: Mapping[str, Value]) -> Span | None:
        """A span below this one that begins now; None when the library fails."""
        from opentelemetry.trace import set_span_in_context

        return _start(
            self._tracer, name, set_span_in_context(self._otel, _empty()), kind, attributes
        )

    def note(self, name: str, attributes: Mapping[str, Value]) -> None:
        """Something that happened at this moment."""
        with suppress(Exception):
            if self._otel.is_recording():
                self._otel.add_event(name, _named(attributes))

    def set(self, attributes: Mapping[str, Value]) -> None:
        """Say more of it; once it has ended, by another thread say, that changes nothing."""
        with suppress(Exception):
            if self._otel.is_recording():
                self._otel.set_attributes(_named(attributes))

    def end(self, fault: str | None) -> None:
        """End it, as failed where `fault` names what failed; a second end changes nothing."""
        with suppress(Exception):
            if not self._otel.is_recording():
                return
            if fault is not None:
                from opentelemetry.trace import StatusCode

                self._otel.set_attribute(_STANDARD_NAMES["fault"], fault)
                self._otel.set_status(StatusCode.ERROR)
            self._otel.end()


class Tracing:
    """Begins traces; `close` sends what is left. `count_dropped` hears of spans that were not sent.

    It is called with a cause, `queue_full` or `not_sent`, and how many, by any thread.
    """

    def __init__(self, provider: Any, queue: SpanQueue) -> None:
        self._tracer = provider.get_tracer("elma")
        self._provider, self._queue = provider, queue

    def count_dropped_with(self, count: CountDropped) -> None:
        """Who counts spans that were not sent, from now on."""
        self._queue.count_dropped = count

    def begin(
        self, name: str, trace_parent: str | None, *, kind: Kind = "internal", **attributes: Value
    ) -> Span | None:
        """A span below `trace_parent`, or the first of a new trace where that is no valid one."""
        from opentelemetry.trace import (
            NonRecordingSpan,
            SpanContext,
            TraceFlags,
            set_span_in_context,
        )

        context = _empty()
        if trace_parent is not None and is_trace_parent(trace_parent):
            trace_id, span_id, flags = parse_trace_parent(trace_parent)
            above = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
            context = set_span_in_context(NonRecordingSpan(above), context)
        return _start(self._tracer, name, context, kind, attributes)

    def close(self, wait_seconds: float) -> None:
        """Send what waits, for so long at most; spans that end later are dropped."""
        with suppress(Exception):
            self._queue.close(wait_seconds)


def begin(
    parent: Span | None, name: str, kind: Kind = "internal", **attributes: Value
) -> Span | None:
    """A span below `parent`, where there is one."""
    return None if parent is None else parent.child(name, kind, attributes)


def note(span: Span | None, name: str, **attributes: Value) -> None:
    """Something that happened at this moment."""
    if span is not None:
        span.note(name, attributes)


def finish(span: Span | None, fault: str | None = None, /, **attributes: Value) -> None:
    """End a span, with the last that is to be said of it; `fault` names what failed."""
    if span is not None:
        span.set(attributes)
        span.end(fault)


def open_tracing(settings: TracingSettings, *, service: str, name: str) -> Tracing | None:
    """Traces of one process, called `service`, of which `name` is one; None when they are off.

    Raises TracingExtraMissing.
    """
    if not settings.is_on:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        from broker.span_queue import SpanQueue
    except ImportError as error:
        raise TracingExtraMissing(
            f"tracing.is_on needs OpenTelemetry, which is not installed ({error}); "
            "pip install 'elma-qa[trace]'"
        ) from error
    ours = {"service.name": service, "service.instance.id": name}
    # The standard's variables win: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES.
    resource = Resource.create(ours).merge(OTELResourceDetector().detect())
    share = settings.sample_share
    sampler = None if share is None else ParentBased(TraceIdRatioBased(share))
    provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(
        endpoint=settings.endpoint, timeout=settings.timeout_seconds, session=_own_session()
    )
    queue = SpanQueue(exporter, bound=settings.queue_bound, pause_seconds=settings.send_seconds)
    provider.add_span_processor(queue)
    return Tracing(provider, queue)


def _own_session() -> Any:
    """Connections that take no proxy and no login from the environment, as all of ours.

    A collector's status is all that counts. What else it says is not read: it could go on for ever.
    """
    import requests

    class StatusOnly(requests.adapters.HTTPAdapter):
        def send(self, request: Any, *args: Any, **details: Any) -> Any:
            response = super().send(request, *args, **{**details, "stream": True})
            response.close()
            response._content = b""
            return response

    session = requests.Session()
    session.trust_env = False
    session.mount("http://", StatusOnly())
    session.mount("https://", StatusOnly())
    return session


def _empty() -> Any:
    from opentelemetry.context import Context

    return Context()


def _start(
    tracer: Any, name: str, context: Any, kind: Kind, attributes: Mapping[str, Value]
) -> Span | None:
    with suppress(Exception):
        from opentelemetry.trace import SpanKind

        otel = tracer.start_span(
            name, context=context, kind=SpanKind[kind.upper()], attributes=_named(attributes)
        )
        return Span(tracer, otel)
    return None


def _named(attributes: Mapping[str, Value]) -> dict[str, Any]:
    """By their full names; what is None is left out."""
    return {
        _STANDARD_NAMES.get(name, f"elma.{name}"): value
        for name, value in attributes.items()
        if value is not None
    }
