"""Draws a dashboard's panels as one picture, from the same queries that Grafana would ask.

Inputs: a `Dashboard`, the address of a Prometheus that has watched something. Output: a PNG file.
Neighbours: `panels` has the queries. It is no picture of Grafana: the layout and the data are the
dashboard's, the drawing is matplotlib's.
"""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import httpx
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deploy.watch.panels import Dashboard, Panel, Query

COLUMNS, POINTS = 3, 120
TIMEOUT_SECONDS = 30.0
RATE_INTERVAL = "1m"
_LONGEST_LEGEND = 7


def draw(dashboard: Dashboard, url: str, seconds: float, path: Path) -> None:
    """Draw the last `seconds`. Raises httpx.HTTPError."""
    mpl.use("Agg")
    rows = math.ceil(len(dashboard.panels) / COLUMNS)
    figure = Figure(figsize=(5 * COLUMNS, 2.6 * rows + 0.5), layout="constrained")
    figure.suptitle(dashboard.title)
    places = [axes for row in figure.subplots(rows, COLUMNS, squeeze=False) for axes in row]
    until = time.time()
    for axes, panel in zip(places, dashboard.panels, strict=False):
        _draw_panel(axes, panel, url, until - seconds, until)
    for axes in places[len(dashboard.panels) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=70)


def series_of(query: Query, url: str, start: float, end: float) -> list[dict[str, Any]]:
    """Prometheus' matrix for a query over a time in unix seconds. Raises httpx.HTTPError."""
    expression = query.expression.replace("$__rate_interval", RATE_INTERVAL)
    expression = re.sub(r"\$(edge|worker)\b", ".*", expression)
    response = httpx.get(
        f"{url}/api/v1/query_range",
        params={"query": expression, "start": start, "end": end, "step": (end - start) / POINTS},
        timeout=TIMEOUT_SECONDS,
    )
    response.raise_for_status()
    return list(response.json()["data"]["result"])


def _draw_panel(axes: Axes, panel: Panel, url: str, start: float, end: float) -> None:
    axes.set_title(f"{panel.title} [{panel.unit}]", fontsize=9)
    found = [
        (_legend(query.legend, one["metric"]), one["values"])
        for query in panel.queries
        for one in series_of(query, url, start, end)
    ]
    axes.tick_params(labelsize=7)
    if not found:
        axes.text(0.5, 0.5, "no data", ha="center", transform=axes.transAxes)
    elif panel.is_number:
        axes.set_axis_off()
        lines = [_number(panel, label, float(values[-1][1])) for label, values in found[:3]]
        axes.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", fontsize=15)
    else:
        for place, (label, values) in enumerate(found):
            minutes = [(float(moment) - end) / 60 for moment, _ in values]
            name = label if place < _LONGEST_LEGEND else None
            axes.plot(minutes, [float(value) for _, value in values], label=name, linewidth=1.2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("minutes", fontsize=7)
        axes.legend(fontsize=6, loc="best", framealpha=0.5)


def _number(panel: Panel, label: str, value: float) -> str:
    """One line of a panel without a curve."""
    if panel.is_label:
        return label
    if panel.unit == "dtdurations":
        return f"{label}: {value / 86_400:.1f} days"
    return f"{label}: {value:.4g}"


def _legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], "")[:20], template)
