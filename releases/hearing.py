"""Hears what a channel says: subscribes to its two topics, and brings what comes to `Offers`.

In: payloads of the manifest and rollout topics, from the link's thread. Out: offers and orders, and
the reason why a manifest is not believed. Neighbours: `follower` owns it and calls `tend`, `offers`
believes or not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Literal

from broker.errors import BrokerError
from broker.exchange import Subscription
from broker.log import SafeLog
from protocol.topics import manifest_subscription, rollout_subscription
from releases.errors import ReleaseError
from releases.mqtt_transport import Link
from releases.offers import Offers

INBOX_BOUND = 32
REJECTED_REMEMBERED = 64
SUBSCRIBE_AGAIN_SECONDS = 5.0
HEAR_AGAIN_SECONDS = 30.0
"""A clock may be set and a disk may have space again; the broker repeats nothing by itself."""
_log = SafeLog("elma.releases")


class Hearing:
    """The topics of one channel. `put`, `connected` and `is_due_in` are quick, from any thread;
    `tend` is for one. `clock` is monotonic.

    `on_subscribed`: everything that waits for a connection may go on. `on_unbelieved`: hears the
    first failure of each manifest.
    """

    def __init__(
        self,
        link: Link,
        channel: str,
        offers: Offers,
        *,
        clock: Callable[[], float],
        on_subscribed: Callable[[], None],
        on_unbelieved: Callable[[ReleaseError], None],
    ) -> None:
        self._link, self._channel, self._offers, self._clock = link, channel, offers, clock
        self._on_subscribed, self._on_unbelieved = on_subscribed, on_unbelieved
        self._inbox: deque[tuple[Literal["manifest", "rollout"], bytes]] = deque(maxlen=INBOX_BOUND)
        self._subscribe_at: float | None = None
        self._hear_again_at = clock() + HEAR_AGAIN_SECONDS
        self._rejected: deque[int] = deque(maxlen=REJECTED_REMEMBERED)

    def put(self, kind: Literal["manifest", "rollout"], payload: bytes) -> None:
        """Something came."""
        self._inbox.append((kind, payload))

    def connected(self) -> None:
        """The link is connected anew: nothing that was subscribed to still is."""
        self._subscribe_at = self._clock()

    def is_due_in(self) -> float | None:
        """Seconds until `tend` has something to do although nothing came; None for nothing."""
        times = [] if self._subscribe_at is None else [self._subscribe_at]
        if self._offers.is_waiting:
            times.append(self._hear_again_at)
        return min(times) - self._clock() if times else None

    def tend(self) -> None:
        """Subscribe where that is due, and take in what has come."""
        if self._subscribe_at is not None and self._clock() >= self._subscribe_at:
            self._subscribe()
        while self._inbox:
            kind, payload = self._inbox.popleft()
            if kind == "rollout":
                self._offers.hear_order(payload)
            else:
                self._believe(partial(self._offers.hear_manifest, payload), hash(payload))
        if self._clock() >= self._hear_again_at:
            self._hear_again_at = self._clock() + HEAR_AGAIN_SECONDS
            if self._offers.is_waiting:
                self._believe(self._offers.hear_again, None)
        if self._offers.wants_orders_again():
            self._subscribe_at = self._clock()

    def _subscribe(self) -> None:
        # Before, not after: a connection that comes meanwhile asks for it again.
        self._subscribe_at = None
        try:
            for topic in (
                manifest_subscription(self._channel),
                rollout_subscription(self._channel),
            ):
                self._link.subscribe(Subscription(topic))
            self._on_subscribed()
        except BrokerError as error:
            _log.info("release_not_subscribed", why=str(error))
            if self._link.is_connected:
                self._subscribe_at = self._clock() + SUBSCRIBE_AGAIN_SECONDS

    def _believe(self, hear: Callable[[], None], mark: int | None) -> None:
        """Believe a manifest, or say why not, once each; either way what is in use stays."""
        try:
            hear()
        except ReleaseError as error:
            if mark is not None and mark not in self._rejected:
                self._rejected.append(mark)
                _log.warning("release_manifest_refused", reason=error.reason_code, why=str(error))
                self._on_unbelieved(error)
