"""The figures as tables for a terminal: a column for each process, a row for each figure.

Input: what `figures.describe` made, and who was silent. Output: something that rich can draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from elma.top.look import Silence

BAR_CHARACTERS = 20
_Row = tuple[str, Callable[[dict[str, Any]], str]]


def draw(figures: Sequence[dict[str, Any]], silent: Sequence[Silence]) -> RenderableType:
    """One table of edges, one of workers, and a line for everybody who does not answer."""
    parts: list[RenderableType] = []
    for kind, title, rows in (("edge", "Edges", _EDGE_ROWS), ("worker", "Workers", _WORKER_ROWS)):
        chosen = [one for one in figures if one["kind"] == kind]
        if chosen:
            parts.append(_table(title, chosen, rows))
    for one in figures:
        parts += [Text(f"{_name(one)}: {problem}", style="red") for problem in one["problems"]]
    parts += [Text(f"{one.url}: {one.why}", style="red") for one in silent]
    return Group(*parts)


def _table(title: str, chosen: Sequence[dict[str, Any]], rows: Sequence[_Row]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for one in chosen:
        table.add_column(Text(_name(one)), justify="right")
    for label, cell in rows:
        table.add_row(label, *(Text(cell(one)) for one in chosen))
    return table


def _name(figures: dict[str, Any]) -> str:
    return str(figures["name"] or figures["url"])


def _rate(value: float) -> str:
    return f"{value:,.1f}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _times(times: dict[str, Any]) -> str:
    """`34 / 120 ms`; a star where nothing new came and it is all since the start."""
    if times["p50"] is None:
        return "-"
    star = "" if times["is_recent"] else " *"
    return f"{1000 * times['p50']:,.0f} / {1000 * times['p95']:,.0f} ms{star}"


def _broker(figures: dict[str, Any]) -> str:
    connected = figures["broker_connected"]
    return "none" if connected is None else "connected" if connected else "away"


def _layers(figures: dict[str, Any]) -> str:
    """A bar for each layer that questions ended at."""
    layers: dict[str, int] = figures["exit_layers"]
    most = max(layers.values(), default=0)
    lines = []
    for layer, count in layers.items():
        bar = "█" * max(1, round(BAR_CHARACTERS * count / most))
        lines.append(f"{bar:<{BAR_CHARACTERS}} {layer:>3} {count:>6}")
    return "\n".join(lines)


def _other_outcomes(figures: dict[str, Any]) -> str:
    rates: dict[str, float] = figures["requests_per_second"]
    return _rate(
        sum(rate for outcome, rate in rates.items() if outcome not in ("answered", "busy"))
    )


_FIRST_ROWS: tuple[_Row, ...] = (
    ("status", lambda one: str(one["status"])),
    ("release", lambda one: ", ".join(one["release"])),
    ("broker", _broker),
)
_EDGE_ROWS: tuple[_Row, ...] = (
    *_FIRST_ROWS,
    ("questions/s by edge", lambda one: _rate(one["questions_per_second"]["edge"])),
    ("questions/s by cloud", lambda one: _rate(one["questions_per_second"]["cloud"])),
    ("questions/s failed", lambda one: _rate(one["questions_per_second"]["none"])),
    ("degraded/s", lambda one: _rate(one["degraded_per_second"])),
    ("refused/s", lambda one: _rate(one["refused_per_second"])),
    ("queue", lambda one: _count(one["queue_questions"])),
    ("in flight", lambda one: _count(one["in_flight_requests"])),
    ("outbox", lambda one: _count(one["outbox_pending"])),
    ("answer p50 / p95", lambda one: _times(one["answer_seconds"])),
    ("cloud p50 / p95", lambda one: _times(one["offload_seconds"])),
    ("ended at layer", _layers),
)
_WORKER_ROWS: tuple[_Row, ...] = (
    *_FIRST_ROWS,
    ("answered/s", lambda one: _rate(one["requests_per_second"].get("answered", 0.0))),
    ("busy/s", lambda one: _rate(one["requests_per_second"].get("busy", 0.0))),
    ("otherwise ended/s", _other_outcomes),
    ("queue", lambda one: _count(one["queue_requests"])),
    ("windows waiting", lambda one: _count(one["queue_windows"])),
    ("queue p50 / p95", lambda one: _times(one["queue_seconds"])),
    ("compute p50 / p95", lambda one: _times(one["compute_seconds"])),
    ("tokens/s", lambda one: _count(one["tokens_per_second"])),
)
