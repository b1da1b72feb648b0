"""A channel as a command sees it: by way of the rollout service of this machine, or at the broker.

In: the publisher's settings. Out: a picture of the fleet, and a way to show a new order. Where the
service runs beside the store it is asked, for it has the broker's account already, and orders that
lie in the store are shown by it. Neighbours: `publisher.beside`, `publisher.line`; the verbs that
only read or steer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from elma.output import CommandError, print_status
from protocol.release_messages import SignedRollout
from publisher.beside import Heard, account_of, hear_service
from publisher.fleet import Fleet
from publisher.line import Line
from publisher.rollout import publish_order
from publisher.settings import PublisherSettings, RolloutSettings

POLL_SECONDS = 0.2
SHOW_SECONDS = 30.0
"""The service looks every few seconds, and may be sending a whole release meanwhile."""


class ChannelView(Protocol):
    """What a command needs of a channel. `told_by`: the broker, or the service."""

    told_by: str
    fleet: Fleet
    rollout: RolloutSettings

    def show(self, order: SignedRollout) -> None:
        """Let the channel have an order that lies in the store. Raises UploadFailed."""


@dataclass
class BrokerView:
    """Over a line of our own."""

    line: Line
    channel: str
    fleet: Fleet
    rollout: RolloutSettings
    told_by: str = "the broker"

    def show(self, order: SignedRollout) -> None:
        """Publish it."""
        publish_order(self.line, self.channel, order)


@dataclass
class ServiceView:
    """As the service of this machine sees it."""

    settings: PublisherSettings
    fleet: Fleet
    rollout: RolloutSettings
    told_by: str

    def show(self, order: SignedRollout) -> None:
        """The service finds it in the store; wait until the broker has it."""
        end = time.monotonic() + SHOW_SECONDS
        while time.monotonic() < end:
            heard = hear_service(self.settings.store, self.settings.channel)
            shown = heard.fleet.order if heard is not None and heard.is_connected else None
            if shown is not None and shown.encode() == order.encode():
                return
            time.sleep(POLL_SECONDS)
        print_status(
            f"warning: {self.told_by} has not shown the order within {SHOW_SECONDS:g} seconds; it "
            "lies in the store and is shown as soon as the service can"
        )


@contextmanager
def channel_view(settings: PublisherSettings) -> Iterator[ChannelView]:
    """The channel of these settings. Raises UploadFailed, PublisherStoreError, CommandError."""
    patience_seconds = 3 * settings.broker.connect_timeout_seconds
    heard = _hear_connected(settings, patience_seconds)
    if heard is not None:
        told_by = f"the rollout service of this machine (process {heard.pid})"
        yield ServiceView(settings, heard.fleet, heard.rollout, told_by)
        return
    with Line(settings.broker, settings.channel) as line:
        line.wait_ready(patience_seconds)
        fleet = without_publisher(line.view.picture(), line.identity)
        yield BrokerView(line, settings.channel, fleet, settings.rollout)


def _is_in_our_way(heard: Heard, settings: PublisherSettings) -> bool:
    """Whether a service is at the broker that is meant. The same account at what looks like another
    one may be the same broker by another name."""
    account = account_of(settings)
    return heard.address == settings.broker.address or (
        account is not None and heard.account == account
    )


def without_publisher(fleet: Fleet, name: str) -> Fleet:
    """A picture without our own presence."""
    others = fleet.present.get("publisher", frozenset()) - {name}
    return replace(fleet, present={**fleet.present, "publisher": others})


def _hear_connected(settings: PublisherSettings, patience_seconds: float) -> Heard | None:
    """What the service of this machine says once it is connected; None without a service, and for
    one at another broker."""
    end = time.monotonic() + patience_seconds
    while True:
        heard = hear_service(settings.store, settings.channel)
        if heard is None or not _is_in_our_way(heard, settings):
            return None
        if heard.is_connected:
            return heard
        if time.monotonic() >= end:
            why = f" ({heard.failure})" if heard.failure else ""
            raise CommandError(
                f"the rollout service of this machine (process {heard.pid}) has no connection to "
                f"broker {settings.broker.address}{why}; see its log, or stop it and try again"
            )
        time.sleep(POLL_SECONDS)
