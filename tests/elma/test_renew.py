"""`elma renew` and `elma broker renew` while a device, a worker and a broker run under load."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

from broker.certificate_expiry import certificate_expiry
from broker.certificates import serial_of
from protocol.key_files import load_edge_keys
from tests.cloud_worker.harness import ElmaProcess, wait_until
from tests.elma.secured_site import Load, Site, elma, enroll, told


def wait_for_connections(process: ElmaProcess, count: int) -> None:
    """Return when it has been connected that often."""
    name = process.log_file.name
    wait_until(lambda: len(process.events("broker_connected")) >= count, f"{name}: {count}")


def serial(folder: Path) -> int:
    """The serial number of a bundle's certificate."""
    return serial_of((folder / "client.pem").read_bytes())


def test_certificates_are_renewed_in_place_under_load_and_no_question_is_lost(site: Site) -> None:
    enroll(site, "kitchen")
    enroll(site, "north", "enroll-worker", "--here")
    site.start_broker()
    worker = site.start_worker("north")
    edge, url = site.start_edge("kitchen")
    kitchen, stolen = site.folder / "bundles" / "kitchen", site.folder / "stolen"
    shutil.copytree(kitchen, stolen)
    key = load_edge_keys(kitchen / "edge-secret.json")
    load = Load(url)
    try:
        load.wait_for_more()
        renewed = told(site.folder, "renew", "kitchen", "--out", "bundles/kitchen")
        assert serial(kitchen) == int(renewed["serial"], 16) != serial(stolen)
        wait_for_connections(edge, 2)
        load.wait_for_more()
        told(site.folder, "renew", "north", "--kind", "worker", "--out", "bundles/north")
        wait_for_connections(worker, 2)
        load.wait_for_more()
        assert told(site.folder, "broker", "renew", "elma-broker")["is_read"]
        load.wait_for_more()
        # The certificates before count no more: who comes back shows a newer one.
        last = told(site.folder, "renew", "kitchen", "--out", "bundles/kitchen", "--revoke-old")
        assert last["list_is_read"]
        wait_for_connections(edge, 3)
        load.wait_for_more()
    finally:
        load.stop()
    assert not load.failures
    assert {answer["resolved_by"] for answer in load.answers} == {"cloud"}
    assert not any(answer["degraded"] for answer in load.answers)
    assert load_edge_keys(kitchen / "edge-secret.json") == key
    refused = site.start(
        "thief", "edge", "run", "--config", str(stolen / "edge.toml"), "--port", "0"
    )
    refused.wait_for_event("broker_not_connected")
    assert not refused.events("broker_connected")


def test_a_certificate_alone_goes_into_a_new_folder_and_needs_no_secret(site: Site) -> None:
    enroll(site, "kitchen")
    out = ("--out", "new-files", "--keep-key", "--days", "30")
    renewed = told(site.folder, "renew", "kitchen", *out)
    new = site.folder / "new-files"
    assert sorted(path.name for path in new.iterdir()) == ["authority.pem", "client.pem"]
    ends = datetime.fromtimestamp(certificate_expiry(new / "client.pem"), UTC)
    assert renewed["certificate_expires"] == ends.isoformat()
    bundle = site.folder / "bundles" / "kitchen"
    assert serial(bundle) != serial(new)
    both = ("renew", "kitchen", "--out", "other", "--keep-key", "--revoke-old")
    assert "leave --keep-key out" in elma(site.folder, *both, fails=True).stderr


def test_another_member_s_bundle_is_not_overwritten(site: Site) -> None:
    enroll(site, "kitchen")
    enroll(site, "garage")
    garage = site.folder / "bundles" / "garage"
    before = serial(garage)
    refused = elma(site.folder, "renew", "kitchen", "--out", "bundles/garage", fails=True)
    assert "the bundle of edge-garage, not of edge-kitchen" in refused.stderr
    assert serial(garage) == before
    unknown = elma(site.folder, "renew", "cellar", "--out", "bundles/cellar", fails=True)
    assert "not enrolled" in unknown.stderr
    assert not (site.folder / "bundles" / "cellar").exists()
