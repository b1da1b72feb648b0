"""What a channel offers now, as far as it is believed: a manifest, and the order to take it.

In: payloads of the manifest and rollout topics, from anybody. Out: which release to take next.
Neighbours: `trust` checks manifests, `store` remembers, `follower` reads topics and acts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from broker.log import LineLimit, SafeLog
from protocol.errors import ProtocolError
from protocol.manifest import Manifest, SignedManifest
from protocol.release_messages import RolloutOrder, SignedRollout
from protocol.signing import PublisherTrust
from releases.errors import ExpiredManifest, MalformedRelease, Rollback
from releases.store import ReleaseStore
from releases.trust import TrustState, check_manifest, current_keys, newer_key_list, payload_sha256

ORDERS_WAITING = 16
"""Orders that came before their manifest."""
_log = SafeLog("elma.releases")


@dataclass(frozen=True)
class Offer:
    """A manifest that may be taken."""

    signed: SignedManifest
    manifest: Manifest


@dataclass(frozen=True)
class Target:
    """What to do next: take the offered release, or the one before it, or only note that the
    release in use has a newer manifest."""

    kind: Literal["take", "previous", "refresh"]
    offer: Offer


class Offers:
    """The offers of one channel to one device. For one thread.

    `waits_for_order`: nothing is taken before a rollout order says so (devices, not workers).
    `keeps_previous`: the release before the offered one is wanted too (workers).
    """

    def __init__(
        self,
        store: ReleaseStore,
        publisher: PublisherTrust,
        channel: str,
        *,
        name: str,
        waits_for_order: bool,
        keeps_previous: bool,
        wall_clock: Callable[[], float],
    ) -> None:
        self._store, self._publisher, self._channel, self._name = store, publisher, channel, name
        self._waits_for_order, self._keeps_previous = waits_for_order, keeps_previous
        self._wall_clock = wall_clock
        self._offer: Offer | None = None
        self._order: RolloutOrder | None = None
        self._orders_waiting: deque[SignedRollout] = deque(maxlen=ORDERS_WAITING)
        self._without_previous: set[tuple[str, int]] = set()
        self._lines = LineLimit()

    @property
    def order(self) -> RolloutOrder | None:
        """The order for the offered release."""
        return self._order

    def hear_manifest(self, payload: bytes) -> None:
        """Take in a manifest. Raises ReleaseRejected for one that is not believed."""
        try:
            signed = SignedManifest.decode(payload)
        except ProtocolError as error:
            raise MalformedRelease(f"the manifest does not decode: {error}") from error
        newer = newer_key_list(signed, self._store.trust, self._publisher)
        if newer is not None:
            self._store.save_trust(TrustState(newer, self._store.trust.used))
            self._drop_revoked()
        try:
            manifest = check_manifest(
                signed,
                trust=self._trust_with_offer(),
                publisher=self._publisher,
                channel=self._channel,
                now=self._wall_clock(),
            )
        except ExpiredManifest:
            if self._is_in_use(signed):
                return  # known; its expiry is reported with the release in use
            raise
        if self._offer is None or self._offer.manifest != manifest:
            self._order = None
        self._offer = Offer(signed, manifest)
        self._apply_orders()

    def hear_order(self, payload: bytes) -> None:
        """Take in a rollout order; one for another release waits for its manifest."""
        try:
            self._orders_waiting.append(SignedRollout.decode(payload))
        except ProtocolError as error:
            _log.limited_warning(self._lines, "rollout_order_dropped", why=str(error))
            return
        self._apply_orders()

    def target(self) -> Target | None:
        """What to do next; None for nothing."""
        offer, active = self._offer, self._store.active
        if offer is None:
            return None
        manifest = offer.manifest
        if manifest.release == active:
            return Target("refresh", offer) if not self._is_in_use(offer.signed) else None
        wants = not self._waits_for_order or self._is_ordered()
        is_fresh = manifest.expires > self._wall_clock()
        is_refused = self._store.refusal(manifest.release, manifest.version) is not None
        if is_fresh and wants and not is_refused:
            if self._keeps_previous and self._lacks_previous(manifest):
                return Target("previous", offer)
            return Target("take", offer)
        if is_fresh and active is None and self._may_take_previous(manifest):
            return Target("previous", offer)
        return None

    def give_up_previous(self, manifest: Manifest) -> None:
        """The release before this one cannot be had; go on without it."""
        if manifest.previous is not None:
            self._without_previous.add((manifest.previous.release, manifest.previous.version))

    def check_previous(self, content: bytes, manifest: Manifest) -> Offer:
        """The manifest before `manifest`, from the blob that it names. Raises ReleaseRejected."""
        before = manifest.previous
        try:
            signed = SignedManifest.decode(content)
        except ProtocolError as error:
            raise MalformedRelease(f"the previous manifest does not decode: {error}") from error
        found = check_manifest(
            signed,
            trust=self._store.trust,
            publisher=self._publisher,
            channel=self._channel,
            now=self._wall_clock(),
            is_vouched_for=True,
        )
        if before is None or (found.release, found.version) != (before.release, before.version):
            raise Rollback("the previous manifest is not the one that the current one names")
        return Offer(signed, found)

    def _is_ordered(self) -> bool:
        order = self._order
        return (
            order is not None and order.expires > self._wall_clock() and order.includes(self._name)
        )

    def _apply_orders(self) -> None:
        """Open the orders that wait, with the key that the offered manifest names."""
        if self._offer is None:
            return
        waiting, manifest = list(self._orders_waiting), self._offer.manifest
        self._orders_waiting.clear()
        for signed in waiting:
            try:
                order = signed.open(manifest.rollout_public)
            except ProtocolError as error:
                # Of another release's key, or forged; if its manifest is on the way, it is needed.
                self._orders_waiting.append(signed)
                _log.limited_warning(self._lines, "rollout_order_not_opened", why=str(error))
                continue
            self._apply(order, signed, manifest)

    def _apply(self, order: RolloutOrder, signed: SignedRollout, manifest: Manifest) -> None:
        if order.channel != self._channel:
            return
        if (order.release, order.version) != (manifest.release, manifest.version):
            if order.version > manifest.version:
                self._orders_waiting.append(signed)
            return
        if order.sequence < self._store.order_sequence(order.release):
            _log.limited_warning(
                self._lines, "rollout_order_old", release=order.release, sequence=order.sequence
            )
            return
        self._store.note_order(order.release, order.sequence)
        self._order = order

    def _lacks_previous(self, manifest: Manifest) -> bool:
        before = manifest.previous
        return (
            before is not None
            and self._may_take_previous(manifest)
            and self._store.installed(before.release) is None
        )

    def _may_take_previous(self, manifest: Manifest) -> bool:
        before = manifest.previous
        return (
            before is not None
            and before.release not in (self._store.active, manifest.release)
            and (before.release, before.version) not in self._without_previous
            and self._store.refusal(before.release, before.version) is None
        )

    def _is_in_use(self, signed: SignedManifest) -> bool:
        """Whether this very manifest is the one of the release in use."""
        used = self._store.trust.used.get((self._channel, signed.key_id))
        return used is not None and used.sha256 == payload_sha256(signed)

    def _trust_with_offer(self) -> TrustState:
        """While the process runs, an offer does not go back either, though it was never used."""
        trust, offer = self._store.trust, self._offer
        return trust if offer is None else trust.with_used(offer.signed, offer.manifest)

    def _drop_revoked(self) -> None:
        """Forget an offer whose key may not sign any more."""
        if self._offer is None:
            return
        keys = current_keys(self._store.trust, self._publisher)
        if self._offer.signed.key_id not in keys.keys:
            _log.warning("release_offer_revoked", release=self._offer.manifest.release)
            self._offer = self._order = None
