"""What is committed about metrics is what the code has; alerts fire when they should."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from deploy.watch.__main__ import ROOT, made
from deploy.watch.catalogue import Described, describe, parts
from deploy.watch.panels import DASHBOARDS

PROMETHEUS = ROOT / "deploy" / "prometheus"
METRICS = [one for registry in parts().values() for one in describe(registry)]
SERIES = re.compile(r"\b(?:elma_[a-z0-9_]+|elma:[a-z0-9_:]+)")
MADE = {**made("metrics"), **made("dashboards")}


@pytest.mark.parametrize("path", MADE, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_made_from_code_is_up_to_date(path: Path) -> None:
    verb = "dashboards" if path.suffix == ".json" else "metrics"
    assert path.read_text(encoding="utf-8") == MADE[path], f"run: python -m deploy.watch {verb}"


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_is_named_as_metrics_are(metric: Described) -> None:
    assert re.fullmatch(r"elma_(edge|worker|publisher|monitor)_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"_(ms|millis|milliseconds|kb|mb|percent|second|byte)(_|$)", metric.name)
    assert metric.text.endswith(".")
    assert not {"edge", "request", "id", "le"} & set(metric.labels)
    assert metric.kind != "histogram" or set(metric.labels) <= {"group"}


def test_panels_and_rules_ask_only_for_what_there_is() -> None:
    rules = [(PROMETHEUS / name).read_text(encoding="utf-8") for name in RULE_FILES]
    recorded = set(re.findall(r"record: (\S+)", rules[0]))
    known = {one.name for one in METRICS} | recorded
    known |= {
        f"{one.name}_{part}"
        for one in METRICS
        for part in ("bucket", "sum", "count")
        if one.kind == "histogram"
    }
    expressions = [
        query.expression
        for dashboard in DASHBOARDS
        for panel in dashboard.panels
        for query in panel.queries
    ]
    asked = set(SERIES.findall("\n".join(expressions + rules)))
    assert len(asked) > 50
    assert asked <= known


def test_every_alert_has_its_rule_tested() -> None:
    alerts = set(re.findall(r"alert: (\w+)", (PROMETHEUS / "alerts.yml").read_text("utf-8")))
    tests = "\n".join(path.read_text("utf-8") for path in (PROMETHEUS / "tests").glob("*.yml"))
    for alert in alerts:
        times = re.findall(rf"alertname: {alert}\n +eval_time: \w+\n +exp_alerts:( \[\])?", tests)
        assert "" in times, f"no test has {alert} fire"
        assert " []" in times, f"no test has {alert} keep still"


def test_the_configuration_and_its_rules_are_sound(promtool_program: Path) -> None:
    config = [promtool_program, "check", "config", PROMETHEUS / "prometheus.yml"]
    rules = [promtool_program, "test", "rules", *sorted((PROMETHEUS / "tests").glob("*.yml"))]
    for command in (config, rules):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_no_two_panels_of_a_dashboard_lie_on_each_other() -> None:
    for path in MADE:
        if path.suffix == ".json":
            document = json.loads(path.read_text(encoding="utf-8"))
            places = [panel["gridPos"] for panel in document["panels"]]
            fields = [
                (place["x"] + column, place["y"] + row)
                for place in places
                for column in range(place["w"])
                for row in range(place["h"])
            ]
            assert len(set(fields)) == len(fields), path.name
            assert all(place["x"] + place["w"] <= 24 for place in places)


RULE_FILES = ("recording.yml", "alerts.yml")
