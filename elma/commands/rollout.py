"""`elma rollout`: shows and steers which share of the edges takes the channel's release.

    elma rollout status
    elma rollout pause --reason "phones of type X answer slowly"
    elma rollout resume
    elma rollout stage 25%
    elma rollout run --config publisher.toml      the service that goes through the stages

Input: the publisher's store with its rollout key; the broker, or the service of this machine.
Output: a new signed order, or a report. The signing key is not needed for any of this. Neighbours:
`publisher.rollout` makes orders, `publisher.watching` is the service, `elma.channel_view` the way
to the channel, `elma.stage_text` the words.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from elma.log_form import LogForm
from elma.option_groups import spread
from elma.output import JsonOption, configure_logging, print_json, print_status
from elma.release_options import (
    ConfigOption,
    KeyOption,
    Place,
    PublicOption,
    StoreOption,
    files_of_the_call,
    percent,
)

app = typer.Typer(help="Show and steer who takes a release.", no_args_is_help=True)


@app.command()
@spread
def status(place: Place, as_json: JsonOption = False) -> None:
    """Say how far the rollout is, what it waits for, and what speaks against going on."""
    from elma.channel_view import channel_view
    from elma.fleet_report import fleet_report, waits_of
    from elma.stage_text import print_shown, print_waits
    from publisher.judging import judge
    from publisher.store import PublisherStore

    settings = place.settings()
    trust = _trust_of(settings.publisher_public_key_file)
    known = PublisherStore.open(settings.store)
    with channel_view(settings) as channel:
        fleet, bounds, told_by = channel.fleet, channel.rollout, channel.told_by
    now = time.time()
    judgement = judge(known, settings.channel, fleet, bounds, now)
    report = fleet_report(fleet, trust, settings.channel)
    report |= {
        "told_by": told_by,
        "against": judgement.against,
        "waits": waits_of(judgement, fleet, now),
    }
    if as_json:
        print_json(report)
        return
    print_shown(report)
    print_waits(report)
    for reason in report["against"]:
        typer.echo(f"against going on: {reason}")
    for edge in report["edges"]:
        if edge["state"] == "failed":
            typer.echo(f"failed: {edge['edge']}: {edge['reason']}")


@app.command()
@spread
def pause(
    place: Place,
    reason: Annotated[str, typer.Option(help="For people; edges and `status` show it.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Let no further edge take the release; those that have it keep it."""
    _order(place.settings(), {"paused": True, "reason": reason or "paused by hand"}, as_json)


@app.command()
@spread
def resume(place: Place, as_json: JsonOption = False) -> None:
    """Go on after a pause; the failures that are known now do not pause it again."""
    wish = {"paused": False, "reason": "resumed by hand"}
    _order(place.settings(), wish, as_json, excuse=True)


@app.command()
@spread
def stage(
    share: Annotated[str, typer.Argument(help="5%, 0.05, 100%: the edges that may take it.")],
    place: Place,
    as_json: JsonOption = False,
) -> None:
    """Set the share of the edges that may take the release.

    Says before it how many of the known edges that are: a hash of an edge's name and the release
    decides, so that of a few edges a small share may be none.
    """
    from publisher.rollout import parse_share

    wish = {"share": parse_share(share), "reason": f"stage {share} by hand"}
    _order(place.settings(), wish, as_json)


@app.command("rotate-key")
def rotate_key(
    store: StoreOption = None,
    publisher_public: PublicOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new key for rollout orders, because the one in the store may be known to others."""
    from publisher.store import PublisherStore

    place = Place(store=store, publisher_public=publisher_public, config=config)
    key = PublisherStore.open(place.settings().store).rotate_rollout_key()
    if as_json:
        print_json({"fingerprint": key.fingerprint})
        return
    typer.echo(f"rollout orders are signed by {key.fingerprint} from the next version on")
    typer.echo("now run `elma publish --refresh` for each channel; it keeps share and pause")


@app.command()
@spread
def run(
    context: typer.Context,
    place: Place,
    stages: Annotated[
        str | None, typer.Option(help="Shares that grow.", show_default="5%,25%,100%")
    ] = None,
    hold_seconds: Annotated[
        float | None, typer.Option(min=0, help="How long each stage lasts.", show_default="an hour")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Serve /metrics and /healthz there; 0 takes a free one.")
    ] = None,
    key: KeyOption = None,
) -> None:
    """Keep the channel on the broker, take its releases through the stages, pause on trouble.

    Runs until SIGTERM. With --key it renews the manifest before it expires; without, it warns.
    """
    from publisher.service import run_service

    _log_as_a_service(context)
    rollout = {"stages": stages.split(",") if stages else None, "hold_seconds": hold_seconds}
    settings = place.settings(key, rollout=rollout, http={"port": port})
    with files_of_the_call():
        run_service(settings)


def _order(settings: Any, wish: dict[str, Any], as_json: bool, *, excuse: bool = False) -> None:
    """Give, publish and print the next order."""
    from elma.channel_view import channel_view
    from elma.stage_text import describe_stage
    from publisher.judging import excuse_failures
    from publisher.rollout import Wish, give_order
    from publisher.sending import refuse_if_taken
    from publisher.store import PublisherStore

    known = PublisherStore.open(settings.store)
    trust = _trust_of(settings.publisher_public_key_file)
    report: dict[str, Any] = {}
    with channel_view(settings) as channel:
        fleet, now = channel.fleet, time.time()
        record = known.channel(settings.channel).current
        if record is not None:
            manifest = known.manifest(settings.channel, record)
            refuse_if_taken(known, settings.channel, fleet, trust, manifest)
            if wish.get("share") is not None:
                report = describe_stage(fleet, record.release, wish["share"], now, print_status)
        if excuse:
            excuse_failures(known, settings.channel, fleet)
        order, signed = give_order(known, settings.channel, Wish(**wish), fleet, now)
        channel.show(signed)
    if as_json:
        print_json({**vars(order), **report})
        return
    state = "paused" if order.paused else "running"
    typer.echo(
        f"version {order.version} of channel {order.channel}: {percent(order.share)} of the "
        f"edges, {state} (order {order.sequence})"
    )


def _trust_of(path: Path) -> Any:
    from protocol.key_files import load_publisher_public

    with files_of_the_call():
        return load_publisher_public(path)


def _log_as_a_service(context: typer.Context) -> None:
    """This one verb of the group is a service: it tells what it does unless told otherwise."""
    chosen = context.find_root().params
    if chosen.get("log_level") is None:
        form = LogForm.of(chosen.get("log_format"), sys.stderr, os.environ)
        configure_logging("info", form, in_background=True)
