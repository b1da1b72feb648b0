"""What of a channel is believed and obeyed, and what an attacker on it cannot use up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.manifest import Manifest
from protocol.release_messages import RolloutOrder
from protocol.signing import SigningKey
from releases.errors import ExpiredManifest, NotEnoughSpace
from releases.offers import ORDERS_WAITING, Offers
from releases.store import ReleaseStore
from tests.releases.plant import CHANNEL, NOW, Plant

MOST = 2**53 - 1


class Heard:
    """Offers on a store, with a clock that can be set."""

    def __init__(self, folder: Path, plant: Plant) -> None:
        self.store, self.now = ReleaseStore(folder), NOW + 60
        self.offers = Offers(
            self.store,
            plant.trust,
            CHANNEL,
            name="kitchen",
            waits_for_order=True,
            keeps_previous=False,
            wall_clock=lambda: self.now,
        )

    @property
    def version(self) -> int | None:
        """What is to be taken."""
        target = self.offers.target()
        return None if target is None else target.offer.manifest.version


@pytest.fixture
def heard(tmp_path: Path, plant: Plant) -> Iterator[Heard]:
    made = Heard(tmp_path / "store", plant)
    with made.store:
        yield made


def order_of(key: SigningKey, manifest: Manifest, sequence: int) -> bytes:
    """An order for everybody, by any key."""
    order = RolloutOrder(
        channel=CHANNEL,
        release=manifest.release,
        version=manifest.version,
        sequence=sequence,
        share=1.0,
        paused=False,
        reason="",
        created=NOW,
        expires=NOW + 86_400,
    )
    return order.sign(key).encode()


def test_a_stolen_keys_last_sequence_dies_with_the_key(
    heard: Heard, plant: Plant, model: Path
) -> None:
    thief = SigningKey.make("thief")
    stolen = plant.manifest(model, 5, rollout_public=thief.public)
    heard.offers.hear_manifest(plant.sign(stolen).encode())
    heard.offers.hear_order(order_of(thief, stolen, MOST))
    assert heard.store.order_sequence(stolen.release, thief.public) == MOST
    plant.rotate("key2")
    manifest = plant.manifest(model, 6, created=NOW + 10)
    heard.offers.hear_manifest(plant.sign(manifest).encode())
    heard.offers.hear_order(plant.order(manifest, sequence=1))
    assert heard.version == 6


def test_what_a_stolen_key_had_refused_does_not_use_up_its_successors_versions(
    heard: Heard, plant: Plant, model: Path
) -> None:
    stolen = plant.manifest(model, 6)
    heard.offers.hear_manifest(plant.sign(stolen).encode())
    heard.offers.hear_order(plant.order(stolen))
    target = heard.offers.target()
    assert target is not None
    heard.store.refuse(stolen.release, 6, target.offer.sha256, "its files do not fit")
    assert heard.version is None
    plant.rotate("key2")
    manifest = plant.manifest(model, 6, created=NOW + 10)
    heard.offers.hear_manifest(plant.sign(manifest).encode())
    heard.offers.hear_order(plant.order(manifest))
    assert heard.version == 6


def test_a_manifest_that_only_the_clock_spoke_against_is_believed_once_it_is_set(
    heard: Heard, plant: Plant, model: Path
) -> None:
    manifest = plant.manifest(model, 1)
    heard.now = manifest.expires + 1
    with pytest.raises(ExpiredManifest):
        heard.offers.hear_manifest(plant.sign(manifest).encode())
    heard.offers.hear_order(plant.order(manifest))
    with pytest.raises(ExpiredManifest):
        heard.offers.hear_again()
    heard.now = NOW + 60
    heard.offers.hear_again()
    assert heard.version == 1


def test_a_key_list_that_found_the_disk_full_is_written_later(
    heard: Heard, plant: Plant, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant.rotate("key2")
    manifest = plant.manifest(model, 1)
    with monkeypatch.context() as disk:
        disk.setattr("releases.store.write_json", _full)
        with pytest.raises(NotEnoughSpace):
            heard.offers.hear_manifest(plant.sign(manifest).encode())
    assert heard.store.trust.key_list is None
    heard.offers.hear_again()
    assert heard.store.trust.key_list is not None
    heard.offers.hear_order(plant.order(manifest))
    assert heard.version == 1


def test_an_order_that_found_the_disk_full_counts_and_is_written_later(
    heard: Heard, plant: Plant, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = plant.manifest(model, 1)
    heard.offers.hear_manifest(plant.sign(manifest).encode())
    with monkeypatch.context() as disk:
        disk.setattr("releases.store.write_json", _full)
        heard.offers.hear_order(plant.order(manifest, sequence=3))
        assert heard.version == 1
        heard.offers.hear_order(plant.order(manifest, sequence=2, paused=True))
        assert heard.version == 1
    assert heard.store.order_sequence(manifest.release, plant.rollout.public) == 0
    heard.offers.hear_again()
    assert heard.store.order_sequence(manifest.release, plant.rollout.public) == 3
    assert heard.version == 1


def test_orders_that_were_pushed_out_before_their_manifest_are_asked_for_again_once(
    heard: Heard, plant: Plant, model: Path
) -> None:
    manifest, forger = plant.manifest(model, 1), SigningKey.make("forger")
    heard.offers.hear_order(plant.order(manifest))
    for sequence in range(ORDERS_WAITING):
        heard.offers.hear_order(order_of(forger, manifest, sequence + 1))
    assert not heard.offers.wants_orders_again()
    heard.offers.hear_manifest(plant.sign(manifest).encode())
    assert heard.offers.wants_orders_again()
    heard.offers.hear_order(order_of(forger, manifest, 99))
    heard.offers.hear_manifest(plant.sign(manifest).encode())
    assert not heard.offers.wants_orders_again()  # no endless asking
    heard.offers.hear_order(plant.order(manifest))
    assert heard.version == 1


def test_an_order_in_time_is_not_asked_for_again(heard: Heard, plant: Plant, model: Path) -> None:
    manifest = plant.manifest(model, 1)
    heard.offers.hear_order(plant.order(manifest))
    heard.offers.hear_manifest(plant.sign(manifest).encode())
    assert not heard.offers.wants_orders_again()
    again = replace(manifest, version=2, created=NOW + 1)
    heard.offers.hear_manifest(plant.sign(again).encode())
    assert not heard.offers.wants_orders_again()


def _full(*_: object) -> None:
    raise NotEnoughSpace("no space left")
