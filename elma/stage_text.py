"""The words for a rollout: what is shown, how far a stage is and what it waits for.

In: the documents of `elma.fleet_report`, a picture of the fleet. Out: lines for a person.
Neighbours: `elma rollout`, `elma releases` and `elma publish` print through here.
"""

from __future__ import annotations

from collections.abc import Callable
from math import floor
from typing import Any

import typer

from elma.release_options import clock_time, duration, percent
from protocol.release_messages import edge_fraction
from publisher.fleet import Fleet
from publisher.judging import edges_in_share

SHOWN_NAMES = 10


def print_shown(document: dict[str, Any]) -> None:
    """What the channel shows now, and how far its rollout is."""
    shown, order = document["shown"], document["rollout"]
    if shown is None:
        typer.echo("the broker shows no manifest of this channel that a device would take")
        return
    text = f"the broker shows version {shown['version']}"
    if order is None:
        text += "; no edge was told to take it"
    else:
        text += f"; {percent(order['share'])} of the edges may take it"
        if order["paused"]:
            text += f"; PAUSED: {order['reason'] or 'no reason given'}"
    counts = document["counts"]
    typer.echo(
        f"{text}. Edges: {counts['active']} run it, {counts['under_way']} are on their way, "
        f"{counts['failed']} failed, {counts['waiting']} have another one"
    )


def print_waits(document: dict[str, Any]) -> None:
    """Which stage a rollout is in, whose reports lack, until when, and who takes it further."""
    waits = document["waits"]
    if waits is None:
        return
    typer.echo(
        f"stage {percent(waits['stage'])} since {clock_time(waits['began'])}: "
        f"{_of_known(waits['edges_in_stage'], waits['edges_known'])}"
    )
    for name, what in list(waits["edges_undecided"].items())[:SHOWN_NAMES]:
        typer.echo(f"  {name} {what}")
    left_out = len(waits["edges_undecided"]) - SHOWN_NAMES
    if left_out > 0:
        typer.echo(f"  and {left_out} more; --json lists all")
    for name, what in waits["workers_without"].items():
        typer.echo(f"  worker {name} has not loaded it: {what or 'says nothing of it'}")
    typer.echo(_what_comes_next(waits, document["against"]))
    if not waits["publishers_online"] and waits["next_stage"] is not None:
        typer.echo(
            "no rollout service is connected, so nothing moves by itself: `elma rollout run`, or "
            "`elma rollout stage` by hand"
        )


def describe_stage(
    fleet: Fleet, release: str, share: float, now: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Say how many known edges a share includes, and warn of none; the same as a document."""
    known = fleet.living_edges(now)
    chosen = edges_in_share(known, release, share)
    say(f"{percent(share)} is {_of_known(len(chosen), len(known))}{_names(chosen)}")
    if known and not chosen and share > 0:
        first = min(known, key=lambda name: edge_fraction(name, release))
        say(
            f"warning: no known edge is in this stage, so it proves nothing; {first} is the first "
            f"to join, at {floor(100 * edge_fraction(first, release)) + 1} %"
        )
    return {"edges_known": len(known), "edges_in_stage": len(chosen)}


def _what_comes_next(waits: dict[str, Any], against: list[str]) -> str:
    if waits["is_paused"]:
        return "waits for `elma rollout resume`"
    if waits["next_stage"] is None:
        return "the last stage: no other comes after it"
    then = f"goes on to {percent(waits['next_stage'])}"
    if against:
        return "will be paused, for what speaks against it"
    lacks = []
    if waits["seconds_left"] > 0:
        left = duration(waits["seconds_left"])
        lacks.append(f"until {clock_time(waits['until'])} ({left} more)")
    if any("no edge" in one for one in waits["missing"]):
        lacks.append("for the first edge of the stage that runs it")
    if waits["workers_without"]:
        lacks.append(f"for {', '.join(waits['workers_without'])} to load it")
    return f"waits {', and '.join(lacks)}; then {then}" if lacks else f"waits for nothing; {then}"


def _of_known(count: int, known: int) -> str:
    return f"{count} of {known} known edge{'' if known == 1 else 's'}"


def _names(names: list[str]) -> str:
    if not names or len(names) > SHOWN_NAMES:
        return ""
    return f": {', '.join(names)}"
