"""Which manifests are believed; the attacks on a whole device are in `test_attacks`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.signing import KeyList, SigningKey
from releases.errors import ExpiredManifest, Rollback, StoreError
from releases.trust import TrustState, check_manifest, current_keys, newer_key_list
from tests.releases.plant import CHANNEL, NOW, Plant


def check(plant: Plant, signed: object, trust: TrustState, **options: object) -> object:
    arguments = {"channel": CHANNEL, "now": NOW + 1, **options}
    return check_manifest(signed, trust=trust, publisher=plant.trust, **arguments)  # type: ignore[arg-type]


def test_a_state_survives_json(plant: Plant, model: Path) -> None:
    manifest = plant.manifest(model, 3)
    signed = plant.sign(manifest)
    trust = TrustState(signed.key_list).with_used(signed, manifest, plant.key.public)
    assert TrustState.from_json(json.loads(json.dumps(trust.to_json()))) == trust


@pytest.mark.parametrize("document", [{}, {"key_list": {}, "used": []}, {"key_list": None}])
def test_a_broken_state_is_an_error_and_not_an_empty_one(document: dict[str, object]) -> None:
    with pytest.raises(StoreError, match=r"trust\.json"):
        TrustState.from_json(document)


def test_the_newest_list_counts_wherever_it_was_seen(plant: Plant, model: Path) -> None:
    signed = plant.sign(plant.manifest(model, 1))
    plant.rotate("key2")
    newer = plant.key_list.sign(plant.root)
    assert current_keys(TrustState(), plant.trust).version == 1
    assert current_keys(TrustState(newer), plant.trust).version == 3
    assert current_keys(TrustState(), plant.trust, newer).version == 3
    assert current_keys(TrustState(newer), plant.trust, signed.key_list).version == 3
    assert newer_key_list(signed, TrustState(newer), plant.trust) is None
    later = replace(signed, key_list=newer)
    assert newer_key_list(later, TrustState(), plant.trust) == newer
    assert newer_key_list(later, TrustState(newer), plant.trust) is None


def test_a_list_of_a_root_from_before_a_new_enrolment_does_not_count(plant: Plant) -> None:
    other = KeyList(9, {"x": SigningKey.make("x").public}).sign(SigningKey.make("root"))
    assert current_keys(TrustState(other), plant.trust).version == 1


def test_versions_count_per_channel(plant: Plant, model: Path) -> None:
    high = plant.manifest(model, 9, channel="beta")
    trust = TrustState().with_used(plant.sign(high), high, plant.key.public)
    low = plant.manifest(model, 1, created=NOW - 50)
    assert check(plant, plant.sign(low), trust) == low


def test_the_same_manifest_is_believed_again(plant: Plant, model: Path) -> None:
    manifest = plant.manifest(model, 2)
    signed = plant.sign(manifest)
    trust = TrustState().with_used(signed, manifest, plant.key.public)
    assert check(plant, signed, trust) == manifest


def test_a_vouched_for_manifest_may_be_expired_but_not_older_than_what_was_used(
    plant: Plant, model: Path
) -> None:
    manifest = plant.manifest(model, 2)
    signed = plant.sign(manifest)
    late = {"now": NOW + 10**7}
    with pytest.raises(ExpiredManifest):
        check(plant, signed, TrustState(), **late)
    assert check(plant, signed, TrustState(), is_vouched_for=True, **late) == manifest
    higher = plant.manifest(model, 3)
    trust = TrustState().with_used(plant.sign(higher), higher, plant.key.public)
    with pytest.raises(Rollback):
        check(plant, signed, trust, is_vouched_for=True, **late)


def test_a_manifest_expires_at_its_second(plant: Plant, model: Path) -> None:
    manifest = plant.manifest(model, 1)
    signed = plant.sign(manifest)
    assert check(plant, signed, TrustState(), now=manifest.expires - 1) == manifest
    with pytest.raises(ExpiredManifest):
        check(plant, signed, TrustState(), now=manifest.expires)


def test_what_another_publisher_used_does_not_count_though_its_key_has_the_same_name(
    plant: Plant, model: Path, tmp_path: Path
) -> None:
    before = Plant(tmp_path / "before")
    high = before.manifest(model, 9)
    trust = TrustState().with_used(before.sign(high), high, before.key.public)
    assert before.key.key_id == plant.key.key_id
    low = plant.manifest(model, 1, created=NOW - 50)
    assert check(plant, plant.sign(low), trust) == low
    with pytest.raises(Rollback):
        check(before, before.sign(before.manifest(model, 1)), trust)
