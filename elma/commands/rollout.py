"""`elma rollout`: shows and steers which share of the edges takes the channel's release.

    elma rollout status
    elma rollout pause --reason "phones of type X answer slowly"
    elma rollout resume
    elma rollout stage 25%
    elma rollout run --config publisher.toml      the service that goes through the stages

Input: the publisher's store with its rollout key, the broker. Output: a new signed order, or a
report. The signing key is not needed for any of this. Neighbours: `publisher.rollout` makes orders,
`publisher.watching` is the service.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from elma.output import JsonOption, configure_logging, print_json
from elma.release_options import (
    BrokerHostOption,
    BrokerPortOption,
    ChannelOption,
    ConfigOption,
    KeyOption,
    PublicOption,
    StoreOption,
    publisher_settings,
)

app = typer.Typer(help="Show and steer who takes a release.", no_args_is_help=True)


@app.command()
def status(
    channel: ChannelOption = None,
    store: StoreOption = None,
    publisher_public: PublicOption = None,
    config: ConfigOption = None,
    broker_host: BrokerHostOption = None,
    broker_port: BrokerPortOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how far the rollout is, and what speaks against going on."""
    from elma.commands.releases import print_shown
    from elma.fleet_report import fleet_report
    from protocol.key_files import load_publisher_public
    from publisher.judging import judge
    from publisher.line import Line
    from publisher.store import PublisherStore

    settings = publisher_settings(
        config, channel, store, publisher_public, None, broker_host, broker_port
    )
    trust = load_publisher_public(settings.publisher_public_key_file)
    known = PublisherStore.open(settings.store)
    with Line(settings.broker, settings.channel) as line:
        line.wait_ready(settings.broker.connect_timeout_seconds * 3)
        fleet = line.view.picture()
    report = fleet_report(fleet, trust, settings.channel)
    report["against"] = judge(known, settings.channel, fleet, settings.rollout, time.time()).against
    if as_json:
        print_json(report)
        return
    print_shown(report)
    for reason in report["against"]:
        typer.echo(f"against going on: {reason}")
    for edge in report["edges"]:
        if edge["state"] == "failed":
            typer.echo(f"failed: {edge['edge']}: {edge['reason']}")


@app.command()
def pause(
    reason: Annotated[str, typer.Option(help="For people; edges and `status` show it.")] = "",
    channel: ChannelOption = None,
    store: StoreOption = None,
    publisher_public: PublicOption = None,
    config: ConfigOption = None,
    broker_host: BrokerHostOption = None,
    broker_port: BrokerPortOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let no further edge take the release; those that have it keep it."""
    settings = publisher_settings(
        config, channel, store, publisher_public, None, broker_host, broker_port
    )
    _order(settings, {"paused": True, "reason": reason or "paused by hand"}, as_json)


@app.command()
def resume(
    channel: ChannelOption = None,
    store: StoreOption = None,
    publisher_public: PublicOption = None,
    config: ConfigOption = None,
    broker_host: BrokerHostOption = None,
    broker_port: BrokerPortOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on after a pause; the failures that are known now do not pause it again."""
    settings = publisher_settings(
        config, channel, store, publisher_public, None, broker_host, broker_port
    )
    _order(settings, {"paused": False, "reason": "resumed by hand"}, as_json, excuse=True)


@app.command()
def stage(
    share: Annotated[str, typer.Argument(help="5%, 0.05, 100%: the edges that may take it.")],
    channel: ChannelOption = None,
    store: StoreOption = None,
    publisher_public: PublicOption = None,
    config: ConfigOption = None,
    broker_host: BrokerHostOption = None,
    broker_port: BrokerPortOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set the share of the edges that may take the release."""
    from publisher.rollout import parse_share

    settings = publisher_settings(
        config, channel, store, publisher_public, None, broker_host, broker_port
    )
    wish = {"share": parse_share(share), "reason": f"stage {share} by hand"}
    _order(settings, wish, as_json)


@app.command("rotate-key")
def rotate_key(
    store: StoreOption = None,
    publisher_public: PublicOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new key for rollout orders, because the one in the store may be known to others."""
    from publisher.store import PublisherStore

    settings = publisher_settings(config, None, store, publisher_public)
    key = PublisherStore.open(settings.store).rotate_rollout_key()
    if as_json:
        print_json({"fingerprint": key.fingerprint})
        return
    typer.echo(f"rollout orders are signed by {key.fingerprint} from the next version on")
    typer.echo("now run `elma publish --refresh` for each channel; it keeps share and pause")


@app.command()
def run(
    context: typer.Context,
    stages: Annotated[
        str | None, typer.Option(help="Shares that grow. Default: 5%,25%,100%.")
    ] = None,
    hold_seconds: Annotated[
        float | None, typer.Option(min=0, help="How long each stage lasts. Default: an hour.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Serve /metrics and /healthz there; 0 takes a free one.")
    ] = None,
    channel: ChannelOption = None,
    store: StoreOption = None,
    publisher_public: PublicOption = None,
    key: KeyOption = None,
    config: ConfigOption = None,
    broker_host: BrokerHostOption = None,
    broker_port: BrokerPortOption = None,
) -> None:
    """Keep the channel on the broker, take its releases through the stages, pause on trouble.

    Runs until SIGTERM. With --key it renews the manifest before it expires; without, it warns.
    """
    from publisher.service import run_service
    from publisher.settings import load_settings

    _log_as_a_service(context)
    overrides: dict[str, Any] = {
        "channel": channel,
        "store": store,
        "publisher_public_key_file": publisher_public,
        "key_file": key,
        "rollout": {
            "stages": stages.split(",") if stages else None,
            "hold_seconds": hold_seconds,
        },
        "http": {"port": port},
        "broker": {"host": broker_host, "port": broker_port},
    }
    run_service(load_settings(config, overrides))


def _order(settings: Any, wish: dict[str, Any], as_json: bool, *, excuse: bool = False) -> None:
    """Give, publish and print the next order."""
    from protocol.key_files import load_publisher_public
    from publisher.judging import excuse_failures
    from publisher.line import Line
    from publisher.rollout import Wish, give_order, publish_order
    from publisher.sending import refuse_if_taken
    from publisher.store import PublisherStore

    known = PublisherStore.open(settings.store)
    trust = load_publisher_public(settings.publisher_public_key_file)
    with Line(settings.broker, settings.channel) as line:
        line.wait_ready(settings.broker.connect_timeout_seconds * 3)
        fleet = line.view.picture()
        record = known.channel(settings.channel).current
        if record is not None:
            manifest = known.manifest(settings.channel, record)
            refuse_if_taken(known, settings.channel, fleet, trust, manifest)
        if excuse:
            excuse_failures(known, settings.channel, fleet)
        order, signed = give_order(known, settings.channel, Wish(**wish), fleet, time.time())
        publish_order(line, settings.channel, signed)
    if as_json:
        print_json(vars(order))
        return
    state = "paused" if order.paused else "running"
    typer.echo(
        f"version {order.version} of channel {order.channel}: {100 * order.share:g} % of the "
        f"edges, {state} (order {order.sequence})"
    )


def _log_as_a_service(context: typer.Context) -> None:
    """This one verb of the group is a service: it tells what it does unless told otherwise."""
    chosen = context.find_root().params
    if chosen.get("log_level") is None:
        is_json = str(chosen.get("log_format", "")) == "json"
        configure_logging("info", json_lines=is_json, in_background=True)
