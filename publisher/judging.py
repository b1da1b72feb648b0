"""What speaks against going on with a rollout, and what is still missing before its next stage.

In: the store, a picture of the fleet, the bounds. Out: a `Judgement`; nothing is changed, except by
`excuse_failures` when an operator resumes in spite of what he has seen. Neighbours: `watching` acts
by it, `elma rollout status` shows it; `drift` judges agreement.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from protocol.manifest import Manifest
from protocol.release_messages import ModelState, RolloutOrder
from publisher.drift import find_drift
from publisher.fleet import Fleet
from publisher.rollout import current_order, next_stage
from publisher.settings import RolloutSettings
from publisher.store import PublisherStore
from releases.errors import ReleaseRejected

DRIFT = "*drift"
"""Stands among the excused; no edge can have this name."""
MAX_REASONS_SHOWN = 3
FINAL_CODES = frozenset(
    {ReleaseRejected.reason_code, *(kind.reason_code for kind in ReleaseRejected.__subclasses__())}
)
"""Why an edge refuses a version for good; any other reason it tries again by itself."""


@dataclass(frozen=True)
class Judgement:
    """Where a rollout stands. `against`: why it must pause; `missing`: why it must wait before the
    next stage, which is `next_share` (None: there is none). `active` edges run the release."""

    manifest: Manifest | None = None
    order: RolloutOrder | None = None
    against: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    next_share: float | None = None
    active: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def judge(
    store: PublisherStore, channel: str, fleet: Fleet, bounds: RolloutSettings, now: float
) -> Judgement:
    """Look at the channel's current release at `now` (unix seconds)."""
    state = store.channel(channel)
    if state.current is None:
        return Judgement()
    manifest = store.manifest(channel, state.current)
    order = current_order(state, manifest)
    living = fleet.living_edges(now)
    failed = {
        name: one.reason
        for name, one in living.items()
        if has_failed(one, manifest.release) and state.excused.get(name) != manifest.release
    }
    active = sum(one.release == manifest.release for one in living.values())
    against = _against_failures(failed, active, bounds)
    if state.excused.get(DRIFT) != manifest.release:
        against += _against_drift(fleet, manifest, bounds)
    missing: list[str] = []
    next_share = None
    if order is not None:
        next_share = next_stage(bounds.shares, order.share)
        missing = _missing(fleet, order, active, living, bounds, now)
    return Judgement(manifest, order, against, missing, next_share, active, failed)


def has_failed(state: ModelState, release: str) -> bool:
    """Whether an edge has given this release up: it, or its device, is wrong. What an edge will try
    again (bytes that did not come, a full disk) is no failure of the release."""
    is_aimed = state.state == "failed" and state.target == release
    return is_aimed and state.reason_code in FINAL_CODES


def edge_state(state: ModelState, release: str) -> str:
    """What an edge does with a release: "active", "under_way", "failed", or "waiting"."""
    if state.release == release:
        return "active"
    if state.target != release:
        return "waiting"
    return "failed" if has_failed(state, release) else "under_way"


def excuse_failures(store: PublisherStore, channel: str, fleet: Fleet) -> None:
    """What has gone wrong with the current release so far pauses it no more."""
    with store.change(channel) as state:
        if state.current is None:
            return
        release = state.current.release
        kept = {name: of for name, of in state.excused.items() if of == release}
        for name, one in fleet.edges.items():
            if has_failed(one, release):
                kept[name] = release
        state.excused = {**kept, DRIFT: release}


def _against_failures(failed: dict[str, str], active: int, bounds: RolloutSettings) -> list[str]:
    decided = active + len(failed)
    if not failed or len(failed) <= bounds.max_failed_share * decided:
        return []
    reasons = Counter(failed.values()).most_common(MAX_REASONS_SHOWN)
    described = "; ".join(f"{count} x {reason or 'no reason'}" for reason, count in reasons)
    return [f"{len(failed)} of {decided} edges failed to take it: {described}"]


def _against_drift(fleet: Fleet, manifest: Manifest, bounds: RolloutSettings) -> list[str]:
    if manifest.previous is None or manifest.previous.release == manifest.release:
        return []
    old = fleet.agreement(manifest.previous.release)
    drifts = find_drift(old, fleet.agreement(manifest.release), bounds.drift)
    return [drift.describe() for drift in drifts[:MAX_REASONS_SHOWN]]


def _missing(
    fleet: Fleet,
    order: RolloutOrder,
    active: int,
    living: dict[str, ModelState],
    bounds: RolloutSettings,
    now: float,
) -> list[str]:
    found = []
    left_seconds = order.created + bounds.hold_seconds - now
    if left_seconds > 0:
        found.append(f"this stage lasts {left_seconds:.0f} seconds more")
    if not active and any(order.includes(name) for name in living):
        found.append("no edge of this stage has taken it yet")
    found += [
        f"worker {name} has not loaded it ({what or 'says nothing of it'})"
        for name, what in fleet.workers_without(order.release).items()
    ]
    return found
