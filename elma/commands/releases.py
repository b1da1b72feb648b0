"""`elma releases`: channels, versions, who runs what, and what failed where and why.

Input: the publisher's store, and what the broker retains. Output: tables, or JSON. Neighbours:
`publisher.fleet` gathers, `elma.fleet_report` makes the document; nothing is changed here.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from elma.output import JsonOption, print_json, print_table
from elma.release_options import (
    BrokerHostOption,
    BrokerPortOption,
    ChannelOption,
    ConfigOption,
    PublicOption,
    StoreOption,
    days_left,
)

SHOWN_EDGES = 50


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("releases")(releases)


def releases(
    channel: ChannelOption = None,
    store: StoreOption = None,
    publisher_public: PublicOption = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Only what the store knows; ask no broker.")
    ] = False,
    config: ConfigOption = None,
    broker_host: BrokerHostOption = None,
    broker_port: BrokerPortOption = None,
    as_json: JsonOption = False,
) -> None:
    """List channels, versions and expiry; which edges run, load or refused what; the workers."""
    from elma.fleet_report import fleet_report, store_report
    from protocol.key_files import load_publisher_public
    from publisher.line import Line
    from publisher.store import PublisherStore

    settings = publisher_settings_of(
        config, channel, store, publisher_public, broker_host, broker_port
    )
    known = PublisherStore.open(settings.store)
    names = [settings.channel] if channel else sorted({*known.channels(), settings.channel})
    report: dict[str, Any] = {"channels": {}}
    for name in names:
        document: dict[str, Any] = store_report(known, name)
        if not offline:
            trust = load_publisher_public(settings.publisher_public_key_file)
            with Line(settings.broker, name) as line:
                line.wait_ready(settings.broker.connect_timeout_seconds * 3)
                document |= fleet_report(line.view.picture(), trust, name)
        report["channels"][name] = document
    if as_json:
        print_json(report)
        return
    for name, document in report["channels"].items():
        print_channel(name, document)


def publisher_settings_of(*values: Any) -> Any:
    """The settings of options without a key; see `elma.release_options`."""
    from elma.release_options import publisher_settings

    config, channel, store, publisher_public, broker_host, broker_port = values
    return publisher_settings(
        config, channel, store, publisher_public, None, broker_host, broker_port
    )


def print_channel(name: str, document: dict[str, Any]) -> None:
    """One channel for a person."""
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
        for one in document["versions"]
    ]
    columns = ("version", "name", "release", "key", "expires in", "F1", "state", "note")
    print_table(columns, rows, f"channel {name}")
    if "shown" not in document:
        return
    print_shown(document)
    edges = document["edges"]
    shown = [
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
    headings = ("edge", "online", "state", "runs", "version", "target", "version", "reason")
    print_table(headings, shown, f"edges: {len(edges)}")
    if len(edges) > SHOWN_EDGES:
        typer.echo(f"and {len(edges) - SHOWN_EDGES} more; --json lists all")
    workers = [
        [
            one["worker"],
            "yes" if one["is_online"] else "no",
            ", ".join(release[:12] for release in one["loaded"]),
            ", ".join(release[:12] for release in one["loading"]),
            "; ".join(f"{release[:12]}: {why}" for release, why in one["failed"].items()),
        ]
        for one in document["workers"]
    ]
    print_table(
        ("worker", "online", "loaded", "loading", "failed"), workers, f"workers: {len(workers)}"
    )


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
        text += f"; {100 * order['share']:g} % of the edges may take it"
        if order["paused"]:
            text += f"; PAUSED: {order['reason'] or 'no reason given'}"
    counts = document["counts"]
    typer.echo(
        f"{text}. Edges: {counts['active']} run it, {counts['under_way']} are on their way, "
        f"{counts['failed']} failed, {counts['waiting']} have another one"
    )
