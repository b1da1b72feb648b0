"""Who runs what: the channel's retained messages, and what edges and workers say of themselves.

In: deliveries of the broker. Out: a `Fleet`, a plain picture of one moment. Neighbours: `line`
feeds a `FleetView` from its own thread; `watching`, `sending` and `elma releases` read pictures.
What edges and workers report is not signed: it informs, and can at worst pause a rollout.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from broker.exchange import Delivery, Subscription
from protocol.errors import ProtocolError
from protocol.manifest import SignedManifest
from protocol.messages import Presence, decode_message
from protocol.release_messages import ModelState, SignedRollout, WorkerReleases
from protocol.topics import (
    ManifestTopic,
    ModelStateTopic,
    PresenceTopic,
    RolloutTopic,
    WorkerReleasesTopic,
    manifest_subscription,
    model_state_subscription,
    parse_topic,
    presence_subscription,
    rollout_subscription,
    worker_releases_subscription,
)
from protocol.wire import Kind
from publisher.drift import Exit

LIVING_SECONDS = 7 * 86_400.0
"""An edge that has said nothing for longer is not waited for; its retained state has expired."""
MAX_MEMBERS = 100_000
Value = TypeVar("Value")


@dataclass(frozen=True)
class Fleet:
    """One moment of a channel. `present` holds the names that are connected, by role."""

    manifest: SignedManifest | None = None
    order: SignedRollout | None = None
    edges: Mapping[str, ModelState] = field(default_factory=dict)
    workers: Mapping[str, WorkerReleases] = field(default_factory=dict)
    present: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def living_edges(self, now: float) -> dict[str, ModelState]:
        """The edges that have spoken within `LIVING_SECONDS` before `now` (unix seconds)."""
        return {
            name: state
            for name, state in self.edges.items()
            if now - state.updated < LIVING_SECONDS or name in self.present.get("edge", ())
        }

    def releases_in_use(self, now: float) -> Counter[str]:
        """How many living edges answer with each release."""
        return Counter(state.release for state in self.living_edges(now).values() if state.release)

    def live_workers(self) -> list[str]:
        """The workers that are connected."""
        return sorted(self.present.get("worker", ()))

    def workers_without(self, release: str) -> dict[str, str]:
        """The live workers that have not loaded a release, and what they say instead."""
        lacking = {}
        for name in self.live_workers():
            report = self.workers.get(name)
            if report is None:
                lacking[name] = "says nothing about releases; has it a [releases] table?"
            elif release not in report.loaded:
                failed = dict(report.failed).get(release)
                is_loading = release in report.loading
                lacking[name] = f"failed: {failed}" if failed else "loading" * is_loading
        return lacking

    def failed_workers(self, release: str) -> dict[str, str]:
        """The live workers that could not load a release, and why."""
        found = {}
        for name in self.live_workers():
            report = self.workers.get(name)
            reason = dict(report.failed).get(release) if report else None
            if reason is not None:
                found[name] = reason
        return found

    def agreement(self, release: str) -> dict[Exit, tuple[int, int]]:
        """(agreed, total) of a release by exit, over all workers that have reported."""
        sums: dict[Exit, tuple[int, int]] = {}
        for report in self.workers.values():
            for one in report.agreement:
                if one.release == release:
                    agreed, total = sums.get((one.layer, one.kind), (0, 0))
                    sums[one.layer, one.kind] = agreed + one.agreed, total + one.total
        return sums


class FleetView:
    """Keeps the newest of everything; `take` on one thread, `picture` on any."""

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.malformed_total = 0
        self._changed = threading.Condition()
        self._manifest: SignedManifest | None = None
        self._order: SignedRollout | None = None
        self._edges: dict[str, ModelState] = {}
        self._workers: dict[str, WorkerReleases] = {}
        self._present: dict[str, set[str]] = {}

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """What a session must hear for this view."""
        filters = (
            manifest_subscription(self.channel),
            rollout_subscription(self.channel),
            model_state_subscription(),
            worker_releases_subscription(),
            *(presence_subscription(role) for role in ("edge", "worker", "publisher")),
        )
        return tuple(Subscription(one) for one in filters)

    def picture(self) -> Fleet:
        """What is known now."""
        with self._changed:
            return Fleet(
                self._manifest,
                self._order,
                dict(self._edges),
                dict(self._workers),
                {role: frozenset(names) for role, names in self._present.items()},
            )

    def wait_for(self, holds: Callable[[Fleet], bool], timeout_seconds: float) -> bool:
        """Whether `holds` of the picture, now or within `timeout_seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: holds(self.picture()), timeout_seconds)

    def wake(self) -> None:
        """Let those who wait look again."""
        with self._changed:
            self._changed.notify_all()

    def forget_channel(self) -> None:
        """A new connection: what the broker does not say again is no longer there."""
        with self._changed:
            self._manifest = self._order = None
            self._present.clear()

    def take(self, delivery: Delivery) -> None:
        """Note one message; what cannot be read is counted and otherwise ignored."""
        try:
            topic = parse_topic(delivery.topic)
            with self._changed:
                try:
                    self._note(topic, delivery.payload)
                finally:
                    self._changed.notify_all()
        except ProtocolError:
            self.malformed_total += 1

    def _note(self, topic: object, payload: bytes) -> None:
        """An empty payload, or one that cannot be read, is the end of what was retained there."""
        if isinstance(topic, ManifestTopic):
            self._manifest = None
            self._manifest = SignedManifest.decode(payload) if payload else None
        elif isinstance(topic, RolloutTopic):
            self._order = None
            self._order = SignedRollout.decode(payload) if payload else None
        elif isinstance(topic, ModelStateTopic):
            _keep(self._edges, topic.edge, ModelState.decode(payload) if payload else None)
        elif isinstance(topic, WorkerReleasesTopic):
            _keep(self._workers, topic.worker, WorkerReleases.decode(payload) if payload else None)
        elif isinstance(topic, PresenceTopic):
            names = self._present.setdefault(topic.role, set())
            if payload and _is_online(payload) and len(names) < MAX_MEMBERS:
                names.add(topic.id)
            else:
                names.discard(topic.id)


def _keep(members: dict[str, Value], name: str, value: Value | None) -> None:
    if value is None:
        members.pop(name, None)
    elif name in members or len(members) < MAX_MEMBERS:
        members[name] = value


def _is_online(payload: bytes) -> bool:
    message = decode_message(payload, {Kind.PRESENCE})
    return isinstance(message, Presence) and message.online
