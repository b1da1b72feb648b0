"""The edge agent's metrics, in a registry of their own so that two agents can share a process.

Inputs: counts and times from `agent`, `offload` and `app`. Output: the Prometheus text of
`GET /metrics`. All names start with `elma_edge_`, all times are in seconds, all sizes in bytes; no
label ever holds an id.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from edge_agent.lease import Reason
from edge_agent.questions import Failure, Outcome
from reader.engines.engine import EngineChoice

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LAYERS = (*(float(layer) for layer in range(1, 13)), 16.0, 20.0, 24.0)
"""Not those of one release: the next one may be deeper."""
_BYTES = tuple(float(2**power) for power in range(12, 25))


class EdgeMetrics:
    """Every metric of one agent; the fields are used where things happen."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, histogram = self._counter, self._histogram
        self.questions = counter(
            "questions", "Accepted questions by how they ended.", ["result", "resolved_by"]
        )
        self.refused = counter("refused", "Questions that were not accepted.", ["code"])
        self.degraded = counter(
            "degraded", "Questions finished here because the cloud did not answer.", ["reason"]
        )
        for result in ("answered", "no_answer"):
            for resolver in ("edge", "cloud"):
                self.questions.labels(result, resolver)
        self.questions.labels("failed", "none")
        for reason in Reason:
            self.degraded.labels(reason.value)
        self.publications = counter("publications", "Requests published, repeats included.", [])
        self.packed = counter(
            "requests_packed", "Requests by the codec of their states.", ["codec"]
        )
        self.retries = counter("retries", "Requests published again.", [])
        self.busy = counter("busy", "Times that a worker had no room for a request.", [])
        self.lease_expiries = counter(
            "lease_expiries", "Times that a worker's word was due and did not come.", []
        )
        self.ignored = counter(
            "ignored_messages", "Messages that changed nothing: forged, late, malformed.", ["cause"]
        )
        self.worker_errors = counter("worker_errors", "Errors that workers reported.", ["code"])
        self.exit_layer = histogram("exit_layer", "Deepest layer that a question needed.", _LAYERS)
        self.answer_seconds = histogram(
            "answer_seconds", "From acceptance to the final answer.", _SECONDS
        )
        self.offload_seconds = histogram(
            "offload_seconds", "From the first publication to the cloud's answer.", _SECONDS
        )
        self.request_bytes = histogram(
            "request_bytes", "Size of a sealed request, nearly all of it states.", _BYTES
        )
        self.broker_connected = self._gauge("broker_connected", "1 while the session is up.")
        self.certificate_expires = self._gauge(
            "certificate_expires_timestamp_seconds",
            "When the certificate for the broker expires, unix time; 0 without one.",
        )
        self.broker_certificate_expires = self._gauge(
            "broker_certificate_expires_timestamp_seconds",
            "When the broker's own certificate expires, as last shown, unix time; 0 without TLS.",
        )
        self.outbox_pending = self._gauge("outbox_pending", "Accepted, not yet answered.")
        self.waiting = self._gauge("waiting_questions", "Accepted, inference not yet begun.")
        self.in_flight = self._gauge("in_flight_requests", "Requests that wait for the cloud.")
        self._pool_key_info = self._gauge(
            "pool_key_info", "1, for the pool's key that requests are sealed to.", ["pool_key"]
        )
        self._pool_key = ""
        self._engine_info = self._gauge(
            "engine_info", "1, for what computes.", ["engine", "precision"]
        )
        self._release_info = self._gauge(
            "release_info", "1, for the release that answers.", ["release"]
        )
        self.readers_held = self._gauge("readers_held", "Readers in memory; 1 but for a change.")
        self.spans_dropped = counter(
            "spans_dropped", "Spans of traces that no collector got.", ["cause"]
        )
        for cause in ("queue_full", "not_sent"):
            self.spans_dropped.labels(cause)
        ProcessCollector(namespace="elma_edge", registry=self.registry)

    def note_reader(self, release: str, choice: EngineChoice) -> None:
        """What answers new questions from now on, and what computes it."""
        self._engine_info.clear()
        self._engine_info.labels(choice.name, choice.precision).set(1)
        self._release_info.clear()
        self._release_info.labels(release).set(1)

    def note_pool_key(self, key_id: str) -> None:
        """What requests are sealed to from now on."""
        if key_id != self._pool_key:
            self._pool_key = key_id
            self._pool_key_info.clear()
            self._pool_key_info.labels(key_id).set(1)

    def count_outcome(self, outcome: Outcome, seconds: float) -> None:
        """Count one final answer that was reached `seconds` after acceptance."""
        if isinstance(outcome, Failure):
            self.questions.labels("failed", "none").inc()
        else:
            result = "answered" if outcome.answer else "no_answer"
            self.questions.labels(result, outcome.resolved_by).inc()
            self.exit_layer.observe(outcome.exit_layer)
        self.answer_seconds.observe(seconds)

    def as_text(self) -> bytes:
        """The Prometheus exposition format, version 0.0.4."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(f"elma_edge_{name}_total", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"elma_edge_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"elma_edge_{name}", text, buckets=buckets, registry=self.registry)
