"""What the store and the broker know about a channel, as one document.

In: the publisher's store, a `Fleet`. Out: plain dictionaries, for `elma releases`, `elma rollout
status` and programs that read their JSON. Neighbours: `publisher.fleet`, `publisher.store`.
"""

from __future__ import annotations

import time
from typing import Any

from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from protocol.release_messages import ModelState, RolloutOrder
from protocol.signing import PublisherTrust
from publisher.fleet import Fleet
from publisher.judging import Judgement, edge_state
from publisher.line import VISITOR
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
        "edges": _edges(fleet, order, now),
        "workers": _workers(fleet),
        "silent_workers": sorted(set(fleet.live_workers()) - fleet.workers.keys()),
        "agreement": agreement_of(fleet, manifest),
    }


def _edges(fleet: Fleet, order: RolloutOrder | None, now: float) -> list[dict[str, Any]]:
    """The living edges, those that failed first."""
    online = fleet.present.get("edge", frozenset())
    return [
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


def _workers(fleet: Fleet) -> list[dict[str, Any]]:
    live = set(fleet.live_workers())
    return [
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


def waits_of(judgement: Judgement, fleet: Fleet, now: float) -> dict[str, Any] | None:
    """What a rollout waits for: its stage, whose reports, until when. None without an order.

    `edges_undecided` are those of the stage that neither run the release nor have given it up, with
    what they say; `publishers_online` who could take it to the next stage.
    """
    order = judgement.order
    if order is None or judgement.manifest is None:
        return None
    living = fleet.living_edges(now)
    online = fleet.present.get("edge", frozenset())
    undecided = {
        name: _says(living[name], name in online, what)
        for name, what in judgement.stage.items()
        if what in ("under_way", "waiting")
    }
    return {
        "stage": order.share,
        "is_paused": order.paused,
        "pause_reason": order.reason if order.paused else "",
        "began": order.created,
        "until": judgement.until,
        "seconds_left": max(0.0, (judgement.until or now) - now),
        "next_stage": judgement.next_share,
        "edges_known": len(living),
        "edges_in_stage": len(judgement.stage),
        "edges_undecided": undecided,
        "workers_without": dict(judgement.workers_without),
        "missing": list(judgement.missing),
        "publishers_online": services_online(fleet),
    }


def services_online(fleet: Fleet) -> list[str]:
    """The publishers that are connected and no passing visitors."""
    names = fleet.present.get("publisher", frozenset())
    return sorted(name for name in names if not name.startswith(VISITOR))


def _says(state: ModelState, is_online: bool, what: str) -> str:
    if what == "waiting":
        return "has not begun" if is_online else "is offline"
    if state.state == "failed":
        return f"tries again: {state.reason}"
    is_partly_there = state.state == "downloading" and state.total_bytes
    share = f", {100 * state.done_bytes // state.total_bytes} %" if is_partly_there else ""
    return f"{state.state}{share}" if is_online else f"{state.state}{share}; is offline"


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
