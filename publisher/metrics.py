"""The publisher's metrics, in a registry of their own.

Inputs: counts from `watching`. Output: the Prometheus text at `GET /metrics`. All names start with
`elma_publisher_`; labels have few values and never an edge's name.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    start_http_server,
)

EDGE_STATES = ("active", "under_way", "failed", "waiting")
PAUSE_CAUSES = ("failures", "drift")


class PublisherMetrics:
    """Every metric of one service; the fields are used where things happen."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.chunks_sent = self._counter("chunks_sent", "Chunks that the broker acknowledged.")
        self.sent_bytes = self._counter("sent_bytes", "Bytes of those chunks.")
        self.chunks_cleared = self._counter("chunks_cleared", "Chunks that were taken away.")
        self.chunks_repaired = self._counter(
            "chunks_repaired",
            "Chunks that the broker had lost or had otherwise, found on complaint.",
        )
        self.assertions = self._counter("assertions", "Times that a channel was made whole again.")
        self.promotions = self._counter("promotions", "Stages that were begun.")
        self.pauses = self._counter("pauses", "Rollouts that paused by themselves.", ["cause"])
        for cause in PAUSE_CAUSES:
            self.pauses.labels(cause)
        self.failures = self._counter("failures", "Steps of the service that failed; see the log.")
        self.edges = self._gauge("edges", "Living edges by what they do with the release.", "state")
        self.workers = self._gauge("workers", "Connected workers, by having it loaded.", "loaded")
        self.share = self._gauge("rollout_share_ratio", "Share of the edges that may take it.")
        self.paused = self._gauge("rollout_paused", "1 while the rollout is paused.")
        self.version = self._gauge("release_version", "Version of the channel's release.")
        self.expires = self._gauge(
            "manifest_expires_timestamp_seconds", "When the channel's manifest expires, unix time."
        )
        self.connected = self._gauge("broker_connected", "1 while the session is up.")
        self.certificate_expires = self._gauge(
            "certificate_expires_timestamp_seconds",
            "When the certificate for the broker expires, unix time; 0 without one.",
        )
        self.broker_certificate_expires = self._gauge(
            "broker_certificate_expires_timestamp_seconds",
            "When the broker's own certificate expires, as last shown, unix time; 0 without TLS.",
        )
        ProcessCollector(namespace="elma_publisher", registry=self.registry)
        self.agreement = Gauge(
            "elma_publisher_agreement_ratio",
            "Share of edges' answers that were the workers' too, by release, exit and kind.",
            ["release", "layer", "kind"],
            registry=self.registry,
        )

    def serve(self, host: str, port: int) -> int:
        """Serve them at /metrics until the process ends; the port. Raises OSError."""
        server, _ = start_http_server(port, addr=host, registry=self.registry)
        return int(server.server_port)

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"elma_publisher_{name}_total", text, labels or [], registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"elma_publisher_{name}", text, labels, registry=self.registry)
