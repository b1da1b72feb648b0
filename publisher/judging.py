"""What speaks against going on with a rollout, and what is still missing before its next stage.

In: the store, a picture of the fleet, the bounds. Out: a `Judgement`; nothing is changed, except by
`excuse_failures` when an operator resumes in spite of what he has seen. Neighbours: `watching` acts
by it, `elma rollout status` shows it; `drift` judges agreement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from protocol.manifest import Manifest
from protocol.release_messages import ModelState, RolloutOrder, edge_fraction
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
    next stage, which is `next_share` (None: there is none), and not before `until` (unix seconds).
    `active` edges run the release. `stage` has the living edges that the order's share includes,
    paused or not, and what each does with the release; `workers_without` what the workers say that
    have not loaded it."""

    manifest: Manifest | None = None
    order: RolloutOrder | None = None
    against: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    next_share: float | None = None
    active: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    until: float | None = None
    stage: dict[str, str] = field(default_factory=dict)
    workers_without: dict[str, str] = field(default_factory=dict)


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
    judgement = Judgement(manifest, order, against, active=active, failed=failed)
    if order is None:
        return judgement
    stage = {
        name: edge_state(living[name], manifest.release)
        for name in edges_in_share(living, manifest.release, order.share)
    }
    without = fleet.workers_without(manifest.release)
    return replace(
        judgement,
        next_share=next_stage(bounds.shares, order.share),
        until=order.created + bounds.hold_seconds,
        stage=stage,
        workers_without=without,
        missing=_missing(order.created + bounds.hold_seconds - now, active, stage, without),
    )


def edges_in_share(edges: Iterable[str], release: str, share: float) -> list[str]:
    """The edges that an order for this share of them includes, by name."""
    return sorted(name for name in edges if edge_fraction(name, release) < share)


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
    left_seconds: float, active: int, stage: Collection[str], without: Mapping[str, str]
) -> list[str]:
    found = []
    if left_seconds > 0:
        found.append(f"this stage lasts {left_seconds:.0f} seconds more")
    if not active and stage:
        found.append("no edge of this stage has taken it yet")
    found += [
        f"worker {name} has not loaded it ({what or 'says nothing of it'})"
        for name, what in without.items()
    ]
    return found
