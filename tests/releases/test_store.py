"""The store: what it remembers over a restart, probation, refusals, and what it removes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

import releases.files
from releases.errors import CrashLoop, NotEnoughSpace, StoreError
from releases.store import ReleaseStore
from releases.store_state import StoreState
from releases.trust import TrustState, Used

A, B, C = "a" * 64, "b" * 64, "c" * 64
KEY = b"k" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def installed(store: ReleaseStore, release: str) -> None:
    """An (empty) folder of a release."""
    store.installed.path_of(release).mkdir()


def running_good_then(store: ReleaseStore, new: str) -> None:
    """A is proved, `new` has just come into use."""
    for release in (A, new):
        installed(store, release)
    store.commit(A, 1, "m1", 10.0)
    store.confirm()
    store.commit(new, 2, "m2", 20.0)


def test_everything_is_remembered_by_the_next_process(folder: Path) -> None:
    with ReleaseStore(folder) as store:
        running_good_then(store, B)
        store.refuse(C, 3, "m3", "no")
        store.note_order(B, KEY, 7)
        store.save_trust(TrustState(None, {("stable", KEY): Used(2, A, 5.0)}))
        state, trust = store.state, store.trust
    with ReleaseStore(folder) as store:
        assert store.state == state
        assert store.trust == trust
        assert store.refusal("m3") == "no"
        assert store.refusal("m4") is None
        assert store.order_sequence(B, KEY) == 7


def test_a_second_process_cannot_have_the_store(folder: Path) -> None:
    with ReleaseStore(folder), pytest.raises(StoreError, match="in use by another process"):
        ReleaseStore(folder)
    ReleaseStore(folder).close()


def test_a_release_that_never_works_gives_way_to_the_last_good_one(folder: Path) -> None:
    with ReleaseStore(folder, max_starts=2) as store:
        running_good_then(store, B)
        assert [store.begin_start() for _ in range(3)] == [B, B, A]
        assert store.state.version == 1
        assert store.state.expires == 10.0
        assert "never worked" in (store.refusal("m2") or "")
        assert store.begin_start() == A


def test_a_confirmed_release_may_start_as_often_as_it_likes(folder: Path) -> None:
    with ReleaseStore(folder, max_starts=2) as store:
        running_good_then(store, B)
        store.begin_start()
        store.confirm()
        assert {store.begin_start() for _ in range(5)} == {B}


def test_a_first_release_that_never_works_leaves_none(folder: Path) -> None:
    with ReleaseStore(folder, max_starts=1) as store:
        installed(store, A)
        store.commit(A, 1, "m1", 10.0)
        assert [store.begin_start() for _ in range(2)] == [A, None]


def test_a_release_on_probation_never_becomes_the_last_good_one(folder: Path) -> None:
    with ReleaseStore(folder) as store:
        running_good_then(store, B)
        installed(store, C)
        store.commit(C, 3, "m3", 30.0)
        assert store.state.last_good == A


def test_a_release_whose_folder_is_gone_is_left_but_may_come_again(folder: Path) -> None:
    with ReleaseStore(folder) as store:
        running_good_then(store, B)
        store.installed.path_of(B).rmdir()
        assert store.begin_start() == A
        assert store.refusal("m2") is None


def test_a_trial_that_the_process_does_not_survive_is_counted(folder: Path) -> None:
    for _ in range(2):
        with ReleaseStore(folder, max_starts=2) as store:
            store.begin_trial(A, 1, "m1")
    with ReleaseStore(folder, max_starts=2) as store:
        with pytest.raises(CrashLoop):
            store.begin_trial(A, 1, "m1")
        assert store.refusal("m1")
        store.begin_trial(A, 2, "m2")
        store.end_trial()
        store.begin_trial(A, 2, "m2")
        assert store.state.trial is not None
        assert store.state.trial.starts == 1


def test_collecting_keeps_what_is_in_use_and_what_it_is_told(folder: Path) -> None:
    with ReleaseStore(folder) as store:
        running_good_then(store, B)
        for release in (C, "d" * 64):
            installed(store, release)
        store.collect(keep=[C])
        assert store.installed.digests() == (A, B, C)
        with pytest.raises(StoreError, match="in use"):
            store.remove(A)


def test_what_an_interrupted_write_left_is_cleared(folder: Path) -> None:
    with ReleaseStore(folder) as store:
        store.installed.partial_folder(A).mkdir()
        chunk = store.downloads.folder / A / "3.partial"
        chunk.parent.mkdir()
        chunk.write_bytes(b"half")
    with ReleaseStore(folder) as store:
        assert store.installed.digests() == ()
        assert not store.installed.partial_folder(A).exists()
        assert not chunk.exists()


def test_a_write_that_finds_the_disk_full_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ReleaseStore(folder) as store:
        running_good_then(store, B)
        before = (folder / "state.json").read_bytes()
        monkeypatch.setattr(releases.files.os, "fsync", _full)
        with pytest.raises(NotEnoughSpace):
            store.refuse(B, 2, "m2", "no")
        assert (folder / "state.json").read_bytes() == before
        assert store.refusal("m2") is None
        assert not list(folder.glob("*.partial"))


def test_a_broken_trust_state_is_named(folder: Path) -> None:
    ReleaseStore(folder).close()
    for content in ("{", json.dumps({"used": 3})):
        (folder / "trust.json").write_text(content)
        with pytest.raises(StoreError, match=r"trust\.json"):
            ReleaseStore(folder)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"active": 5}',
        '{"active": "../../etc"}',
        '{"version": "x"}',
        '{"expires": NaN}',
        '{"manifest": 5}',
        '{"refused": 3}',
        '{"refused": [{"release": [], "version": {}, "manifest": "", "reason": 3}]}',
        '{"orders": {"a": 1e999}}',
        '{"orders": [1]}',
        json.dumps({"probation": {"release": A, "version": 1, "manifest": "m", "starts": "a"}}),
        '{"trial": {"release": 1}}',
    ],
)
def test_a_broken_state_is_put_aside_and_the_store_begins_anew(folder: Path, content: str) -> None:
    with ReleaseStore(folder) as store:
        running_good_then(store, B)
    (folder / "state.json").write_text(content)
    with ReleaseStore(folder) as store:
        assert store.state == StoreState()
        assert store.begin_start() is None
        assert store.installed.digests() == (A, B)  # what was fetched is not fetched again
        store.commit(B, 2, "m2", 20.0)
    assert (folder / "state.json.broken").read_text() == content
    with ReleaseStore(folder) as store:
        assert store.active == B


def test_the_counter_of_one_rollout_key_says_nothing_about_another(folder: Path) -> None:
    with ReleaseStore(folder) as store:
        store.note_order(A, KEY, 2**53 - 1)
        store.note_order(A, b"n" * 32, 1)
        assert store.order_sequence(A, b"n" * 32) == 1
        assert store.order_sequence(A, KEY) == 2**53 - 1


def test_a_full_disk_keeps_no_start_and_no_return_from_happening(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ReleaseStore(folder, max_starts=1) as store:
        running_good_then(store, B)
        monkeypatch.setattr(releases.files.os, "fsync", _full)
        assert store.begin_start() == B
        assert store.begin_start() == A  # it counts in this process
        assert store.refusal("m2")
        assert store.fall_back("no") is None


def test_a_closed_store_writes_nothing(folder: Path) -> None:
    store = ReleaseStore(folder)
    store.close()
    for write in (
        lambda: store.commit(A, 1, "m1", 10.0),
        lambda: store.note_order(A, KEY, 1),
        lambda: store.save_trust(TrustState()),
    ):
        with pytest.raises(StoreError, match="is closed"):
            write()
    assert not list(folder.glob("*.json"))


def _full(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
