"""Grafana's JSON of the dashboards in `panels`.

Input: a `Dashboard`. Output: the text of `deploy/grafana/dashboards/{name}.json`, which the
provisioning in `deploy/grafana/provisioning` loads. Neighbours: `__main__` writes the files.
"""

from __future__ import annotations

import json
from typing import Any

from deploy.watch.panels import Dashboard, Panel

SCHEMA_VERSION = 39
_SOURCE = {"type": "prometheus", "uid": "elma-prometheus"}
_COLUMNS, _WIDTH, _HEIGHT, _NUMBER_HEIGHT = 24, 8, 8, 4


def as_json(dashboard: Dashboard) -> str:
    """The dashboard as Grafana imports it."""
    document = {
        "uid": f"elma-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["elma"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_variable(*variable) for variable in dashboard.variables]},
        "panels": _placed(dashboard.panels),
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _placed(panels: tuple[Panel, ...]) -> list[dict[str, Any]]:
    """Rows of three, from left to right; a row of numbers is lower."""
    placed: list[dict[str, Any]] = []
    top, left, row_height = 0, 0, 0
    for number, panel in enumerate(panels, start=1):
        height = _NUMBER_HEIGHT if panel.is_number else _HEIGHT
        if left + _WIDTH > _COLUMNS:
            top, left, row_height = top + row_height, 0, 0
        position = {"x": left, "y": top, "w": _WIDTH, "h": height}
        placed.append(_panel(number, panel, position))
        left, row_height = left + _WIDTH, max(row_height, height)
    return placed


def _panel(number: int, panel: Panel, position: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "stat" if panel.is_number else "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": (
            {
                "reduceOptions": {"calcs": ["lastNotNull"]},
                "textMode": "name" if panel.is_label else "auto",
            }
            if panel.is_number
            else {"legend": {"displayMode": "list", "placement": "bottom"}}
        ),
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": _SOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
            }
            for place, query in enumerate(panel.queries)
        ],
    }


def _variable(name: str, label: str, metric: str) -> dict[str, Any]:
    query = f"label_values({metric}, {label})"
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
    }
