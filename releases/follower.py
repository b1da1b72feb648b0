"""Follows a channel: hears of releases, has them fetched and verified, hands them over, remembers.

In: deliveries of the manifest, rollout and blob topics; what the device was enrolled with. Out: a
`Candidate` for `adopt`, `Progress` for `report`, and a store that says what is in use. Used by edge
and worker alike. Neighbours: `hearing` reads the topics, `offers` decides what to take, `taking`
takes it, `retries` says when again, `reporting` tells.

One thread, "elma-releases", does all work; everything else only hands over and wakes it.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from broker.exchange import Delivery
from broker.log import SafeLog
from protocol.errors import ProtocolError, TopicError
from protocol.key_files import load_publisher_public
from protocol.topics import (
    BlobTopic,
    ManifestTopic,
    RolloutTopic,
    parse_topic,
)
from releases.errors import FetchFailed, FetchInterrupted, ReleaseError, ReleaseRejected
from releases.fetching import ChunkFetcher, FetchRules
from releases.hearing import Hearing
from releases.installing import Installer
from releases.mqtt_transport import Link, MqttTransport
from releases.offers import Offers, Target
from releases.pacing import Pacer
from releases.progress import Candidate, Progress
from releases.reporting import Reporter
from releases.retries import RETRY_SECONDS, Retries
from releases.settings import FollowSettings
from releases.store import ReleaseStore
from releases.taking import ReleaseTaker

__all__ = ["Candidate", "Link", "Progress", "ReleaseFollower"]

IDLE_SECONDS = 30.0
STOP_SECONDS = 30.0
_log = SafeLog("elma.releases")
_OURS = ("elma/v1/model/", "elma/v1/blob/")


class ReleaseFollower:
    """Keeps a store at what its channel offers. `start` and `stop` once each.

    `name`: whose share of a rollout counts. `waits_for_order`: take nothing before a rollout order
    (devices). `keeps_previous`: want the release before the offered one too, and remove none
    (workers: whoever uses the store removes). `known_folders`: model folders beside the store whose
    tensors need not be fetched. `adopt`: prove a candidate and take it into use; returns when it
    is, raises ReleaseRejected to refuse it for good; called on the follower's thread. `report`:
    told every change; quick. `is_busy`: questions wait for the cloud, leave them the link.
    `on_fetched`: hears the bytes of each chunk that came. `retry_seconds`: first and longest wait
    after a failure.
    """

    def __init__(
        self,
        link: Link,
        store: ReleaseStore,
        settings: FollowSettings,
        publisher_file: Path,
        *,
        name: str,
        waits_for_order: bool,
        keeps_previous: bool,
        known_folders: Sequence[Path] = (),
        adopt: Callable[[Candidate], None],
        report: Callable[[Progress], None],
        is_busy: Callable[[], bool] = lambda: False,
        on_fetched: Callable[[int], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        fetch_rules: FetchRules | None = None,
        retry_seconds: tuple[float, float] = RETRY_SECONDS,
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
        generator: random.Random | None = None,
    ) -> None:
        """Raises KeyFileError for a publisher file that cannot be used.

        Long because it puts the parts together: each is made once, here, in the order of the path.
        """
        self._link, self._store, self._settings = link, store, settings
        self._keeps_previous, self._wall_clock = keeps_previous, wall_clock
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="elma-releases", daemon=True)
        self._target: Target | None = None
        self._is_working = False
        chance = generator or random.Random()  # noqa: S311 - jitter, not a secret
        self._retries = Retries(retry_seconds, clock, chance)
        self._reporter = Reporter(store, report, clock)
        self._offers = Offers(
            store,
            load_publisher_public(publisher_file),
            settings.channel,
            name=name,
            waits_for_order=waits_for_order,
            keeps_previous=keeps_previous,
            wall_clock=wall_clock,
        )
        self._hearing = Hearing(
            link,
            settings.channel,
            self._offers,
            clock=clock,
            on_subscribed=self._retries.forget_wait,
            on_unbelieved=self._unbelieved,
        )
        self._mqtt = MqttTransport(link)
        fetcher = ChunkFetcher(
            store.downloads,
            Pacer(
                settings.max_bytes_per_second,
                settings.quiet_hours,
                clock=clock,
                wall_clock=wall_clock,
            ),
            fetch_rules or FetchRules(window=settings.window),
            is_busy=is_busy,
            is_interrupted=self._is_interrupted,
            on_fetched=on_fetched,
            clock=clock,
        )
        installer = Installer(
            store, settings, known_folders, self._mqtt, fetcher, free_bytes=free_bytes, clock=clock
        )
        self._taker = ReleaseTaker(
            store,
            self._offers,
            installer,
            self._reporter,
            adopt,
            keeps_previous=keeps_previous,
            is_interrupted=self._is_interrupted,
        )

    # -- from any thread -------------------------------------------------------------------

    def start(self) -> None:
        """Begin to follow; returns at once."""
        if self._link.is_connected:
            self._hearing.connected()
        self._thread.start()

    def stop(self) -> None:
        """Stop within `STOP_SECONDS`; a fetch is left as it is and goes on after the next start."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(STOP_SECONDS)

    def connection_changed(self, is_connected: bool) -> None:
        """The link is connected anew, or not any more. Quick."""
        if is_connected:
            self._mqtt.reconnected()
            self._hearing.connected()
            self._wake.set()

    def subscription_refused(self, topic_filter: str) -> None:
        """The broker denied a subscription; for `Session.on_subscription_refused`. Quick."""
        self._mqtt.refused(topic_filter)
        if topic_filter.startswith(_OURS[0]):
            _log.error("release_subscription_refused", topic=topic_filter)

    def take(self, delivery: Delivery) -> bool:
        """Take in a delivery and acknowledge it; False if it is none of ours. Quick."""
        if not delivery.topic.startswith(_OURS):
            return False
        try:
            topic = parse_topic(delivery.topic)
        except TopicError:
            return False
        self._link.acknowledge(delivery)
        if isinstance(topic, BlobTopic):
            self._mqtt.offer(topic, delivery.payload)
        elif (
            isinstance(topic, ManifestTopic | RolloutTopic)
            and topic.channel == self._settings.channel
            and delivery.payload
        ):
            is_manifest = isinstance(topic, ManifestTopic)
            self._hearing.put("manifest" if is_manifest else "rollout", delivery.payload)
            self._wake.set()
        return True

    def progress(self) -> Progress:
        """What was reported last."""
        return self._reporter.progress

    def health(self) -> dict[str, Any]:
        """For /healthz: what answers, what is being done, and whether the channel went silent."""
        progress, order = self._reporter.progress, self._offers.order
        expires = progress.manifest_expires
        return {
            "channel": self._settings.channel,
            "is_running": self._thread.is_alive(),
            **{name: value for name, value in vars(progress).items() if value not in (None, "")},
            "manifest_expired": expires is not None and expires <= self._wall_clock(),
            "rollout_share": None if order is None else order.share,
            "rollout_paused": None if order is None else order.paused,
            "refused": [vars(one) for one in self._store.state.refused[-3:]],
        }

    # -- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        self._reporter.idle()
        while not self._stopping.is_set():
            try:
                self._wake.wait(self._pause_seconds())
                self._wake.clear()
                self._hearing.tend()
                self._work()
            except FetchInterrupted:
                self._wake.set()  # something newer came; look again
            except Exception:
                _log.exception("release_follower_failed")
                self._retries.wait_longest()
        self._mqtt.close()

    def _pause_seconds(self) -> float:
        """Until there may be something to do, when nothing wakes us."""
        times = [IDLE_SECONDS]
        if self._offers.target() is not None:
            times.append(self._retries.due_in())
        if (due := self._hearing.is_due_in()) is not None:
            times.append(due)
        return max(0.0, min(times))

    def _unbelieved(self, error: ReleaseError) -> None:
        if not self._is_working:
            self._reporter.failed(error)

    def _is_interrupted(self) -> bool:
        """Asked often during a fetch: is what is being fetched still what is wanted?"""
        if self._stopping.is_set():
            return True
        self._hearing.tend()
        now, wanted = self._offers.target(), self._target
        if wanted is not None and wanted.kind == "previous" and now is not None:
            return now.offer != wanted.offer  # installed, it is not lacking, and yet to be adopted
        return now != wanted

    def _work(self) -> None:
        """Do what is to be done now, if anything."""
        target = self._offers.target()
        if target is None:
            if self._reporter.progress.state in ("downloading", "verified"):  # paused or withdrawn
                self._reporter.idle()
            return
        if target != self._target:
            self._target = target
            self._retries.begin()
        if not self._retries.is_due:
            return
        self._is_working = True
        try:
            self._taker.take(target)
            self._retries.succeeded()
        except FetchInterrupted:
            raise
        except ReleaseRejected as error:
            if target.kind == "refresh":
                self._retries.wait_longest()
            self._reporter.failed(error, target)
        except (ReleaseError, OSError, ProtocolError) as error:
            self._try_later(target, error)
        finally:
            self._is_working = False

    def _try_later(self, target: Target, error: Exception) -> None:
        if target.kind == "previous" and self._keeps_previous and isinstance(error, FetchFailed):
            self._offers.give_up_previous(target.offer.manifest)
        self._retries.failed(error)
        _log.warning("release_failed", release=target.offer.manifest.release, why=str(error))
        self._reporter.failed(error, target)
