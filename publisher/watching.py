"""The rollout service's work: keep the channel whole, go through the stages, pause on trouble.

In: the store, a `Line`, the bounds. Out: orders, renewed manifests, re-asserted chunks, metrics and
log lines. Neighbours: `service` runs it as a process, `keeping` sees to what the broker retains,
`judging` says what is wrong, `sending` and `rollout` do what is to be done.

Everything it knows is in the store and on the broker, so it may be killed at any instant: the next
one goes on. A step looks once and does what is due:

    a new connection, a complaint     -> what is retained is asserted again (fact: a killed
                                         mosquitto has lost it), or mended
    the manifest expires soon         -> renewed with the key, or a warning
    something speaks against it       -> paused, with the reason in the order
    the stage was held, nothing lacks -> the next stage
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from broker.log import SafeLog
from protocol.errors import ProtocolError
from protocol.manifest import Manifest, sign_manifest
from protocol.signing import PublisherTrust, SigningKey
from publisher.errors import PublisherError
from publisher.fleet import Fleet
from publisher.judging import Judgement, edge_state, judge
from publisher.keeping import Keeper
from publisher.line import Line
from publisher.making import Wanted, draft_refresh, keep_signed
from publisher.metrics import PublisherMetrics
from publisher.rollout import Wish, give_order, order_for, publish_order
from publisher.sending import opened, send_release
from publisher.settings import PublisherSettings
from publisher.store import PublisherStore

NOTICE_SECONDS = 3_600.0
_log = SafeLog("elma.publisher")


class Watcher:
    """One channel's rollout. `step` is for one thread, again and again."""

    def __init__(
        self,
        settings: PublisherSettings,
        store: PublisherStore,
        trust: PublisherTrust,
        line: Line,
        metrics: PublisherMetrics,
        *,
        key: SigningKey | None = None,
        stop: threading.Event | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._bounds = settings, settings.rollout
        self._channel = settings.channel
        self._store, self._trust, self._key = store, trust, key
        self._line, self._metrics = line, metrics
        self._wall_clock = wall_clock
        self._keeper = Keeper(
            settings,
            store,
            trust,
            line,
            metrics,
            stop=stop or threading.Event(),
            wall_clock=wall_clock,
        )
        self._noticed_at = float("-inf")
        metrics.connected.set_function(lambda: float(line.session.is_connected))

    def step(self) -> None:
        """Look once, and do what is due. Logs what fails; the next step tries again."""
        if not self._line.is_complete:
            return
        try:
            self._keeper.keep()
            fleet, now = self._line.view.picture(), self._wall_clock()
            judgement = judge(self._store, self._channel, fleet, self._bounds, now)
            self._count(fleet, judgement, now)
            if judgement.manifest is None:
                return
            if not self._mind_expiry(judgement.manifest, fleet, now):
                self._steer(judgement, fleet, now)
        except (PublisherError, ProtocolError) as error:
            self._metrics.failures.inc()
            _log.error("rollout_step_failed", channel=self._channel, error=str(error))

    # -- the manifest ----------------------------------------------------------------------

    def _mind_expiry(self, manifest: Manifest, fleet: Fleet, now: float) -> bool:
        """Whether the manifest was renewed: then what was judged is out of date."""
        left_seconds = manifest.expires - now
        if left_seconds > self._bounds.warn_expiry_seconds:
            return False
        if self._key is None:
            if now - self._noticed_at < NOTICE_SECONDS:
                return False
            self._noticed_at = now
            _log.warning(
                "manifest_expires_soon",
                channel=self._channel,
                version=manifest.version,
                left_seconds=round(left_seconds),
                next_step="elma publish --refresh, or give this service the signing key",
            )
            return False
        wanted = Wanted(self._channel, self._key.key_id, self._bounds.renew_seconds, now)
        with self._store.publishing():
            renewed = draft_refresh(self._store, wanted, fleet, self._trust)
            signed = sign_manifest(renewed, self._key, self._trust.key_list)
            record = keep_signed(self._store, signed, self._trust)
            send_release(self._line, self._store, self._channel, record, self._trust)
            _, order = order_for(self._store, self._channel, None, "renewed", fleet, now)
            publish_order(self._line, self._channel, order)
        _log.info("manifest_renewed", channel=self._channel, version=renewed.version)
        return True

    # -- the rollout -----------------------------------------------------------------------

    def _steer(self, judgement: Judgement, fleet: Fleet, now: float) -> None:
        order = judgement.order
        if order is None or order.paused:
            return
        if judgement.against:
            reason = "; ".join(judgement.against)
            self._give(Wish(paused=True, reason=reason), fleet, now)
            self._metrics.pauses.labels("failures" if judgement.failed else "drift").inc()
            _log.warning(
                "rollout_paused", channel=self._channel, version=order.version, reason=reason
            )
        elif judgement.next_share is not None and not judgement.missing:
            share = judgement.next_share
            reason = f"stage {100 * share:g} % after {now - order.created:.0f} s"
            self._give(Wish(share=share, reason=reason), fleet, now)
            self._metrics.promotions.inc()
            _log.info("rollout_promoted", channel=self._channel, version=order.version, share=share)

    def _give(self, wish: Wish, fleet: Fleet, now: float) -> None:
        _, signed = give_order(self._store, self._channel, wish, fleet, now)
        publish_order(self._line, self._channel, signed)

    # -- metrics ---------------------------------------------------------------------------

    def _count(self, fleet: Fleet, judgement: Judgement, now: float) -> None:
        manifest, metrics = judgement.manifest, self._metrics
        if manifest is None:
            return
        counts = dict.fromkeys(("active", "under_way", "failed", "waiting"), 0)
        for state in fleet.living_edges(now).values():
            counts[edge_state(state, manifest.release)] += 1
        for name, count in counts.items():
            metrics.edges.labels(name).set(count)
        lacking = len(fleet.workers_without(manifest.release))
        metrics.workers.labels("no").set(lacking)
        metrics.workers.labels("yes").set(len(fleet.live_workers()) - lacking)
        order = judgement.order
        metrics.share.set(order.share if order else 0.0)
        metrics.paused.set(float(order is not None and order.paused))
        shown = opened(fleet.manifest, self._trust)
        metrics.version.set(manifest.version)
        metrics.expires.set(shown.expires if shown else manifest.expires)
        previous = manifest.previous.release if manifest.previous else None
        for which, release in (("new", manifest.release), ("old", previous)):
            for (layer, kind), (agreed, total) in (
                fleet.agreement(release).items() if release else ()
            ):
                if total:
                    metrics.agreement.labels(which, str(layer), kind).set(agreed / total)
