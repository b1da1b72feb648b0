"""What the store and the broker know about a channel, as one document.

In: the publisher's store, a `Fleet`. Out: plain dictionaries, for `elma releases`, `elma rollout
status` and programs that read their JSON. Neighbours: `publisher.fleet`, `publisher.store`.
"""

from __future__ import annotations

import time
from typing import Any

from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from protocol.release_messages import RolloutOrder
from protocol.signing import PublisherTrust
from publisher.fleet import Fleet
from publisher.judging import edge_state
from publisher.sending import opened
from publisher.store import PublisherStore


def store_report(store: PublisherStore, channel: str) -> dict[str, Any]:
    """Every version that the store knows, newest first."""
    state = store.channel(channel)
    current, versions = state.current, []
    for record in reversed(state.records):
        manifest = store.manifest(channel, record)
        word = "current" if record == current else "published"
        versions.append(
            {
                "version": record.version,
                "name": record.name,
                "release": record.release,
                "key_id": record.key_id,
                "created": manifest.created,
                "expires": manifest.expires,
                "f1": manifest.f1,
                "right_answers": record.right_answers,
                "questions": record.questions,
                "note": manifest.note,
                "state": word if record.is_published else "signed",
                "reached_all": record.reached_all,
            }
        )
    return {"versions": versions}


def fleet_report(fleet: Fleet, trust: PublisherTrust, channel: str) -> dict[str, Any]:
    """What the channel shows, its rollout, and every edge and worker. Edges that failed first."""
    manifest = opened(fleet.manifest, trust)
    if manifest is not None and manifest.channel != channel:
        manifest = None
    order = opened_order(fleet, manifest)
    now = time.time()
    online = fleet.present.get("edge", frozenset())
    edges = [
        {
            "edge": name,
            "is_online": name in online,
            "is_chosen": order.includes(name) if order else None,
            **vars(state),
        }
        for name, state in sorted(
            fleet.living_edges(now).items(), key=lambda item: (item[1].state != "failed", item[0])
        )
    ]
    live = set(fleet.live_workers())
    workers = [
        {
            "worker": name,
            "is_online": name in live,
            "loaded": list(report.loaded),
            "loading": list(report.loading),
            "failed": dict(report.failed),
            "updated": report.updated,
        }
        for name, report in sorted(fleet.workers.items())
    ]
    return {
        "shown": None
        if manifest is None
        else {
            "version": manifest.version,
            "release": manifest.release,
            "expires": manifest.expires,
            "has_expired": manifest.expires <= now,
            "previous_version": manifest.previous.version if manifest.previous else None,
        },
        "rollout": None if order is None else vars(order),
        "counts": counts_of(fleet, manifest, now),
        "edges": edges,
        "workers": workers,
        "silent_workers": sorted(live - fleet.workers.keys()),
        "agreement": agreement_of(fleet, manifest),
    }


def opened_order(fleet: Fleet, manifest: Manifest | None) -> RolloutOrder | None:
    """The order that the channel shows, if it belongs to its manifest."""
    if fleet.order is None or manifest is None:
        return None
    try:
        order = fleet.order.open(manifest.rollout_public)
    except ProtocolError:
        return None
    is_for_it = (order.release, order.version) == (manifest.release, manifest.version)
    return order if is_for_it else None


def counts_of(fleet: Fleet, manifest: Manifest | None, now: float) -> dict[str, int]:
    """How many living edges run the shown release, are on their way to it, failed, or wait."""
    release = manifest.release if manifest is not None else ""
    counts = {"active": 0, "under_way": 0, "failed": 0, "waiting": 0}
    for state in fleet.living_edges(now).values():
        counts[edge_state(state, release)] += 1
    return counts


def agreement_of(fleet: Fleet, manifest: Manifest | None) -> dict[str, list[dict[str, Any]]]:
    """Agreement by exit, of the shown release and of the one before it."""
    if manifest is None:
        return {}
    releases = {"new": manifest.release}
    if manifest.previous is not None:
        releases["old"] = manifest.previous.release
    return {
        which: [
            {"layer": layer, "kind": kind, "agreed": agreed, "total": total}
            for (layer, kind), (agreed, total) in sorted(fleet.agreement(release).items())
        ]
        for which, release in releases.items()
    }
