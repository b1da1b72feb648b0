"""The metrics of a device's releases, in the agent's registry.

Inputs: what the follower reports, what `release_life` does. Output: part of `GET /metrics`.
Neighbours: `metrics` has the registry, and what the questions count.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from protocol.release_messages import MODEL_PHASES
from releases.progress import Progress


class ReleaseMetrics:
    """Every metric of one device's releases."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"elma_edge_{name}_total", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"elma_edge_{name}", text, labels, registry=registry)

        self.downloaded_bytes = counter("download_bytes", "Bytes of releases that have come.")
        self.failures = counter("release_failures", "Releases not taken, or given up.", ("reason",))
        self.canary_failures = counter("canary_failures", "Releases whose canaries failed.")
        self.changes = counter("release_changes", "Releases taken into use by this process.")
        self.returns = counter("release_returns", "Returns to the last good release.")
        self.check_seconds = gauge("canary_seconds", "What the last check of canaries took.")
        self._state = gauge("release_state", "1 for what is being done now.", ("state",))
        self._version = gauge("release_version", "Version in use; 0 for a model of the settings.")
        self._expires = gauge(
            "manifest_expires_timestamp_seconds", "When the manifest in use expires; unix time."
        )

    def note(self, progress: Progress) -> None:
        """What is true now."""
        for phase in MODEL_PHASES:
            self._state.labels(phase).set(phase == progress.state)
        self._version.set(progress.version or 0)
        self._expires.set(progress.manifest_expires or 0)

    def note_failure(self, reason_code: str) -> None:
        """A release was not taken, or was given up."""
        self.failures.labels(reason_code).inc()
        if reason_code == "canaries":
            self.canary_failures.inc()
