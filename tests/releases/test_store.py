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
from releases.trust import TrustState, Used

A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def installed(store: ReleaseStore, release: str) -> None:
    """An (empty) folder of a release."""
    store.path_of(release).mkdir()


def running_good_then(store: ReleaseStore, new: str) -> None:
    """A is proved, `new` has just come into use."""
    for release in (A, new):
        installed(store, release)
    store.commit(A, 1, 10.0)
    store.confirm()
    store.commit(new, 2, 20.0)


def test_everything_is_remembered_by_the_next_process(folder: Path) -> None:
    with ReleaseStore(folder) as store:
        running_good_then(store, B)
        store.refuse(C, 3, "no")
        store.note_order(B, 7)
        store.save_trust(TrustState(None, {("stable", "key1"): Used(2, A, 5.0)}))
        state, trust = store.state, store.trust
    with ReleaseStore(folder) as store:
        assert store.state == state
        assert store.trust == trust
        assert store.refusal(C, 3) == "no"
        assert store.refusal(C, 4) is None
        assert store.order_sequence(B) == 7


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
        assert "never worked" in (store.refusal(B, 2) or "")
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
        store.commit(A, 1, 10.0)
        assert [store.begin_start() for _ in range(2)] == [A, None]


def test_a_release_on_probation_never_becomes_the_last_good_one(folder: Path) -> None:
    with ReleaseStore(folder) as store:
        running_good_then(store, B)
        installed(store, C)
        store.commit(C, 3, 30.0)
        assert store.state.last_good == A


def test_a_release_whose_folder_is_gone_is_left_but_may_come_again(folder: Path) -> None:
    with ReleaseStore(folder) as store:
        running_good_then(store, B)
        store.path_of(B).rmdir()
        assert store.begin_start() == A
        assert store.refusal(B, 2) is None


def test_a_trial_that_the_process_does_not_survive_is_counted(folder: Path) -> None:
    for _ in range(2):
        with ReleaseStore(folder, max_starts=2) as store:
            store.begin_trial(A, 1)
    with ReleaseStore(folder, max_starts=2) as store:
        with pytest.raises(CrashLoop):
            store.begin_trial(A, 1)
        assert store.refusal(A, 1)
        store.begin_trial(A, 2)
        store.end_trial()
        store.begin_trial(A, 2)
        assert store.state.trial is not None
        assert store.state.trial.starts == 1


def test_collecting_keeps_what_is_in_use_and_what_it_is_told(folder: Path) -> None:
    with ReleaseStore(folder) as store:
        running_good_then(store, B)
        for release in (C, "d" * 64):
            installed(store, release)
        store.collect(keep=[C])
        assert store.releases() == (A, B, C)
        with pytest.raises(StoreError, match="in use"):
            store.remove(A)


def test_what_an_interrupted_write_left_is_cleared(folder: Path) -> None:
    with ReleaseStore(folder) as store:
        store.partial_folder(A).mkdir()
        chunk = store.downloads.folder / A / "3.partial"
        chunk.parent.mkdir()
        chunk.write_bytes(b"half")
    with ReleaseStore(folder) as store:
        assert store.releases() == ()
        assert not store.partial_folder(A).exists()
        assert not chunk.exists()


def test_a_write_that_finds_the_disk_full_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ReleaseStore(folder) as store:
        running_good_then(store, B)
        before = (folder / "state.json").read_bytes()

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(releases.files.os, "fsync", full)
        with pytest.raises(NotEnoughSpace):
            store.refuse(B, 2, "no")
        assert (folder / "state.json").read_bytes() == before
        assert store.refusal(B, 2) is None
        assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize("name", ["trust.json", "state.json"])
def test_a_broken_file_is_named(folder: Path, name: str) -> None:
    ReleaseStore(folder).close()
    (folder / name).write_text("{")
    with pytest.raises(StoreError, match=name):
        ReleaseStore(folder)
    (folder / name).write_text(json.dumps({"used": 3, "refused": 3}))
    with pytest.raises(StoreError, match=name):
        ReleaseStore(folder)


def test_a_name_that_is_no_digest_leads_nowhere(folder: Path) -> None:
    with ReleaseStore(folder) as store, pytest.raises(StoreError, match="no digest"):
        store.path_of("../../etc")
