"""Everything of the agent that lives by its MQTT session: offloading, releases, audits.

Inputs: the session and its keys, the parts of the agent that those work for. Output: one thing to
start, stop and ask how it is. Neighbours: `agent` owns it where a cloud is configured; `link`
shares the session among `releases`' follower, `audit` and `offload`, in this order: the last one
takes every delivery that is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from edge_agent.audit import Auditor
from edge_agent.cloud_messages import RequestSealer
from edge_agent.generations import Generations
from edge_agent.inference import InferenceThread
from edge_agent.link import Link, Listener
from edge_agent.metrics import EdgeMetrics
from edge_agent.offload import Offloader
from edge_agent.path import QuestionPath
from edge_agent.reader_change import ReaderChange
from edge_agent.release_life import ReleaseLife
from edge_agent.release_start import GivenUp
from edge_agent.settings import EdgeSettings
from releases.store import ReleaseStore


@dataclass(frozen=True)
class CloudAccess:
    """The way to the cloud: the session, not yet connected, and the keys."""

    link: Link
    sealer: RequestSealer


@dataclass(frozen=True)
class Followed:
    """A channel that the device follows, and what the start did not find good there."""

    store: ReleaseStore
    given_up: GivenUp | None = None


@dataclass(frozen=True)
class DeviceSide:
    """The parts of the agent that the cloud side works for."""

    settings: EdgeSettings
    metrics: EdgeMetrics
    path: QuestionPath
    inference: InferenceThread
    generations: Generations
    change: ReaderChange


class CloudSide:
    """Makes its parts and connects them; `start` and `stop` once each."""

    def __init__(self, access: CloudAccess, followed: Followed | None, device: DeviceSide) -> None:
        self._link, self._sealer, self._device = access.link, access.sealer, device
        self._releases = None if followed is None else self._follow(followed)
        self._auditor = self._audit() if device.settings.audit.rate else None
        self._offloader = self._offload()
        device.metrics.note_pool_key(self._sealer.pool().key_id)

    @property
    def in_flight_count(self) -> int:
        """Requests that wait for the cloud."""
        return self._offloader.in_flight_count

    def start(self) -> None:
        """Connect, in the background, and begin."""
        for part in (self._offloader, self._releases, self._auditor, self._link):
            if part is not None:
                part.start()

    def stop(self) -> None:
        """End what is under way, and disconnect."""
        for part in (self._releases, self._auditor, self._offloader, self._link):
            if part is not None:
                part.stop()

    def care(self) -> None:
        """Housekeeping: a rotated key is read with no question too; what releases need at times."""
        self._device.metrics.note_pool_key(self._sealer.pool().key_id)
        if self._releases is not None:
            self._releases.care()

    def health(self) -> dict[str, Any]:
        """For `GET /healthz`."""
        return {
            "cloud": {**self._offloader.health(), "pool_key": self._sealer.pool().key_id},
            "releases": None if self._releases is None else self._releases.health(),
            "audit": None if self._auditor is None else self._auditor.health(),
        }

    def problems(self) -> list[str]:
        """What keeps it from working, in words."""
        if self._offloader.is_alive and self._link.is_alive:
            return []
        return ["a thread to the cloud has ended; restart the agent"]

    def _follow(self, followed: Followed) -> ReleaseLife | None:
        device, rules = self._device, self._device.settings.releases
        if rules is None:
            return None
        life = ReleaseLife(
            device.settings,
            rules,
            followed.store,
            self._link,
            device.metrics,
            followed.given_up,
            current=lambda: device.generations.digest,
            change=device.change.change,
            is_busy=self._needs_link,
        )
        device.path.is_forgiven = life.is_forgiven
        return life

    def _audit(self) -> Auditor:
        device = self._device
        auditor = Auditor(
            device.settings.audit,
            self._link.session,
            self._sealer,
            device.settings.offload,
            run_when_idle=lambda job: device.inference.read_again(job, math.inf),
            is_busy=self._needs_link,
            registry=device.metrics.registry,
        )
        self._link.add(Listener(auditor.take, lambda _is_connected: None))
        device.path.auditor = auditor
        return auditor

    def _offload(self) -> Offloader:
        device = self._device
        offloader = Offloader(
            self._link,
            self._sealer,
            device.settings.offload,
            device.metrics,
            on_answer=device.path.answered_by_cloud,
            on_give_up=device.path.given_up,
            backlog_seconds=lambda: device.inference.finishing_seconds,
        )
        device.path.offloader = offloader
        device.metrics.in_flight.set_function(lambda: offloader.in_flight_count)
        device.metrics.broker_connected.set_function(lambda: float(offloader.is_connected))
        shown = self._link.session.broker_certificate_expires
        device.metrics.broker_certificate_expires.set_function(shown)
        return offloader

    def _needs_link(self) -> bool:
        """Whether questions wait for the cloud: what is less urgent gives way."""
        return self._offloader.in_flight_count > 0
