"""A follower over a real mosquitto: what it takes, when, and what it keeps after anything fails."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.exchange import Delivery
from broker.run import RunningBroker
from broker.session import Session
from protocol.release_messages import edge_fraction
from protocol.topics import BlobTopic
from reader.weights import folder_digest
from releases.errors import CanariesFailed
from releases.follower import Candidate
from releases.trust import payload_sha256
from tests.releases.conftest import Follows
from tests.releases.plant import (
    NOW,
    Plant,
    announce,
    chunks_of,
    make_folder,
    retain,
    upload,
    wait_until,
)

Follow = Callable[..., Follows]


def test_a_fresh_device_gets_its_first_release(
    plant: Plant, model: Path, publisher: Session, follow: Follow
) -> None:
    manifest = plant.manifest(model, 1, canaries=b'{"canaries": []}')
    upload(publisher, plant)
    announce(publisher, plant.sign(manifest), plant.order(manifest))
    device = follow()
    wait_until(lambda: device.state == "active", f"{device.reports}")
    folder = device.store.installed.find(manifest.release)
    assert folder is not None
    assert folder_digest(folder) == manifest.release
    assert (folder / "canaries.json").read_bytes() == b'{"canaries": []}'
    assert [one.version for one in device.adopted] == [1]
    assert {"init", "downloading", "verified", "active"} <= {one.state for one in device.reports}
    assert device.store.state.version == 1
    assert not list(device.store.downloads.folder.iterdir())


def test_nothing_is_taken_before_an_order_that_includes_the_device(
    plant: Plant, model: Path, publisher: Session, follow: Follow
) -> None:
    manifest = plant.manifest(model, 1)
    fraction = edge_fraction("kitchen", manifest.release)
    upload(publisher, plant)
    announce(publisher, plant.sign(manifest), plant.order(manifest, share=fraction))
    device = follow()
    wait_until(lambda: device.follower.health()["rollout_share"] is not None)
    assert not device.fetched
    assert device.state == "init"
    forger = Plant(plant.folder.parent / "forger")
    announce(publisher, plant.sign(manifest), forger.order(manifest, sequence=9))
    announce(publisher, plant.sign(manifest), plant.order(manifest, sequence=2, paused=True))
    wait_until(lambda: device.follower.health()["rollout_paused"] is True)
    assert not device.fetched
    announce(publisher, plant.sign(manifest), plant.order(manifest, sequence=3))
    wait_until(lambda: device.state == "active")
    assert device.store.order_sequence(manifest.release, plant.rollout.public) == 3


def test_an_order_never_goes_back_even_over_a_restart(
    plant: Plant, model: Path, publisher: Session, follow: Follow
) -> None:
    manifest = plant.manifest(model, 1)
    announce(publisher, plant.sign(manifest), plant.order(manifest, sequence=5, paused=True))
    device = follow()
    wait_until(lambda: device.store.order_sequence(manifest.release, plant.rollout.public) == 5)
    device.stop()
    upload(publisher, plant)
    announce(publisher, plant.sign(manifest), plant.order(manifest, sequence=4))
    again = follow(name="kitchen")
    wait_until(lambda: again.state == "init")
    announce(publisher, plant.sign(manifest))
    moved = plant.manifest(model, 2, channel="beta")
    announce(publisher, plant.sign(moved))  # what is refused now came after the old order
    wait_until(lambda: "wrong_channel" in again.codes())
    assert again.follower.health()["rollout_share"] is None
    assert not again.fetched


def test_a_new_release_takes_unchanged_parts_from_the_disk(
    plant: Plant, model: Path, publisher: Session, follow: Follow, tmp_path: Path
) -> None:
    changed = make_folder(tmp_path / "changed", seed=1, threshold=0.7)
    manifest = plant.manifest(changed, 2)
    upload(publisher, plant)
    announce(publisher, plant.sign(manifest), plant.order(manifest))
    device = follow(known_folders=[model])
    wait_until(lambda: device.state == "active")
    whole = sum(path.stat().st_size for path in changed.iterdir())
    fetched = max(one.total_bytes for one in device.reports)
    assert 0 < fetched < whole / 2


def test_a_refreshed_manifest_costs_no_download_and_no_adoption(
    plant: Plant, model: Path, publisher: Session, follow: Follow
) -> None:
    first = plant.manifest(model, 1)
    upload(publisher, plant)
    announce(publisher, plant.sign(first), plant.order(first))
    device = follow()
    wait_until(lambda: device.state == "active")
    device.fetched.clear()
    second = plant.manifest(model, 2, created=NOW + 30)
    announce(publisher, plant.sign(second))
    wait_until(lambda: device.store.state.version == 2)
    assert device.store.state.expires == second.expires
    assert len(device.adopted) == 1
    assert not device.fetched


def test_a_rollback_to_the_last_good_release_costs_no_download(
    plant: Plant, model: Path, publisher: Session, follow: Follow, tmp_path: Path
) -> None:
    first = plant.manifest(model, 1)
    second = plant.manifest(make_folder(tmp_path / "second", seed=2), 2)
    upload(publisher, plant)
    announce(publisher, plant.sign(first), plant.order(first))
    device = follow()
    wait_until(lambda: device.store.active == first.release)
    device.store.confirm()
    announce(publisher, plant.sign(second), plant.order(second))
    wait_until(lambda: device.store.active == second.release)
    device.fetched.clear()
    back = plant.manifest(model, 3)
    announce(publisher, plant.sign(back), plant.order(back, sequence=2))
    wait_until(lambda: device.store.state.version == 3)
    assert device.store.active == first.release
    assert not device.fetched


def test_a_refused_release_is_not_tried_again_until_a_higher_version_comes(
    plant: Plant, model: Path, publisher: Session, follow: Follow, tmp_path: Path
) -> None:
    first = plant.manifest(model, 1)
    bad = plant.manifest(make_folder(tmp_path / "bad", seed=3), 2)
    upload(publisher, plant)
    announce(publisher, plant.sign(first), plant.order(first))
    tried: list[int] = []

    def adopt(candidate: Candidate) -> None:
        tried.append(candidate.version)
        if candidate.version == 2:
            raise CanariesFailed("3 of 8 canaries answered otherwise")

    device = follow(adopt=adopt)
    wait_until(lambda: device.store.active == first.release)
    announce(publisher, plant.sign(bad), plant.order(bad))
    wait_until(lambda: device.state == "failed")
    assert "3 of 8 canaries" in device.reason
    assert device.reports[-1].release == first.release
    assert device.reports[-1].target_version == 2
    assert device.store.active == first.release
    assert device.store.installed.find(bad.release) is None
    announce(publisher, plant.sign(bad), plant.order(bad, sequence=2))
    wait_until(lambda: device.store.order_sequence(bad.release, plant.rollout.public) == 2)
    higher = plant.manifest(tmp_path / "bad", 3)
    announce(publisher, plant.sign(higher), plant.order(higher, sequence=3))
    wait_until(lambda: device.store.state.version == 3)
    assert tried == [1, 2, 3]


def test_a_release_that_kills_the_process_again_and_again_is_refused(
    plant: Plant, model: Path, publisher: Session, follow: Follow
) -> None:
    manifest = plant.manifest(model, 1)
    signed = plant.sign(manifest)
    upload(publisher, plant)
    device = follow()
    for _ in range(3):  # three processes that died in `adopt`
        device.store.begin_trial(manifest.release, 1, payload_sha256(signed))
    announce(publisher, plant.sign(manifest), plant.order(manifest))
    wait_until(lambda: device.state == "failed")
    assert "died 3 times" in device.reason
    assert not device.adopted


def test_a_missing_chunk_is_named_and_fetched_when_it_is_back(
    plant: Plant, model: Path, publisher: Session, follow: Follow
) -> None:
    manifest = plant.manifest(model, 1)
    sha256, chunk, content = next(one for one in chunks_of(plant) if one[1] == 2)
    upload(publisher, plant, without=[(sha256, chunk)])
    announce(publisher, plant.sign(manifest), plant.order(manifest))
    device = follow()
    wait_until(lambda: device.state == "failed")
    assert f"chunk {chunk} of blob {sha256} is not at the broker" in device.reason
    assert device.codes() == {"chunk_missing"}
    before = set(device.fetched)
    retain(publisher, BlobTopic(sha256, chunk), content)
    wait_until(lambda: device.state == "active")
    assert set(device.fetched) - before == {str(BlobTopic(sha256, chunk))}


def test_stray_duplicate_and_forged_chunks_change_nothing(
    plant: Plant, model: Path, publisher: Session, follow: Follow
) -> None:
    manifest = plant.manifest(model, 1)
    held = next(one for one in chunks_of(plant) if one[1] == 1)
    upload(publisher, plant, without=[held[:2]])
    announce(publisher, plant.sign(manifest), plant.order(manifest))
    device = follow()
    wait_until(lambda: device.state == "failed")
    folder = device.store.downloads.folder
    before = sorted(folder.rglob("*"))
    take = device.follower.take
    for topic, payload in (
        (BlobTopic("f" * 64, 0), b"stray"),
        (BlobTopic(held[0], 0), b"forged duplicate"),
        (BlobTopic(held[0], 99), b"out of range"),
    ):
        retain(publisher, topic, payload)
        assert take(Delivery(str(topic), payload, epoch=1, mid=1))
    assert sorted(folder.rglob("*")) == before
    retain(publisher, BlobTopic(held[0], 0), chunks_of(plant)[0][2])
    retain(publisher, BlobTopic(*held[:2]), held[2])
    wait_until(lambda: device.state == "active")


def test_a_broker_that_lost_everything_is_waited_for_and_only_the_rest_is_fetched(
    plant: Plant,
    model: Path,
    mosquitto: RunningBroker,
    publisher: Session,
    follow: Follow,
) -> None:
    manifest = plant.manifest(model, 1)
    chunks = chunks_of(plant)
    late = [one[:2] for one in chunks if one[1] >= 3]
    upload(publisher, plant, without=late)
    announce(publisher, plant.sign(manifest), plant.order(manifest))
    device = follow()
    wait_until(lambda: device.state == "failed")
    have = set(device.fetched)
    mosquitto.kill()
    for path in mosquitto.directory.rglob("mosquitto.db"):
        path.unlink()
    mosquitto.start()
    assert publisher.wait_connected(20)
    device.fetched.clear()
    wait_until(lambda: device.session.is_connected)
    upload(publisher, plant)
    announce(publisher, plant.sign(manifest), plant.order(manifest))
    wait_until(lambda: device.state == "active")
    assert not have & set(device.fetched)


def test_a_fresh_device_outside_the_share_begins_with_the_release_before(
    plant: Plant, model: Path, publisher: Session, follow: Follow, tmp_path: Path
) -> None:
    first = plant.manifest(model, 1)
    signed = plant.sign(first)
    second = plant.manifest(make_folder(tmp_path / "second", seed=2), 2, previous=signed)
    upload(publisher, plant)
    announce(publisher, plant.sign(second), plant.order(second, share=0.0))
    device = follow()
    wait_until(lambda: device.state == "active")
    assert device.store.active == first.release
    assert [one.version for one in device.adopted] == [1]
    announce(publisher, plant.sign(second), plant.order(second, sequence=2))
    wait_until(lambda: device.store.active == second.release)


def test_a_worker_takes_the_release_before_and_the_offered_one_and_keeps_both(
    plant: Plant, model: Path, publisher: Session, follow: Follow, tmp_path: Path
) -> None:
    first = plant.manifest(model, 1)
    second = plant.manifest(make_folder(tmp_path / "second", seed=2), 2, previous=plant.sign(first))
    upload(publisher, plant)
    announce(publisher, plant.sign(second))
    worker = follow(name="worker", waits_for_order=False, keeps_previous=True)
    wait_until(lambda: worker.store.active == second.release)
    assert [one.version for one in worker.adopted] == [1, 2]
    assert set(worker.store.installed.digests()) == {first.release, second.release}


def test_a_pause_stops_a_download_that_is_under_way(
    plant: Plant, model: Path, publisher: Session, follow: Follow
) -> None:
    manifest = plant.manifest(model, 1)
    upload(publisher, plant)
    announce(publisher, plant.sign(manifest), plant.order(manifest))
    device = follow(settings={"max_bytes_per_second": 200_000})
    wait_until(lambda: len(device.fetched) >= 1)
    announce(publisher, plant.sign(manifest), plant.order(manifest, sequence=2, paused=True))
    wait_until(lambda: device.state == "init")
    assert not device.adopted


@pytest.mark.parametrize("seed", range(2))
def test_any_number_of_cut_links_leads_to_the_whole_release(
    plant: Plant,
    model: Path,
    mosquitto: RunningBroker,
    publisher: Session,
    follow: Follow,
    seed: int,
) -> None:
    manifest = plant.manifest(model, 1)
    upload(publisher, plant)
    announce(publisher, plant.sign(manifest), plant.order(manifest))
    generator = random.Random(seed)
    device = follow(settings={"max_bytes_per_second": 2_000_000})
    stop = threading.Event()

    def cut() -> None:
        while not stop.wait(generator.uniform(0.05, 0.3)):
            connection = device.session._keeper.connection
            if connection is not None:
                connection.abandon("cut by the test")

    cutter = threading.Thread(target=cut)
    cutter.start()
    time.sleep(2.0)
    stop.set()
    cutter.join()
    wait_until(lambda: device.state == "active")
    assert folder_digest(device.adopted[0].folder) == manifest.release
