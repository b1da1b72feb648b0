"""Rollout orders: which share of the edges may take the channel's release, and whether it pauses.

In: the store, and what is wished. Out: a signed order with the next sequence number, stored before
anybody sees it. Neighbours: `sending` gives the first order of a release, `elma rollout` the
operator's, `watching` those of the stages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from broker.exchange import Publication
from protocol.manifest import Manifest
from protocol.release_messages import (
    MAX_COUNT,
    MAX_REASON_CHARACTERS,
    RolloutOrder,
    SignedRollout,
)
from protocol.topics import RolloutTopic
from publisher.errors import PublisherSettingsError, RolloutError
from publisher.fleet import Fleet
from publisher.line import ACKNOWLEDGE_SECONDS, Line
from publisher.store import ChannelState, PublisherStore

_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*(%?)")


@dataclass(frozen=True)
class Wish:
    """What an order shall say; None keeps what the last order for this release said."""

    share: float | None = None
    paused: bool | None = None
    reason: str = ""


def parse_share(text: str) -> float:
    """ "5%" or "0.05" as 0.05; "100%" and "1" as 1. Raises PublisherSettingsError."""
    match = _SHARE.fullmatch(text.strip())
    if match is not None:
        share = float(match[1]) / (100.0 if match[2] else 1.0)
        if 0.0 <= share <= 1.0:
            return share
    raise PublisherSettingsError(f"{text!r} is no share of the edges; give 5%, 0.05 or 100%")


def parse_stages(texts: Sequence[str]) -> tuple[float, ...]:
    """Shares that grow. Raises PublisherSettingsError."""
    stages = tuple(parse_share(text) for text in texts)
    if not stages or list(stages) != sorted(set(stages)):
        raise PublisherSettingsError("stages must grow, such as 5%,25%,100%")
    return stages


def next_stage(stages: Sequence[float], share: float) -> float | None:
    """The first stage above a share; None after the last."""
    return next((stage for stage in stages if stage > share), None)


def current_order(state: ChannelState, manifest: Manifest) -> RolloutOrder | None:
    """The order in force for the channel's release; None when none was given for this version."""
    order = state.opened_order(manifest.rollout_public)
    if order is None or (order.release, order.version) != (manifest.release, manifest.version):
        return None
    return order


def give_order(
    store: PublisherStore, channel: str, wish: Wish, fleet: Fleet, now: float
) -> tuple[RolloutOrder, SignedRollout]:
    """The next order for the channel's current release, signed and stored, not yet published.

    `fleet` tells of a higher sequence number in the channel, which a lost store would not know.
    Raises RolloutError without a published release, or when another store's key steers it.
    """
    key = store.rollout_key()
    with store.change(channel) as state:
        record = state.current
        if record is None:
            raise RolloutError(f"channel {channel} has no published release in this store")
        manifest = store.manifest(channel, record)
        if manifest.rollout_public != key.public:
            raise RolloutError(
                f"version {manifest.version} names another rollout key than this store has; "
                "use the store that it was published from, or publish a new version"
            )
        last = current_order(state, manifest)
        share = wish.share if wish.share is not None else last.share if last else 0.0
        paused = wish.paused if wish.paused is not None else last.paused if last else False
        number = 1 + max(_number_of(state.order, key.public), _number_of(fleet.order, key.public))
        if number > MAX_COUNT:
            raise RolloutError(
                "somebody has used up the numbers of this store's rollout key; run "
                "`elma rollout rotate-key`, then `elma publish --refresh`"
            )
        order = RolloutOrder(
            channel,
            manifest.release,
            manifest.version,
            number,
            share,
            paused,
            _printable(wish.reason),
            created=now,
            expires=max(manifest.expires, now),
        )
        state.order = order.sign(key)
        state.mark_reach(record, share >= 1.0 and not paused)
        return order, state.order


def order_for(
    store: PublisherStore, channel: str, share: float | None, reason: str, fleet: Fleet, now: float
) -> tuple[RolloutOrder, SignedRollout]:
    """The order of the channel's current release: the last one, or a new one where that is due.

    A version that was ordered keeps its share and its pause, whatever `share` says: publishing it
    again changes nothing. `share` None: what was last ordered for the same content, under whatever
    version, pause included; everybody where nothing was. Raises RolloutError.
    """
    state = store.channel(channel)
    if state.current is None:
        raise RolloutError(f"channel {channel} has no published release in this store")
    manifest = store.manifest(channel, state.current)
    order = current_order(state, manifest)
    if order is not None and state.order is not None:
        return order, state.order
    last = _last_order(store, state)
    if share is not None:
        wish = Wish(share, False, reason)
    elif last is not None and last.release == manifest.release:
        wish = Wish(last.share, last.paused, last.reason or reason)
    else:
        wish = Wish(1.0, False, reason)
    return give_order(store, channel, wish, fleet, now)


def publish_order(line: Line, channel: str, signed: SignedRollout) -> None:
    """Show an order to the channel, retained. Raises UploadFailed."""
    publication = Publication(str(RolloutTopic(channel)), signed.encode(), 1, True)
    line.send([publication], patience_seconds=ACKNOWLEDGE_SECONDS)


def _last_order(store: PublisherStore, state: ChannelState) -> RolloutOrder | None:
    """The last order of this store, whichever of its rollout keys signed it."""
    for record in reversed(state.records):
        order = state.opened_order(store.manifest(state.channel, record).rollout_public)
        if order is not None:
            return order
    return None


def _number_of(order: SignedRollout | None, rollout_public: bytes) -> int:
    """The number of an order, if that key signed it; 0 otherwise."""
    opened = ChannelState("", order=order).opened_order(rollout_public)
    return opened.sequence if opened is not None else 0


def _printable(reason: str) -> str:
    return " ".join(reason.split())[:MAX_REASON_CHARACTERS]
