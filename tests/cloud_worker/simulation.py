"""A worker without a machine: the real scheduler, and steps that take what the pace says.

In: requests with their arrivals. Out: when each was answered. No clock runs and nothing is noisy,
so order, fairness and bounds can be asserted exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cloud_worker.pace import Pace
from cloud_worker.scheduler import BatchLimits, Scheduler, WaitingWindow

NEVER = float("inf")


@dataclass(eq=False)
class Asked:
    """A request: `windows` of `tokens` each, after `layer`."""

    arrived: float
    windows: int = 1
    tokens: int = 150
    layer: int = 3
    rank: int = 0
    allowed_seconds: float = 60.0
    answered: float = NEVER
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.windows

    @property
    def seconds(self) -> float:
        """From arrival to answer."""
        return self.answered - self.arrived


@dataclass
class Simulation:
    """A worker of one release with `layers` layers in `groups` groups."""

    pace: Pace
    limits: BatchLimits = field(default_factory=BatchLimits)
    layers: int = 12
    groups: int = 1
    batch_tokens: list[int] = field(default_factory=list)

    def run(self, requests: Sequence[Asked], until: float = NEVER) -> float:
        """Answer everything, or what can be answered until then; returns the time of the end."""
        scheduler: Scheduler[Asked] = Scheduler(self.limits, lambda _release: self.pace)
        coming = sorted(requests, key=lambda request: request.arrived, reverse=True)
        now = 0.0
        while (coming or len(scheduler)) and now < until:
            if not len(scheduler):
                now = max(now, coming[-1].arrived)
            while coming and coming[-1].arrived <= now:
                scheduler.add(self.windows_of(coming.pop()))
            batch = scheduler.next_batch(now)
            tokens = sum(window.length_tokens for window in batch)
            self.batch_tokens.append(tokens)
            now += self.pace.step_seconds(tokens)
            scheduler.add(self._moved_on(batch, now))
        return now

    def windows_of(self, request: Asked) -> list[WaitingWindow[Asked]]:
        """A request's windows as they come."""
        return [
            WaitingWindow(
                request=request,
                index=index,
                release="release",
                layer=request.layer,
                last_layer=self.layers,
                group=self._group_of(request.layer + 1),
                rank=request.rank,
                due=request.arrived + request.allowed_seconds,
                arrived=request.arrived,
                length_tokens=request.tokens,
                question_tokens=2,
                state=None,
            )
            for index in range(request.windows)
        ]

    def _moved_on(
        self, batch: Sequence[WaitingWindow[Asked]], now: float
    ) -> list[WaitingWindow[Asked]]:
        going_on = []
        for window in batch:
            if window.layer + 1 < self.layers:
                going_on.append(window.moved_on(None, self._group_of(window.layer + 2)))
                continue
            window.request.left -= 1
            if not window.request.left:
                window.request.answered = now
        return going_on

    def _group_of(self, layer: int) -> int:
        return int((layer - 1) / (self.layers / self.groups))
