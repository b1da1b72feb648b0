"""From chunks to a folder: exact, synced, in one step, or not at all."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

import releases.assembly
from protocol.manifest import CHUNK_BYTES, Architecture, Manifest
from reader.weights import folder_digest
from releases.architecture import architecture_of, check_architecture
from releases.assembly import assemble, update_beside
from releases.errors import ContentError, DigestMismatch, UnsupportedArchitecture
from releases.planning import LocalContent, Plan, missing_indexes, plan
from releases.store import ReleaseStore
from tests.releases.plant import CONFIG, Plant, make_folder


def ready(plant: Plant, manifest: Manifest, store: ReleaseStore, local: list[Path]) -> Plan:
    """The plan, with every chunk on the disk."""
    content = LocalContent(local)

    def bring(wanted: object) -> None:
        for one in wanted:  # type: ignore[attr-defined]
            start = one.chunk * CHUNK_BYTES
            chunk = plant.blobs.read_range(one.blob.sha256, start, one.length_bytes)
            store.downloads.put(one.blob, one.chunk, chunk)

    bring(missing_indexes(manifest.files, content, store.downloads))
    made = plan(manifest, manifest.files, content, store.downloads, max_release_bytes=2**31)
    bring(made.chunks)
    return made


def nothing_is_in_sight(store: ReleaseStore) -> None:
    assert store.installed.digests() == ()
    assert not list((store.folder / "installed").iterdir())


def test_the_folder_is_byte_for_byte_the_publishers(
    plant: Plant, model: Path, tmp_path: Path
) -> None:
    manifest = plant.manifest(model, 1)
    with ReleaseStore(tmp_path / "store") as store:
        folder = assemble(manifest, ready(plant, manifest, store, []), store)
        assert {path.name for path in folder.iterdir()} == {path.name for path in model.iterdir()}
        for path in model.iterdir():
            assert (folder / path.name).read_bytes() == path.read_bytes()


def test_differences_and_parts_from_the_disk_give_exact_bits(
    plant: Plant, model: Path, tmp_path: Path
) -> None:
    changed = make_folder(tmp_path / "changed", seed=8)
    manifest = plant.manifest(changed, 2, bases=[model])
    with ReleaseStore(tmp_path / "store") as store:
        folder = assemble(manifest, ready(plant, manifest, store, [model]), store)
        assert folder_digest(folder) == folder_digest(changed)


def test_every_file_and_the_folder_are_synced_before_they_are_in_sight(
    plant: Plant, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = plant.manifest(model, 1)
    with ReleaseStore(tmp_path / "store") as store:
        made = ready(plant, manifest, store, [])
        synced: list[str] = []
        real = os.fsync

        def note(descriptor: int) -> None:
            synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
            real(descriptor)

        monkeypatch.setattr(os, "fsync", note)
        assemble(manifest, made, store)
        partial = f"{manifest.release}.partial"
        assert synced[-2:] == [partial, "installed"]
        assert set(synced[:-2]) == {path.name for path in model.iterdir()}


@pytest.mark.parametrize("name", ["model.safetensors", "exits.json"])
def test_a_file_with_another_hash_than_signed_is_not_installed(
    plant: Plant, model: Path, tmp_path: Path, name: str
) -> None:
    manifest = plant.manifest(model, 1)
    with ReleaseStore(tmp_path / "store") as store:
        made = ready(plant, manifest, store, [])
        for one in made.files:
            if one.file.name == name:  # no constructor would make such a file
                object.__setattr__(one.file, "sha256", "b" * 64)
        with pytest.raises(ContentError, match=name):
            assemble(manifest, made, store)
        nothing_is_in_sight(store)


def test_a_part_with_another_hash_than_signed_is_not_written(
    plant: Plant, model: Path, tmp_path: Path
) -> None:
    manifest = plant.manifest(model, 1)
    with ReleaseStore(tmp_path / "store") as store:
        made = ready(plant, manifest, store, [])
        file = next(one for one in made.files if one.steps)
        steps = (replace(file.steps[0], part=replace(file.steps[0].part, sha256="b" * 64)),)
        files = tuple(
            replace(one, steps=steps + one.steps[1:]) if one is file else one for one in made.files
        )
        with pytest.raises(ContentError, match="part b"):
            assemble(manifest, replace(made, files=files), store)
        nothing_is_in_sight(store)


def test_files_that_make_another_release_are_not_installed(
    plant: Plant, model: Path, tmp_path: Path
) -> None:
    manifest = plant.manifest(model, 1, release="c" * 64)
    with ReleaseStore(tmp_path / "store") as store:
        made = ready(plant, manifest, store, [])
        with pytest.raises(DigestMismatch):
            assemble(manifest, made, store)
        nothing_is_in_sight(store)


def test_a_death_before_the_rename_leaves_nothing_in_sight(
    plant: Plant, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = plant.manifest(model, 1)
    with ReleaseStore(tmp_path / "store") as store:
        made = ready(plant, manifest, store, [])

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(releases.assembly, "remove_tree", lambda _: None)
        monkeypatch.setattr(store.installed, "put", die)
        with pytest.raises(KeyboardInterrupt):
            assemble(manifest, made, store)
        assert store.installed.digests() == ()
    with ReleaseStore(tmp_path / "store") as store:
        nothing_is_in_sight(store)


def test_files_that_the_digest_does_not_cover_are_brought_up_to_date_in_place(
    plant: Plant, model: Path, tmp_path: Path
) -> None:
    first = plant.manifest(model, 1, canaries=b"[1]")
    second = plant.manifest(model, 2, canaries=b"[2]")
    assert first.release == second.release
    with ReleaseStore(tmp_path / "store") as store:
        folder = assemble(first, ready(plant, first, store, []), store)
        made = ready(plant, second, store, [folder])
        beside = [one for one in made.files if one.file.name == "canaries.json"]
        update_beside(folder, replace(made, files=tuple(beside)), store.downloads)
        assert (folder / "canaries.json").read_bytes() == b"[2]"
        with pytest.raises(DigestMismatch):
            update_beside(folder, made, store.downloads)


def architecture(**changes: object) -> Architecture:
    return replace(architecture_of(CONFIG), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [{"model_type": "bert"}, {"heads": 7}, {"groups": 5}],
    ids=lambda one: next(iter(one)),
)
def test_an_architecture_that_no_reader_has_is_refused(changes: dict[str, object]) -> None:
    check_architecture(architecture())
    with pytest.raises(UnsupportedArchitecture):
        check_architecture(architecture(**changes))
