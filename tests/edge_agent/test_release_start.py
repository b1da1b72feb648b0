"""What a starting agent reads with: never what is broken; and why it is not the newest release."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.release_start import begin, folders_at_hand, load_release, open_store
from edge_agent.settings import EdgeSettings
from reader.errors import ModelFolderError
from reader.weights import folder_digest
from releases.errors import ContentError, NotEnoughSpace
from releases.store import ReleaseStore
from tests.tiny import make_tiny_model

EXPIRES = 2e9


@pytest.fixture
def settings(model_folder: Path, tmp_path: Path) -> EdgeSettings:
    return settings_of(tmp_path, model=str(model_folder))


@pytest.fixture
def store(settings: EdgeSettings) -> Iterator[ReleaseStore]:
    opened = open_store(settings)
    assert opened is not None
    with opened:
        yield opened


def settings_of(folder: Path, **values: Any) -> EdgeSettings:
    """Settings that follow a channel; the keys are not looked at here."""
    return EdgeSettings(
        broker={},  # type: ignore[arg-type]
        offload={"edge_key_file": "e", "pool_public_key_file": "p"},  # type: ignore[arg-type]
        releases={  # type: ignore[arg-type]
            "publisher_public_key_file": "k",
            "folder": folder / "releases",
            "max_starts": 2,
        },
        threads=1,
        **values,
    )


def take(store: ReleaseStore, folder: Path, version: int, seed: int) -> str:
    """A release, installed and in use, on probation."""
    made = make_tiny_model(folder / f"made-{version}", seed=seed)
    release = folder_digest(made)
    store.installed.put(made, release)
    store.commit(release, version, f"m{version}", EXPIRES)
    return release


def test_before_the_first_release_it_is_the_model_of_the_settings(
    settings: EdgeSettings, store: ReleaseStore, model_folder: Path
) -> None:
    start = begin(settings, store)
    assert start.reader is not None
    assert (start.reader.digest, start.given_up) == (folder_digest(model_folder), None)
    assert folders_at_hand(settings) == (model_folder,)


def test_a_device_without_weights_begins_with_nothing(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, model="none")
    with ReleaseStore(tmp_path / "releases") as store:
        assert begin(settings, store).reader is None
    assert folders_at_hand(settings) == ()


def test_the_release_in_use_is_named_by_its_channel_and_version(
    settings: EdgeSettings, store: ReleaseStore, tmp_path: Path
) -> None:
    release = take(store, tmp_path, 4, seed=1)
    start = begin(settings, store)
    assert start.reader is not None
    assert (start.reader.digest, start.reader.name) == (release, "stable-4")


def test_after_too_many_starts_on_probation_the_last_good_one_is_back(
    settings: EdgeSettings, store: ReleaseStore, tmp_path: Path
) -> None:
    good = take(store, tmp_path, 1, seed=1)
    store.confirm()
    bad = take(store, tmp_path, 2, seed=2)
    digests = []
    for _ in range(3):  # two starts that die, and a third
        start = begin(settings, store)
        assert start.reader is not None
        digests.append(start.reader.digest)
    assert digests == [bad, bad, good]
    assert start.given_up is not None
    assert (start.given_up.release, start.given_up.version) == (bad, 2)
    assert start.given_up.reason_code == "crash_loop"
    assert store.refusal("m2") is not None
    assert begin(settings, store).given_up is None


def test_starts_that_end_on_purpose_do_not_count(
    settings: EdgeSettings, store: ReleaseStore, tmp_path: Path
) -> None:
    release = take(store, tmp_path, 1, seed=1)
    for _ in range(6):
        start = begin(settings, store)
        assert start.reader is not None
        assert start.reader.digest == release
        store.forgive_start()


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone"])
def test_a_release_that_is_damaged_on_the_disk_gives_way_and_may_be_fetched_again(
    damage: str, settings: EdgeSettings, store: ReleaseStore, tmp_path: Path
) -> None:
    good = take(store, tmp_path, 1, seed=1)
    store.confirm()
    bad = take(store, tmp_path, 2, seed=2)
    store.confirm()
    weights = store.installed.path_of(bad) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "truncated":
        weights.write_bytes(content[:-100])
    elif damage == "changed":
        content[-1] ^= 1  # loads, and is no longer what was signed
        weights.write_bytes(content)
    else:
        shutil.rmtree(store.installed.path_of(bad))
    start = begin(settings, store)
    assert start.reader is not None
    assert start.reader.digest == good
    assert start.given_up is not None
    assert (start.given_up.release, start.given_up.reason_code) == (bad, "damaged")
    assert store.active == good
    assert store.installed.find(bad) is None
    assert store.refusal("m2") is None


def test_a_spoilt_file_that_the_digest_does_not_cover_costs_no_release(
    settings: EdgeSettings, store: ReleaseStore, tmp_path: Path
) -> None:
    release = take(store, tmp_path, 1, seed=1)
    (store.installed.path_of(release) / "codecs.json").write_bytes(b"\0\0\0")
    start = begin(settings, store)
    assert start.reader is not None
    assert (start.reader.digest, start.given_up) == (release, None)
    assert store.state.refused == ()


def test_a_release_that_was_damaged_while_the_agent_ran_is_not_gone_back_to(
    settings: EdgeSettings, store: ReleaseStore, tmp_path: Path
) -> None:
    release = take(store, tmp_path, 1, seed=1)
    weights = store.installed.path_of(release) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # loads, and is no longer what was signed
    weights.write_bytes(content)
    with pytest.raises(ContentError, match="no longer those of the release"):
        load_release(settings, store, release)


def test_a_full_disk_keeps_no_agent_from_its_start(
    settings: EdgeSettings, store: ReleaseStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = take(store, tmp_path, 1, seed=1)

    def full(*_: object) -> None:
        raise NotEnoughSpace("no space left")

    monkeypatch.setattr("releases.store.write_json", full)
    start = begin(settings, store)
    assert start.reader is not None
    assert start.reader.digest == release


def test_where_no_release_can_be_loaded_the_model_of_the_settings_answers(
    settings: EdgeSettings, store: ReleaseStore, tmp_path: Path, model_folder: Path
) -> None:
    made = make_tiny_model(tmp_path / "made", seed=1)
    (made / "tokenizer.json").write_text("{}", encoding="utf-8")
    release = folder_digest(made)  # complete, as it was signed, and of no use
    store.installed.put(made, release)
    store.commit(release, 1, "m1", EXPIRES)
    start = begin(settings, store)
    assert start.reader is not None
    assert start.reader.digest == folder_digest(model_folder)
    assert store.active is None
    assert start.given_up is not None
    assert start.given_up.reason_code == "cannot_load"
    assert "cannot be loaded" in (store.refusal("m1") or "")


def test_without_a_channel_a_model_that_cannot_be_loaded_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFolderError):
        begin(EdgeSettings(model=str(tmp_path / "empty")), None)
