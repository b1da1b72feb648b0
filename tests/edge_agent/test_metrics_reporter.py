"""Metrics that leave the device by themselves: what is reported, and the file for node_exporter."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge, Summary
from prometheus_client.parser import text_string_to_metric_families

from broker.errors import NotConnected
from broker.exchange import Publication, Receipt
from edge_agent.metrics import EdgeMetrics
from edge_agent.metrics_reporter import MetricsReporter, make_report, write_textfile
from edge_agent.metrics_settings import MetricsSettings
from protocol.metrics_messages import MetricsReport
from tests.edge_agent.conftest import StartEdge, edge_settings, running_edge, wait_until


class FakeSession:
    """Keeps what is published; the first `failures` attempts find no connection."""

    def __init__(self, failures: int = 0) -> None:
        self.published: list[Publication] = []
        self._failures = failures

    def publish(self, publication: Publication) -> Receipt:
        if self._failures:
            self._failures -= 1
            raise NotConnected("away")
        self.published.append(publication)
        return Receipt()


def samples_of(report: MetricsReport) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (family.name + sample.suffix, sample.labels): sample.value
        for family in report.families
        for sample in family.samples
    }


def test_a_report_holds_every_sample_that_a_scrape_would_show() -> None:
    metrics = EdgeMetrics()
    metrics.questions.labels("answered", "edge").inc(3)
    metrics.answer_seconds.observe(0.07)
    metrics.outbox_pending.set(2)
    shown = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.as_text().decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    report = make_report(metrics.registry, 60.0)
    reported = samples_of(MetricsReport.decode(report.encode()))
    assert reported.keys() == shown.keys()
    changed = {key[0] for key, value in reported.items() if value != shown[key]}
    assert all(name.startswith("elma_edge_process_") for name in changed)  # between the two looks
    asked = ("elma_edge_questions_total", (("resolved_by", "edge"), ("result", "answered")))
    assert shown[asked] == 3.0
    assert len(report.encode()) < 16 * 1024


def test_what_a_report_cannot_say_is_left_out() -> None:
    registry = CollectorRegistry()
    Gauge("elma_edge_sound", "x", registry=registry).set(1)
    Gauge("elma_edge_unknown", "x", registry=registry).set(float("nan"))
    Summary("elma_edge_summary", "x", registry=registry).observe(1)
    assert samples_of(make_report(registry, 1.0)) == {("elma_edge_sound", ()): 1.0}


def test_a_report_lives_for_two_intervals_and_a_broken_connection_is_no_failure() -> None:
    session = FakeSession(failures=1)
    settings = MetricsSettings(report_seconds=1.0)
    reporter = MetricsReporter(settings, "kitchen", EdgeMetrics().registry, session)
    reporter.start()
    wait_until(lambda: session.published)
    reporter.stop()
    first = session.published[0]
    assert (first.topic, first.qos, first.retain) == ("elma/v1/metrics/kitchen", 0, False)
    assert first.expiry_seconds == 2
    assert MetricsReport.decode(first.payload).interval_seconds == 1.0


def test_nothing_is_reported_or_written_unless_it_is_asked_for(tmp_path: Path) -> None:
    session = FakeSession()
    reporter = MetricsReporter(MetricsSettings(), "kitchen", EdgeMetrics().registry, session)
    reporter.start()
    reporter.stop()
    assert session.published == []
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_whole_readable_for_node_exporter_and_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "elma.prom"
    before = os.umask(0o077)
    try:
        write_textfile(path, b"elma_edge_a 1\n")
    finally:
        os.umask(before)
    with path.open("rb") as reading:  # node_exporter in the middle of it
        write_textfile(path, b"elma_edge_a 2\n")
        assert reading.read() == b"elma_edge_a 1\n"
    assert path.read_bytes() == b"elma_edge_a 2\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [one.name for one in tmp_path.iterdir()] == ["elma.prom"]


def test_a_link_in_the_shared_folder_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine", encoding="utf-8")
    (tmp_path / "elma.prom.new").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        write_textfile(tmp_path / "elma.prom", b"elma_edge_a 1\n")
    assert victim.read_text(encoding="utf-8") == "mine"


def test_an_agent_without_a_cloud_writes_its_file_and_takes_it_away_when_it_stops(
    tmp_path: Path, model_folder: Path
) -> None:
    path = tmp_path / "elma.prom"
    metrics: Any = {"textfile": str(path), "textfile_seconds": 0.1}
    settings = edge_settings(model_folder, tmp_path, None, None, metrics=metrics)
    with running_edge(settings) as edge:
        assert isinstance(edge.ask()["answer"], str)
        counted = 'elma_edge_questions_total{resolved_by="edge"'
        wait_until(lambda: path.exists() and counted in path.read_text(encoding="utf-8"))
    assert not path.exists()


def test_a_file_that_cannot_be_written_stops_no_answer(
    start_edge: StartEdge, tmp_path: Path
) -> None:
    textfile = tmp_path / "nowhere" / "elma.prom"
    edge = start_edge(metrics={"textfile": str(textfile), "textfile_seconds": 0.1})
    assert edge.ask()["resolved_by"] == "edge"
    (tmp_path / "nowhere").mkdir()  # and it is written once that is possible
    wait_until(textfile.exists)
