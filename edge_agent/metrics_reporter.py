"""Metrics on their way to a Prometheus that cannot fetch them: by MQTT, or as a file.

Inputs: the registry of `metrics`, the agent's session where it has one, `[metrics]` of the
settings. Outputs: a `MetricsReport` on `elma/v1/metrics/{edge}` every `report_seconds`, and a text
file for node_exporter every `textfile_seconds`. Neighbours: `agent` starts and stops it,
`protocol.metrics_messages` has the bytes, `elma.monitor` shows what comes in.

Nothing waits for it, and it waits for nobody: a report that cannot be sent now is not sent, the
next one says all of it again.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric

from broker.errors import NotConnected, SessionStopped, TooManyInFlight
from broker.exchange import Publication, Receipt
from broker.log import SafeLog
from edge_agent.metrics_settings import MetricsSettings
from protocol.metrics_messages import (
    MAX_VALUE,
    SUFFIXES,
    Family,
    FamilyKind,
    MetricsReport,
    Sample,
)
from protocol.topics import MetricsTopic

STOP_SECONDS = 5.0
_log = SafeLog(__name__)


class ReportSession(Protocol):
    """What is needed of `broker.session.Session`."""

    def publish(self, publication: Publication) -> Receipt:
        """Hand one over."""


class MetricsReporter:
    """One thread, where the settings ask for it; `start` and `stop` once each."""

    def __init__(
        self,
        settings: MetricsSettings,
        edge: str,
        registry: CollectorRegistry,
        session: ReportSession | None,
    ) -> None:
        self._settings, self._registry = settings, registry
        self._topic = str(MetricsTopic(edge))
        self._session = session if settings.report_seconds else None
        self._faults: dict[str, str] = {}
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="elma-metrics", daemon=True)

    def start(self) -> None:
        """Begin, if there is anything to do."""
        if self._tasks():
            self._thread.start()

    def stop(self) -> None:
        """End. A file of an agent that does not run would tell old news for ever: it goes."""
        self._is_stopping.set()
        if self._thread.ident is None:
            return
        self._thread.join(STOP_SECONDS)
        if self._settings.textfile is not None:
            self._try("metrics_textfile", self._settings.textfile.unlink)

    def _report(self, session: ReportSession) -> None:
        """Publish the metrics as they are now, if there is a connection."""
        interval_seconds = self._settings.report_seconds
        content = make_report(self._registry, interval_seconds).encode()
        expiry_seconds = max(1, math.ceil(2 * interval_seconds))
        try:
            session.publish(Publication(self._topic, content, qos=0, expiry_seconds=expiry_seconds))
        except (NotConnected, TooManyInFlight, SessionStopped):
            return  # nothing to say: the next one tells it all

    def _write(self, textfile: Path) -> None:
        """Write the metrics as they are now. Raises OSError."""
        write_textfile(textfile, generate_latest(self._registry))

    def _tasks(self) -> list[tuple[str, float, Callable[[], None]]]:
        """What is done again and again: its name, how often in seconds, what."""
        tasks: list[tuple[str, float, Callable[[], None]]] = []
        session, textfile = self._session, self._settings.textfile
        if session is not None:
            seconds = self._settings.report_seconds
            tasks.append(("metrics_report", seconds, lambda: self._report(session)))
        if textfile is not None:
            seconds = self._settings.textfile_seconds
            tasks.append(("metrics_textfile", seconds, lambda: self._write(textfile)))
        return tasks

    def _run(self) -> None:
        tasks = self._tasks()
        due_at = {name: time.monotonic() for name, _, _ in tasks}
        while not self._is_stopping.wait(max(0.0, min(due_at.values()) - time.monotonic())):
            for name, seconds, task in tasks:
                if time.monotonic() >= due_at[name]:
                    due_at[name] = time.monotonic() + seconds
                    self._try(name, task)

    def _try(self, name: str, task: Callable[[], None]) -> None:
        """Do it; one log line for each new reason why it fails, not one a time."""
        try:
            task()
            self._faults.pop(name, None)
        except Exception as error:
            # Whatever it is: metrics are no reason for the agent to fail.
            text = f"{type(error).__name__}: {error}"
            if self._faults.get(name) != text:
                _log.error(f"{name}_failed", error=text)
            self._faults[name] = text


def make_report(registry: CollectorRegistry, interval_seconds: float) -> MetricsReport:
    """All metrics of the registry; without times of creation, and numbers that are none."""
    families = [_family(metric) for metric in registry.collect() if metric.type in SUFFIXES]
    return MetricsReport(interval_seconds, tuple(one for one in families if one.samples))


def write_textfile(path: Path, content: bytes) -> None:
    """Put `content` at `path`, whole or not at all, readable for node_exporter. Raises OSError."""
    beside = path.with_name(f"{path.name}.new")  # not *.prom, so that nobody reads it half written
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
    with open(handle, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
        os.fchmod(file.fileno(), 0o644)
        file.write(content)
    beside.replace(path)


def _family(metric: Metric) -> Family:
    kind = cast(FamilyKind, metric.type)
    samples = []
    for sample in metric.samples:
        suffix = sample.name.removeprefix(metric.name)
        if suffix in SUFFIXES[kind] and abs(sample.value) <= MAX_VALUE:  # not for NaN either
            samples.append(
                Sample(suffix, tuple(sorted(sample.labels.items())), float(sample.value))
            )
    return Family(metric.name, kind, tuple(samples))
