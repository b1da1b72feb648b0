"""From nothing to a secured broker, a worker and edges, by the command line and its bundles alone.

Real processes on a real mosquitto over TLS. While questions are asked, others are enrolled and
revoked and the pool's key is rotated: nobody else loses a question or a connection.
"""

from __future__ import annotations

import stat

from broker.session import Session
from edge_agent.settings import load_settings as load_edge_settings
from tests.cloud_worker.harness import WAIT_SECONDS, wait_until
from tests.elma.secured_site import Load, Site, elma, enroll, told


def test_members_come_and_go_and_the_pool_key_changes_while_nobody_else_loses_a_question(
    site: Site,
) -> None:
    assert not enroll(site, "kitchen")["is_live"]
    site.start_broker()
    assert enroll(site, "north", "enroll-worker", "--here")["is_live"]
    worker = site.start_worker("north")
    edge, url = site.start_edge("kitchen")
    load = Load(url)
    try:
        load.wait_for_more()
        assert enroll(site, "garage")["is_live"]
        settings = load_edge_settings(site.folder / "bundles" / "garage" / "edge.toml")
        assert settings.broker is not None
        with Session(settings.broker, "edge-garage") as garage:
            assert garage.wait_connected(WAIT_SECONDS)
            load.wait_for_more()
            revoked = told(site.folder, "revoke", "garage")
            assert revoked["is_live"]
            assert revoked["key_removed"]
            assert not (site.folder / "elma-keys" / "edges" / "garage.json").exists()
            assert revoked["list_is_read"]
            wait_until(lambda: not garage.is_connected, "garage is out")
            # Each further attempt fails in the handshake: there is no second connection.
            wait_until(lambda: "Administrative" not in str(garage.failure), "another attempt")
            assert garage.connections_total == 1
        load.wait_for_more()
        rotated = told(site.folder, "keys", "rotate", "--bundles", "bundles")
        assert rotated["live_key_ids"] == ["pool-1", "pool-2"]
        load.wait_for_more()
        # Who is enrolled from now on has the new key, and is answered beside the one with the old.
        enroll(site, "hall")
        _, hall = site.start_edge("hall")
        second = Load(hall)
        second.wait_for_more()
        second.stop()
    finally:
        load.stop()
    assert not load.failures
    assert not second.failures
    answers = [*load.answers, *second.answers]
    assert {answer["resolved_by"] for answer in answers} == {"cloud"}
    assert not any(answer["degraded"] for answer in answers)
    assert len(edge.events("broker_connected")) == 1
    assert len(worker.events("broker_connected")) == 1
    assert worker.events("pool_keys_read"), "the rotation did not reach the worker"


def test_a_bundle_holds_what_its_member_needs_and_its_secrets_are_for_its_owner(
    site: Site,
) -> None:
    enroll(site, "kitchen")
    bundle = site.folder / "bundles" / "kitchen"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in bundle.iterdir()}
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o700
    assert {modes["client-key.pem"], modes["edge-secret.json"]} == {0o600}
    assert {"edge.toml", "authority.pem", "pool-public.json", "publisher-public.json"} <= set(modes)
    assert (site.folder / "elma-keys" / "edges" / "kitchen.json").exists()
    again = elma(site.folder, "enroll", "kitchen", "--out", "bundles/other", fails=True)
    assert "revoke" in again.stderr
    (bundle / "client-key.pem").chmod(0o640)
    run = ("edge", "run", "--config", str(bundle / "edge.toml"), "--port", "0")
    refused = elma(site.folder, *run, fails=True)
    assert f"chmod 600 {bundle / 'client-key.pem'}" in refused.stderr


def test_an_authority_key_that_others_may_read_enrols_nobody(site: Site) -> None:
    key = site.folder / "elma-broker" / "authority" / "authority-key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.chmod(0o644)
    refused = elma(site.folder, "enroll", "kitchen", "--out", "bundles/kitchen", fails=True)
    assert f"chmod 600 {key}" in refused.stderr
    assert not (site.folder / "elma-keys" / "edges" / "kitchen.json").exists()
    assert not (site.folder / "bundles" / "kitchen").exists()
