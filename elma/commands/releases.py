"""`elma releases`: channels, versions, who runs what, and what failed where and why.

Input: the publisher's store, and what the broker retains. Output: tables, or JSON. Neighbours:
`elma.channel_view` gathers, `elma.fleet_report` makes the document; nothing is changed here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from elma.option_groups import spread
from elma.output import JsonOption, print_json, print_table
from elma.release_options import Place, days_left, files_of_the_call

SHOWN_EDGES = 50


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("releases")(releases)


@spread
def releases(
    place: Place,
    offline: Annotated[
        bool, typer.Option("--offline", help="Only what the store knows; ask no broker.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List channels, versions and expiry; which edges run, load or refused what; the workers.

    \b
    First table, a line for each version that was signed here:
      release     the content, by its digest: two versions may have the same
      signed by   the signing key; "expires in": until then devices take the manifest
      state       current: what the channel shows; published: what it showed; signed: not yet shown
    Second table, a line for each edge that was heard of within a week:
      state       active: answers, wants nothing; downloading; verified: proves itself; failed; init
      runs        the release that it answers with, and as which version of the channel
      goes to     the release that it fetches, proves or failed with, and as which version
    Third table, a line for each worker: the releases that it has loaded, is loading, could not
    load, and why.
    """
    from elma.channel_view import channel_view
    from elma.fleet_report import fleet_report, store_report
    from protocol.key_files import load_publisher_public
    from publisher.store import PublisherStore

    settings = place.settings()
    known = PublisherStore.open(settings.store)
    is_named = place.channel is not None
    names = [settings.channel] if is_named else sorted({*known.channels(), settings.channel})
    report: dict[str, Any] = {"channels": {}}
    for name in names:
        document: dict[str, Any] = store_report(known, name)
        if not offline:
            with files_of_the_call():
                trust = load_publisher_public(settings.publisher_public_key_file)
            of_channel = replace(place, channel=name).settings()
            with channel_view(of_channel) as channel:
                document |= fleet_report(channel.fleet, trust, name)
        report["channels"][name] = document
    if as_json:
        print_json(report)
        return
    for name, document in report["channels"].items():
        print_channel(name, document)


def print_channel(name: str, document: dict[str, Any]) -> None:
    """One channel for a person."""
    from elma.stage_text import print_shown

    _print_versions(name, document["versions"])
    if "shown" not in document:
        return
    print_shown(document)
    _print_edges(document["edges"])
    _print_workers(document["workers"])


def _print_versions(channel: str, versions: list[dict[str, Any]]) -> None:
    rows = [
        [
            one["version"],
            one["name"],
            one["release"][:12],
            one["key_id"],
            days_left(one["expires"]),
            "" if one["f1"] is None else f"{one['f1']:.2f}",
            one["state"],
            one["note"],
        ]
        for one in versions
    ]
    columns = ("version", "name", "release", "signed by", "expires in", "F1", "state", "note")
    print_table(columns, rows, f"channel {channel}: versions")


def _print_edges(edges: list[dict[str, Any]]) -> None:
    rows = [
        [
            one["edge"],
            "yes" if one["is_online"] else "no",
            one["state"],
            (one["release"] or "")[:12],
            one["version"],
            (one["target"] or "")[:12],
            one["target_version"],
            one["reason"],
        ]
        for one in edges[:SHOWN_EDGES]
    ]
    columns = (
        "edge",
        "online",
        "state",
        "runs",
        "runs version",
        "goes to",
        "goes to version",
        "reason",
    )
    print_table(columns, rows, f"edges: {len(edges)}")
    if len(edges) > SHOWN_EDGES:
        typer.echo(f"and {len(edges) - SHOWN_EDGES} more; --json lists all")


def _print_workers(workers: list[dict[str, Any]]) -> None:
    rows = [
        [
            one["worker"],
            "yes" if one["is_online"] else "no",
            ", ".join(release[:12] for release in one["loaded"]),
            ", ".join(release[:12] for release in one["loading"]),
            "; ".join(f"{release[:12]}: {why}" for release, why in one["failed"].items()),
        ]
        for one in workers
    ]
    columns = ("worker", "online", "has loaded", "is loading", "could not load")
    print_table(columns, rows, f"workers: {len(workers)}")
