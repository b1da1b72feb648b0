"""The publisher's folder: versions never go back, and a kill leaves nothing half done."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest

from protocol.manifest import sign_manifest
from protocol.signing import KeyList, PublisherTrust, SigningKey
from publisher.errors import PublisherStoreError, SigningError
from publisher.fleet import Fleet
from publisher.making import (
    Wanted,
    blobs_of,
    choose_bases,
    draft_refresh,
    draft_rollback,
    keep_signed,
)
from publisher.packing import PACKED_FOLDER, pack
from publisher.pruning import prune
from publisher.rollout import Wish, give_order
from publisher.sending import kept_blobs, opened
from publisher.sent import SentLog
from publisher.store import PublisherStore
from reader.weights import folder_digest
from tests.publisher.conftest import Publisher, edge_state

SHA = "a" * 64


def terms(publisher: Publisher) -> Wanted:
    """A month, from now."""
    return Wanted("stable", publisher.key.key_id, 30 * 86_400, time.time())


def test_versions_count_up(publisher: Publisher) -> None:
    versions = [
        publisher.published(publisher.model(name, seed)).version for seed, name in enumerate("ab")
    ]
    assert versions == [1, 2]


def test_a_lost_store_goes_on_after_the_channels_version(publisher: Publisher) -> None:
    manifest = dataclasses.replace(publisher.draft(publisher.model("a")), version=41)
    shown = sign_manifest(manifest, publisher.key, publisher.trust.key_list)
    publisher.store = PublisherStore(publisher.folder / "another")
    fleet = Fleet(manifest=shown)
    following = publisher.draft(publisher.model("b", 1), fleet)
    assert following.version == 42
    assert following.created > manifest.created


def test_a_forged_manifest_moves_no_version(publisher: Publisher) -> None:
    manifest = dataclasses.replace(publisher.draft(publisher.model("a")), version=2**53 - 1)
    thief = SigningKey(publisher.key.key_id, SigningKey.make("x").secret)
    forged = sign_manifest(manifest, thief, publisher.trust.key_list)
    assert publisher.draft(publisher.model("a"), Fleet(manifest=forged)).version == 1


def test_a_new_key_goes_on_whatever_a_revoked_one_has_shown(publisher: Publisher) -> None:
    publisher.published(publisher.model("a"))
    fresh = SigningKey.make("publisher-2")
    keys = publisher.trust.keys().with_key(fresh.key_id, fresh.public).without_key("publisher-1")
    publisher.trust = PublisherTrust(publisher.root.public, keys.sign(publisher.root))
    stolen = dataclasses.replace(publisher.draft(publisher.model("a")), version=2**53 - 1)
    shown = Fleet(manifest=sign_manifest(stolen, publisher.key, publisher.trust.key_list))
    publisher.key = fresh
    assert publisher.draft(publisher.model("b", 1), shown).version == 2


def test_a_release_names_the_one_before_it(publisher: Publisher) -> None:
    first = publisher.published(publisher.model("a"))
    second = publisher.published(publisher.model("b", 1))
    assert first.previous is None
    assert second.previous is not None
    assert (second.previous.release, second.previous.version) == (first.release, 1)
    assert second.previous.manifest in blobs_of(publisher.store, second)


def test_a_release_that_stopped_at_a_stage_is_nobodys_first(publisher: Publisher) -> None:
    good = publisher.published(publisher.model("a"))
    give_order(publisher.store, "stable", Wish(1.0), Fleet(), time.time())
    publisher.published(publisher.model("b", 1))
    give_order(publisher.store, "stable", Wish(0.05, paused=True), Fleet(), time.time())
    third = publisher.published(publisher.model("c", 2))
    assert third.previous is not None
    assert (third.previous.version, third.previous.release) == (1, good.release)
    kept = {blob.sha256 for blob in kept_blobs(publisher.store)}
    assert {file.source.sha256 for file in good.files} <= kept


def test_a_rollback_is_the_old_content_under_a_new_version(publisher: Publisher) -> None:
    first = publisher.published(publisher.model("a"))
    publisher.published(publisher.model("b", 1))
    back = draft_rollback(publisher.store, terms(publisher), 1, Fleet(), publisher.trust)
    assert back.version == 3
    assert (back.release, back.files) == (first.release, first.files)
    assert back.previous is not None
    assert back.previous.version == 2


def test_a_rollback_to_nothing_names_what_there_is(publisher: Publisher) -> None:
    publisher.published(publisher.model("a"))
    with pytest.raises(PublisherStoreError, match=r"no version 7 .*it has: 1"):
        draft_rollback(publisher.store, terms(publisher), 7, Fleet(), publisher.trust)


def test_a_refresh_changes_version_and_expiry_only(publisher: Publisher) -> None:
    first = publisher.published(publisher.model("a"), expires_seconds=60.0)
    renewed = draft_refresh(publisher.store, terms(publisher), Fleet(), publisher.trust)
    assert (renewed.version, renewed.release, renewed.files) == (2, first.release, first.files)
    assert renewed.expires > first.expires
    assert renewed.previous == first.previous


def test_a_version_is_signed_once(publisher: Publisher) -> None:
    manifest = publisher.draft(publisher.model("a"))
    record = publisher.sign(manifest)
    assert publisher.sign(manifest) == record
    with pytest.raises(SigningError, match="used before"):
        publisher.sign(dataclasses.replace(manifest, note="another"))


def test_a_signature_of_a_key_that_may_not_sign_is_refused(publisher: Publisher) -> None:
    manifest = publisher.draft(publisher.model("a"))
    with pytest.raises(SigningError, match="no device would take"):
        publisher.sign(manifest, SigningKey.make("stranger"))
    keys = KeyList(2, {}, ("publisher-1",)).sign(publisher.root)
    trust = PublisherTrust(publisher.root.public, keys)
    signed = sign_manifest(manifest, publisher.key, keys)
    with pytest.raises(SigningError, match="revoked"):
        keep_signed(publisher.store, signed, trust)
    assert opened(signed, trust) is None


def test_a_signed_manifest_whose_blobs_are_elsewhere_is_refused(publisher: Publisher) -> None:
    manifest = publisher.draft(publisher.model("a"))
    publisher.store = PublisherStore(publisher.folder / "another")
    with pytest.raises((SigningError, PublisherStoreError), match="store"):
        publisher.sign(manifest)


def test_what_a_process_left_unfinished_changes_nothing(publisher: Publisher) -> None:
    publisher.published(publisher.model("a"))

    def fail_halfway() -> None:
        with publisher.store.change("stable") as state:
            state.records.clear()
            raise RuntimeError("killed here")

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert [
        one.version for one in PublisherStore(publisher.store.folder).channel("stable").records
    ] == [1]


def test_only_one_publish_at_a_time(publisher: Publisher) -> None:
    with (
        publisher.store.publishing(),
        pytest.raises(PublisherStoreError, match="another publish"),
        PublisherStore(publisher.store.folder).publishing(),
    ):
        pass


def test_the_rollout_key_is_made_once_and_kept_secret(publisher: Publisher) -> None:
    key = publisher.store.rollout_key()
    assert PublisherStore(publisher.store.folder).rollout_key() == key
    path = publisher.store.folder / "rollout-secret.json"
    assert path.stat().st_mode & 0o077 == 0


def test_differences_are_made_against_what_edges_run(publisher: Publisher) -> None:
    models = {name: publisher.model(name, seed) for seed, name in enumerate("abc")}
    for name in "ab":
        publisher.published(models[name])
    running = folder_digest(models["a"])
    fleet = Fleet(edges={"kitchen": edge_state("active", running, version=1)})
    bases = choose_bases(publisher.store, "stable", models["c"], fleet, time.time())
    assert [path.name for path in bases] == [running, folder_digest(models["b"])]


def test_old_content_is_pruned_and_recent_releases_stay(publisher: Publisher) -> None:
    first = publisher.published(publisher.model("a"))
    unused = publisher.store.blobs.put(b"nobody's")
    for path in [
        *publisher.store.blobs.folder.iterdir(),
        *(publisher.store.folder / "models").iterdir(),
    ]:
        os.utime(path, (0, 0))
    assert prune(publisher.store) == 1
    assert not publisher.store.blobs.has(unused)
    assert all(publisher.store.blobs.has(blob.sha256) for blob in blobs_of(publisher.store, first))
    assert publisher.store.model_folder(first.release)


def test_packed_copies_go_with_the_releases_that_were_made_of_them(publisher: Publisher) -> None:
    folder = publisher.store.folder / PACKED_FOLDER
    kept = pack(publisher.model("a"), folder)
    publisher.published(kept)
    refused = pack(publisher.model("b", 1), folder)
    unfinished = refused.with_name(".c.partial")
    unfinished.mkdir()
    fresh = pack(publisher.model("d", 2), folder)
    for path in (kept, refused, unfinished):
        os.utime(path, (0, 0))
    assert prune(publisher.store) == 2
    assert sorted(folder.glob("*/*")) == sorted([kept, fresh])
    assert not refused.parent.exists()


def test_a_packed_copy_in_use_is_not_old(publisher: Publisher) -> None:
    folder = publisher.store.folder / PACKED_FOLDER
    packed = pack(publisher.model("a"), folder)
    os.utime(packed, (0, 0))
    assert pack(publisher.model("a"), folder) == packed
    assert prune(publisher.store) == 0


def test_two_releases_are_kept_on_the_broker(publisher: Publisher) -> None:
    first, second, third = (
        publisher.published(publisher.model(name, seed)) for seed, name in enumerate("abc")
    )
    kept = {blob.sha256 for blob in kept_blobs(publisher.store)}
    assert {blob.sha256 for blob in blobs_of(publisher.store, third)} <= kept
    assert {file.source.sha256 for file in second.files} <= kept
    only_first = {file.source.sha256 for file in first.files if file.index is not None}
    assert only_first
    assert not only_first & kept


def test_the_log_of_what_was_sent_survives_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "sent.log"
    with SentLog(path) as log:
        log.add((SHA, 0), 10.0)
        log.add((SHA, 1), 20.0)
        log.remove([(SHA, 0)])
    with path.open("a") as stream:
        stream.write("+ 30 aaaa")
    with SentLog(path) as log:
        assert log.chunks() == {(SHA, 1): 20.0}
        log.forget_all(40.0)
    with SentLog(path) as log:
        assert log.chunks() == {}
