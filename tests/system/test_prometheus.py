"""A real Prometheus watches a real plant: every query of every panel and rule has a result."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from broker.run import run_broker
from deploy.watch.__main__ import ROOT
from deploy.watch.panels import DASHBOARDS, Query
from reader.exits import ExitSettings
from tests.cloud_worker.harness import Cloud, ElmaProcess, wait_until
from tests.system.conftest import LAYERS, Plant
from tests.system.prometheus_server import PrometheusServer
from tests.system.test_rollout import Load, Rollout
from tests.tiny import make_tiny_model

PATIENCE_SECONDS = 60.0
EDGES = ("kitchen", "cellar")
QUERIES = [
    query for dashboard in DASHBOARDS for panel in dashboard.panels for query in panel.queries
]


@pytest.fixture
def rollout(
    tmp_path: Path,
    mosquitto_program: Path,
    free_port: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Rollout]:
    """A broker, two workers and two edges of its own, which report to a monitor too."""
    monkeypatch.setenv("ELMA_EDGE_METRICS__REPORT_SECONDS", "1")
    models = {
        name: make_tiny_model(
            tmp_path / name,
            layers=LAYERS,
            groups=4,
            hidden_size=64,
            seed=seed,
            settings=ExitSettings.uncalibrated(LAYERS),
        )
        for seed, name in enumerate(("first", "second"), start=20)
    }
    with ExitStack() as stack:
        broker = stack.enter_context(run_broker("mosquitto", tmp_path / "broker"))
        cloud = Cloud(tmp_path, broker, models["first"], stack)
        yield Rollout(Plant(cloud, stack), models, free_port, EDGES)


@pytest.fixture
def plant(rollout: Rollout) -> Plant:
    """Ours, for what is looked at after each system test."""
    return rollout.plant


@pytest.fixture
def publisher_url(rollout: Rollout) -> str:
    """The rollout service's address, once it serves its metrics."""
    service = rollout.start_service("--port", "0")
    return str(service.wait_for_event("metrics_served")["url"])


@pytest.fixture
def monitor_url(rollout: Rollout) -> str:
    """The address of an `elma monitor` to which the edges report."""
    cloud = rollout.plant.cloud
    port = str(cloud.broker.port)
    monitor = ElmaProcess(
        ["monitor", "--name", "eye", "--port", "0", "--broker-port", port], cloud.next_log("eye")
    )
    cloud.take(monitor)
    return str(monitor.wait_for_event("monitor_listening")["url"])


@pytest.fixture
def prometheus(
    rollout: Rollout,
    publisher_url: str,
    monitor_url: str,
    prometheus_program: Path,
    tmp_path: Path,
    free_port: Callable[[], int],
) -> Iterator[PrometheusServer]:
    """It watches all of them."""
    targets = {
        "workers": [(worker.health_url, {}) for worker in rollout.plant.workers.values()],
        "edges": [(edge.url, {"edge": edge.name}) for edge in rollout.edges],
        "publishers": [(publisher_url, {"channel": "stable"})],
        "monitors": [(monitor_url, {})],
        "alertmanagers": [],
    }
    with PrometheusServer(
        prometheus_program, tmp_path / "prometheus", free_port(), targets
    ) as server:
        yield server


@pytest.mark.timeout(300)
def test_every_query_of_panels_and_rules_has_a_result(
    rollout: Rollout, prometheus: PrometheusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("publisher.checking.ENGINES", ("torch",))
    monkeypatch.setattr("publisher.checking.PRECISIONS", ("fp32",))
    load = Load(rollout.edges)
    try:
        rollout.publish(str(rollout.models["second"]))
        rollout.wait_everywhere("second", 1)
        assert_panels_are_full(prometheus)
        assert_rules_are_sound(prometheus)
        assert_only_declared_metrics(prometheus)
    finally:
        load.stop()
    assert {response.status_code for _, response in load.responses} == {200}


def assert_panels_are_full(prometheus: PrometheusServer) -> None:
    """No query is in error, and none stays empty that gives no reason."""
    for query in QUERIES:
        prometheus.query(concrete(query))
    empty = [query for query in QUERIES if not query.empty_because]

    def is_full() -> bool:
        empty[:] = [query for query in empty if not prometheus.query(concrete(query))]
        return not empty

    try:
        wait_until(is_full, "every panel has data", PATIENCE_SECONDS)
    except AssertionError as error:
        raise AssertionError(f"empty: {[query.expression for query in empty]}") from error


def assert_rules_are_sound(prometheus: PrometheusServer) -> None:
    """All that is recorded has a value; alerts are healthy, and none has anything to say."""
    groups = prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    alerts = [rule for rule in rules if rule["type"] == "alerting"]
    committed = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    assert len(alerts) == committed.count("- alert:")
    for rule in rules:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule
        if rule["type"] == "recording":
            assert prometheus.query(rule["name"]), rule["name"]
        else:  # it speaks up when something is wrong, and nothing is: promtool has it fire
            assert prometheus.query(rule["query"]) == [], rule["name"]


def assert_only_declared_metrics(prometheus: PrometheusServer) -> None:
    """What the processes serve is what the golden list declares, name by name and kind by kind."""
    golden = (ROOT / "tests" / "system" / "metrics.txt").read_text(encoding="utf-8")
    lines = [line.split() for line in golden.splitlines()]
    declared = {name.removesuffix("_total"): kind for name, kind, *_ in lines}
    served = {  # OpenMetrics, which the publisher speaks, names a counter without its suffix
        name.removesuffix("_total"): known[0]["type"]
        for name, known in prometheus.get("metadata").items()
        if name.startswith("elma_") and not name.endswith("_created")
    }
    lacking = set(declared) - set(served)
    assert {name: declared.get(name) for name in served} == served
    assert all(name.startswith("elma_edge_audit") for name in lacking), lacking  # off by default


def concrete(query: Query) -> str:
    """The query as Grafana sends it, with every device and worker chosen."""
    return re.sub(r"\$(edge|worker)\b", ".*", query.expression.replace("$__rate_interval", "30s"))
