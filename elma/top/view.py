"""The figures as tables for a terminal of 80 columns: a row for each process.

Input: what `figures.describe` made, and who was silent. Output: something that rich can draw. What
is wrong comes first, for a small terminal shows the beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from elma.top.look import Silence

BAR_CHARACTERS = 10
DIGEST_CHARACTERS = 12
NAME_CHARACTERS = 12
OLD_REPORT_SECONDS = 10.0
_Column = tuple[str, Callable[[dict[str, Any]], str]]


def draw(
    figures: Sequence[dict[str, Any]], silent: Sequence[Silence], heading: str = ""
) -> RenderableType:
    """What is wrong, one table of edges, one of workers, and who runs which release."""
    parts: list[RenderableType] = [Text(heading, style="dim")] if heading else []
    parts += [Text(_why(one), style="red") for one in silent]
    for one in figures:
        parts += [Text(f"{_name(one)}: {problem}", style="red") for problem in one["problems"]]
    for kind, columns in (("edge", _EDGE_COLUMNS), ("worker", _WORKER_COLUMNS)):
        chosen = [one for one in figures if one["kind"] == kind]
        gone = [one for one in silent if one.kind == kind]
        if chosen or gone:
            parts += ["", _table(kind, chosen, gone, columns)]
        if kind == "edge" and chosen:
            parts.append(_layers(chosen))
    parts += _releases(figures)
    if figures:
        parts.append(Text(f"times in milliseconds{_star_means(figures)}", style="dim"))
    return Group(*parts)


def _table(
    kind: str,
    chosen: Sequence[dict[str, Any]],
    gone: Sequence[Silence],
    columns: Sequence[_Column],
) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(f"\n{kind}", overflow="ellipsis", no_wrap=True, max_width=NAME_CHARACTERS)
    table.add_column("\nstate", no_wrap=True)
    for label, _ in columns:
        table.add_column(label, justify="right", no_wrap=True)
    for one in chosen:
        state, style = _state(one)
        cells = (Text(cell(one)) for _, cell in columns)
        table.add_row(Text(_name(one)), Text(state, style=style), *cells)
    for silence in gone:
        table.add_row(Text(silence.name), Text(f"silent {_age(silence.seconds)}", style="red"))
    return table


def _state(figures: dict[str, Any]) -> tuple[str, str]:
    """What somebody who looks for trouble should see of a process, and its colour."""
    if figures["status"] not in ("ok", ""):
        return figures["status"], "red"
    if figures["broker_connected"] is False:
        return "no broker", "red"
    if figures.get("is_draining"):
        return "leaving", "yellow"
    age = figures["reported_seconds_ago"]
    if age is not None and age > OLD_REPORT_SECONDS:
        return f"{_age(age)} ago", "yellow"
    return "ok", "green"


def _why(silence: Silence) -> str:
    who = silence.url if silence.seconds is None else f"{silence.name} ({silence.url})"
    since = "" if silence.seconds is None else f" for {_age(silence.seconds)}"
    return f"{who}: {silence.why}{since}"


def _name(figures: dict[str, Any]) -> str:
    return str(figures["name"] or figures["url"])


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _rate(value: float) -> str:
    return f"{value:,.1f}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _times(times: dict[str, Any]) -> str:
    """`34/120`; a star where nothing new came and it is all since the start."""
    if times["p50"] is None:
        return "-"
    star = "" if times["is_recent"] else "*"
    return f"{1000 * times['p50']:,.0f}/{1000 * times['p95']:,.0f}{star}"


def _star_means(figures: Sequence[dict[str, Any]]) -> str:
    """What a star behind a time means, where there is one."""
    found = (value for one in figures for key, value in one.items() if key.endswith("_seconds"))
    times = [one for one in found if isinstance(one, dict) and one.get("p50") is not None]
    has_star = any(not one["is_recent"] for one in times)
    return "; * since the process started, for nothing came lately" if has_star else ""


def _layers(edges: Sequence[dict[str, Any]]) -> Text:
    """The shares of the layers that questions ended at, over all edges."""
    counts: dict[str, int] = {}
    for one in edges:
        for layer, count in one["exit_layers"].items():
            counts[layer] = counts.get(layer, 0) + count
    total = sum(counts.values())
    shares = [
        f"{layer} {'█' * round(BAR_CHARACTERS * count / total)}{count / total:.0%}"
        for layer, count in sorted(counts.items(), key=lambda item: float(item[0].strip(">")))
    ]
    return Text(f"ended at layer: {'  '.join(shares) or 'none yet'}")


def _releases(figures: Sequence[dict[str, Any]]) -> list[Text]:
    """A line for each release, and who runs it."""
    holders: dict[str, list[str]] = {}
    for one in figures:
        for release in one["release"]:
            holders.setdefault(release[:DIGEST_CHARACTERS], []).append(_name(one))
    return [Text(f"release {digest}: {', '.join(names)}") for digest, names in holders.items()]


def _failed(figures: dict[str, Any]) -> str:
    return _rate(figures["questions_per_second"]["none"] + figures["refused_per_second"])


def _other_outcomes(figures: dict[str, Any]) -> str:
    rates: dict[str, float] = figures["requests_per_second"]
    return _rate(
        sum(rate for outcome, rate in rates.items() if outcome not in ("answered", "busy"))
    )


_EDGE_COLUMNS: tuple[_Column, ...] = (
    ("edge\n/s", lambda one: _rate(one["questions_per_second"]["edge"])),
    ("cloud\n/s", lambda one: _rate(one["questions_per_second"]["cloud"])),
    ("degr.\n/s", lambda one: _rate(one["degraded_per_second"])),
    ("fail.\n/s", _failed),
    ("\nwait", lambda one: _count(one["queue_questions"])),
    ("\nsent", lambda one: _count(one["in_flight_requests"])),
    ("out-\nbox", lambda one: _count(one["outbox_pending"])),
    ("answer\np50/p95", lambda one: _times(one["answer_seconds"])),
    ("cloud\np50/p95", lambda one: _times(one["offload_seconds"])),
)
_WORKER_COLUMNS: tuple[_Column, ...] = (
    ("answers\n/s", lambda one: _rate(one["requests_per_second"].get("answered", 0.0))),
    ("busy\n/s", lambda one: _rate(one["requests_per_second"].get("busy", 0.0))),
    ("other\n/s", _other_outcomes),
    ("\nqueue", lambda one: _count(one["queue_requests"])),
    ("win-\ndows", lambda one: _count(one["queue_windows"])),
    ("queue\np50/p95", lambda one: _times(one["queue_seconds"])),
    ("compute\np50/p95", lambda one: _times(one["compute_seconds"])),
    ("tokens\n/s", lambda one: _count(one["tokens_per_second"])),
)
