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
from releases.errors import (
    ExpiredManifest,
    MalformedRelease,
    NotEnoughSpace,
    ReleaseError,
    Rollback,
    StoreError,
)
from releases.store import ReleaseStore
from releases.trust import (
    TrustState,
    check_manifest,
    current_keys,
    newer_key_list,
    payload_sha256,
    signer_of,
)

ORDERS_WAITING = 16
"""Orders that came before their manifest."""
_log = SafeLog("elma.releases")


@dataclass(frozen=True)
class Offer:
    """A manifest that may be taken, and the public key that signed it."""

    signed: SignedManifest
    manifest: Manifest
    signer: bytes

    @property
    def sha256(self) -> str:
        """What trials and refusals name it by."""
        return payload_sha256(self.signed)


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
        self._has_lost_orders = self._wants_orders = False
        self._unbelieved: bytes | None = None
        self._without_previous: set[tuple[str, int]] = set()
        self._lines = LineLimit()

    @property
    def order(self) -> RolloutOrder | None:
        """The order for the offered release."""
        return self._order

    def hear_manifest(self, payload: bytes) -> None:
        """Take in a manifest. Raises ReleaseError for one that is not believed; `hear_again` tries
        the last one once more whose failure may have been this machine's: its clock, its disk."""
        try:
            self._believe(payload)
        except (ExpiredManifest, NotEnoughSpace, StoreError):
            self._unbelieved = payload
            raise
        self._unbelieved = None
        self._apply_orders()

    def hear_again(self) -> None:
        """What could not be believed or remembered, once more. Raises as `hear_manifest`."""
        payload, self._unbelieved = self._unbelieved, None
        if payload is not None:
            self.hear_manifest(payload)
        else:
            self._apply_orders()

    @property
    def is_waiting(self) -> bool:
        """Whether `hear_again` may change something."""
        return self._unbelieved is not None or bool(self._orders_waiting)

    def wants_orders_again(self) -> bool:
        """Whether the order for a manifest that has just come may have been pushed out by others;
        says so once. The broker has it retained."""
        wants, self._wants_orders = self._wants_orders and self._order is None, False
        return wants

    def _believe(self, payload: bytes) -> None:
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
            self._wants_orders, self._has_lost_orders = self._has_lost_orders, False
        self._offer = Offer(signed, manifest, self._signer_of(signed))

    def hear_order(self, payload: bytes) -> None:
        """Take in a rollout order; one for another release waits for its manifest."""
        try:
            self._keep_waiting(SignedRollout.decode(payload))
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
        is_refused = self._store.refusal(offer.sha256) is not None
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
        return Offer(signed, found, self._signer_of(signed))

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
                self._keep_waiting(signed)
                _log.limited_warning(self._lines, "rollout_order_not_opened", why=str(error))
                continue
            self._apply(order, signed, manifest)

    def _apply(self, order: RolloutOrder, signed: SignedRollout, manifest: Manifest) -> None:
        if order.channel != self._channel:
            return
        if (order.release, order.version) != (manifest.release, manifest.version):
            if order.version > manifest.version:
                self._keep_waiting(signed)
            return
        if order.sequence < self._store.order_sequence(order.release, manifest.rollout_public):
            _log.limited_warning(
                self._lines, "rollout_order_old", release=order.release, sequence=order.sequence
            )
            return
        if self._order is not None and order.sequence < self._order.sequence:
            return
        self._order = order
        try:
            self._store.note_order(order.release, manifest.rollout_public, order.sequence)
        except ReleaseError as error:  # it counts, and is written down when the disk can have it
            self._keep_waiting(signed)
            _log.limited_warning(self._lines, "rollout_order_not_saved", why=str(error))

    def _keep_waiting(self, signed: SignedRollout) -> None:
        if len(self._orders_waiting) == ORDERS_WAITING:
            self._has_lost_orders = True
        self._orders_waiting.append(signed)

    def _lacks_previous(self, manifest: Manifest) -> bool:
        before = manifest.previous
        return (
            before is not None
            and self._may_take_previous(manifest)
            and self._store.installed.find(before.release) is None
        )

    def _may_take_previous(self, manifest: Manifest) -> bool:
        before = manifest.previous
        return (
            before is not None
            and before.release not in (self._store.active, manifest.release)
            and (before.release, before.version) not in self._without_previous
        )

    def _is_in_use(self, signed: SignedManifest) -> bool:
        """Whether this very manifest is the one of the release in use."""
        return self._store.trust.is_used(self._channel, signed)

    def _signer_of(self, signed: SignedManifest) -> bytes:
        return signer_of(signed, self._store.trust, self._publisher)

    def _trust_with_offer(self) -> TrustState:
        """While the process runs, an offer does not go back either, though it was never used."""
        trust, offer = self._store.trust, self._offer
        if offer is None:
            return trust
        return trust.with_used(offer.signed, offer.manifest, offer.signer)

    def _drop_revoked(self) -> None:
        """Forget an offer whose key may not sign any more."""
        if self._offer is None:
            return
        keys = current_keys(self._store.trust, self._publisher)
        if self._offer.signer not in keys.keys.values():
            _log.warning("release_offer_revoked", release=self._offer.manifest.release)
            self._offer = self._order = None
