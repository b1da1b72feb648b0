"""`elma keys rotate` under load: workers and devices read the new keys while they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from protocol.key_files import load_pool_keys, load_pool_public
from tests.cloud_worker.harness import wait_until
from tests.elma.secured_site import Load, Site, elma, enroll, told


def pool_key(url: str) -> str:
    """The key that a device seals to, by its own word."""
    health: dict[str, Any] = httpx.get(f"{url}/healthz", timeout=10.0, trust_env=False).json()
    return str(health["cloud"]["pool_key"])


def shown_keys(url: str) -> list[str]:
    """The same, as Prometheus sees it."""
    text = httpx.get(f"{url}/metrics", timeout=10.0, trust_env=False).text
    start = "elma_edge_pool_key_info"
    return [line.removeprefix(start) for line in text.splitlines() if line.startswith(start)]


def put(path: Path, content: bytes) -> None:
    """Other content at one moment, so that what the device reads is certain."""
    beside = path.with_name("new")
    beside.write_bytes(content)
    beside.chmod(0o600)
    beside.replace(path)


def test_the_pool_key_rotates_twice_under_load_and_the_device_is_never_restarted(
    site: Site,
) -> None:
    enroll(site, "kitchen")
    enroll(site, "north", "enroll-worker")  # with its own copy of the keys, in its bundle
    site.start_broker()
    worker = site.start_worker("north")
    edge, url = site.start_edge("kitchen")
    bundles = site.folder / "bundles"
    public_file = bundles / "kitchen" / "pool-public.json"
    load = Load(url)
    try:
        load.wait_for_more()
        assert pool_key(url) == "pool-1"
        told(site.folder, "keys", "rotate", "--bundles", "bundles")
        wait_until(lambda: pool_key(url) == "pool-2", "the second key")
        load.wait_for_more()
        good = public_file.read_bytes()
        put(public_file, good[: len(good) // 2])
        load.wait_for_more()
        assert pool_key(url) == "pool-2", "a file that is half written leaves the key that was"
        put(public_file, good)
        second = told(site.folder, "keys", "rotate", "--bundles", "bundles")
        assert second["dropped_key_ids"] == ["pool-1"]
        wait_until(lambda: pool_key(url) == "pool-3", "the third key")
        load.wait_for_more()
    finally:
        load.stop()
    assert not load.failures
    assert {answer["resolved_by"] for answer in load.answers} == {"cloud"}
    assert not any(answer["degraded"] for answer in load.answers)
    assert [line["pool_key"] for line in edge.events("pool_key_read")] == ["pool-2", "pool-3"]
    assert len(edge.events("pool_key_not_read")) == 1
    assert worker.get("/healthz").json()["pool_keys"] == ["pool-2", "pool-3"]
    wait_until(lambda: shown_keys(url) == ['{pool_key="pool-3"} 1.0'], "the key in the metrics")


def test_a_rotation_changes_each_bundle_s_copy_and_leaves_another_pool_s_alone(site: Site) -> None:
    enroll(site, "kitchen")
    enroll(site, "north", "enroll-worker")
    elma(site.folder, "keys", "pool", "--out", "bundles/foreign")
    foreign = (site.folder / "bundles" / "foreign" / "pool-secret.json").read_bytes()
    first = told(site.folder, "keys", "rotate", "--bundles", "bundles")
    assert len(first["changed_copies"]) == 2
    assert set(first["other_pools_copies"]) == {
        f"bundles/foreign/pool-{half}.json" for half in ("secret", "public")
    }
    second = told(site.folder, "keys", "rotate", "--bundles", "bundles")
    assert second["dropped_key_ids"] == ["pool-1"]
    assert second["live_key_ids"] == ["pool-2", "pool-3"]
    bundles = site.folder / "bundles"
    pool = load_pool_keys(site.folder / "elma-keys" / "pool-secret.json")
    assert load_pool_keys(bundles / "north" / "pool-secret.json").ids == pool.ids
    assert load_pool_public(bundles / "kitchen" / "pool-public.json") == pool.public
    assert (bundles / "foreign" / "pool-secret.json").read_bytes() == foreign


def test_a_copy_that_a_killed_rotation_left_behind_is_taken_along_by_the_next(site: Site) -> None:
    enroll(site, "north", "enroll-worker")
    copy = site.folder / "bundles" / "north" / "pool-secret.json"
    before = copy.read_bytes()
    told(site.folder, "keys", "rotate", "--bundles", "bundles")
    copy.write_bytes(before)  # as if it had been killed after the key folder's own file
    told(site.folder, "keys", "rotate", "--bundles", "bundles")
    assert load_pool_keys(copy).ids == ("pool-2", "pool-3")


def test_a_rotation_keeps_the_new_key_from_a_revoked_worker_s_bundle(site: Site) -> None:
    enroll(site, "north", "enroll-worker")
    enroll(site, "south", "enroll-worker")
    elma(site.folder, "revoke", "south", "--kind", "worker")
    rotated = told(site.folder, "keys", "rotate", "--bundles", "bundles")
    assert rotated["revoked_bundles"] == ["bundles/south"]
    bundles = site.folder / "bundles"
    assert load_pool_keys(bundles / "north" / "pool-secret.json").ids == ("pool-1", "pool-2")
    assert load_pool_keys(bundles / "south" / "pool-secret.json").ids == ("pool-1",)
