"""A follower over a real mosquitto whose disk, clock, memory or broker was wrong for a while."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from broker.exchange import Publication
from broker.session import Session
from protocol.signing import SigningKey
from protocol.topics import ManifestTopic, RolloutTopic
from reader.weights import folder_digest
from releases import hearing
from releases.errors import CanariesFailed, ProofStarved
from releases.follower import Candidate
from releases.offers import ORDERS_WAITING
from tests.releases.conftest import Follows
from tests.releases.plant import (
    CHANNEL,
    WAIT_SECONDS,
    Plant,
    announce,
    make_folder,
    retain,
    upload,
    wait_until,
)
from tests.releases.test_offers import order_of

Follow = Callable[..., Follows]


def test_a_rollback_to_a_release_that_was_damaged_meanwhile_fetches_what_was_signed(
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
    device.store.confirm()
    weights = device.store.installed.path_of(first.release) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    back = plant.manifest(model, 3)
    announce(publisher, plant.sign(back), plant.order(back, sequence=2))
    wait_until(lambda: device.store.state.version == 3)
    assert folder_digest(device.adopted[-1].folder) == first.release


def test_a_clock_that_is_set_later_leads_to_the_release_without_a_word_of_the_broker(
    plant: Plant,
    model: Path,
    publisher: Session,
    follow: Follow,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hearing, "HEAR_AGAIN_SECONDS", 0.1)
    manifest = plant.manifest(model, 1)
    upload(publisher, plant)
    announce(publisher, plant.sign(manifest), plant.order(manifest))
    now = [manifest.expires + 1]
    device = follow(wall_clock=lambda: now[0])
    wait_until(lambda: "expired" in device.codes())
    now[0] = manifest.created + 60
    wait_until(lambda: device.store.active == manifest.release)


def test_an_order_that_others_pushed_out_before_its_manifest_is_asked_for_again(
    plant: Plant, model: Path, publisher: Session, follow: Follow
) -> None:
    manifest, forger = plant.manifest(model, 1), SigningKey.make("forger")
    upload(publisher, plant)
    device = follow()
    retain(publisher, RolloutTopic(CHANNEL), plant.order(manifest))
    wait_until(lambda: bool(device.follower._offers._orders_waiting))
    for sequence in range(ORDERS_WAITING):
        order = order_of(forger, manifest, sequence + 1)
        publisher.publish(Publication(str(RolloutTopic(CHANNEL)), order)).wait(WAIT_SECONDS)
    retain(publisher, ManifestTopic(CHANNEL), plant.sign(manifest).encode())
    wait_until(lambda: device.store.active == manifest.release)


def test_want_of_memory_is_tried_again_until_the_trials_are_over(
    plant: Plant, model: Path, publisher: Session, follow: Follow
) -> None:
    manifest = plant.manifest(model, 1)
    upload(publisher, plant)
    announce(publisher, plant.sign(manifest), plant.order(manifest))
    tried: list[int] = []

    def adopt(candidate: Candidate) -> None:
        tried.append(candidate.version)
        raise ProofStarved("no memory")

    device = follow(adopt=adopt)
    wait_until(lambda: "crash_loop" in device.codes())
    assert tried == [1, 1, 1]
    assert {"no_memory", "crash_loop"} <= device.codes()


def test_want_of_memory_that_passes_costs_nothing(
    plant: Plant, model: Path, publisher: Session, follow: Follow
) -> None:
    manifest = plant.manifest(model, 1)
    upload(publisher, plant)
    announce(publisher, plant.sign(manifest), plant.order(manifest))
    shortages = [ProofStarved("no memory")]

    def adopt(_: Candidate) -> None:
        if shortages:
            raise shortages.pop()

    device = follow(adopt=adopt)
    wait_until(lambda: device.store.active == manifest.release)
    assert device.store.state.refused == ()


def test_a_release_before_that_was_refused_is_not_tried_again_by_the_next_process(
    plant: Plant, model: Path, publisher: Session, follow: Follow, tmp_path: Path
) -> None:
    first = plant.manifest(model, 1)
    second = plant.manifest(make_folder(tmp_path / "second", seed=2), 2, previous=plant.sign(first))
    upload(publisher, plant)
    announce(publisher, plant.sign(second), plant.order(second, share=0.0))
    tried: list[int] = []

    def adopt(candidate: Candidate) -> None:
        tried.append(candidate.version)
        raise CanariesFailed("3 of 8")

    device = follow(adopt=adopt)
    wait_until(lambda: "canaries" in device.codes())
    device.stop()
    again = follow(adopt=adopt)
    wait_until(lambda: again.state == "failed")
    assert tried == [1]
    assert "3 of 8" in again.reason
