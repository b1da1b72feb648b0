"""What a plan takes from the disk, what it fetches, and what it refuses to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from protocol.errors import ProtocolError
from protocol.file_index import PartSource, decode_index, encode_index
from protocol.manifest import CHUNK_BYTES, Manifest
from releases.blob_folder import blob_reference
from releases.chunk_folder import ChunkFolder
from releases.errors import MalformedRelease, NotEnoughSpace, TooLarge
from releases.planning import LocalContent, Plan, check_space, missing_indexes, plan
from tests.releases.plant import Plant, make_folder

LARGE = 2**31


def bring(plant: Plant, chunks: ChunkFolder, sha256: str, chunk: int) -> None:
    """Put a chunk that the plant has."""
    blob = plant.references[sha256]
    length = blob.chunk_length(chunk)
    chunks.put(blob, chunk, plant.blobs.read_range(sha256, chunk * CHUNK_BYTES, length))


def planned(plant: Plant, manifest: Manifest, folder: Path, local: list[Path]) -> Plan:
    """The plan of a device that has `local`, with its indexes fetched."""
    chunks, content = ChunkFolder(folder), LocalContent(local)
    for one in missing_indexes(manifest.files, content, chunks):
        bring(plant, chunks, *one.key)
    return plan(manifest, manifest.files, content, chunks, max_release_bytes=LARGE)


def test_a_device_that_has_everything_fetches_not_even_an_index(
    plant: Plant, model: Path, tmp_path: Path
) -> None:
    manifest = plant.manifest(model, 1)
    chunks, local = ChunkFolder(tmp_path / "chunks"), LocalContent([model])
    assert missing_indexes(manifest.files, local, chunks) == []
    made = plan(manifest, manifest.files, local, chunks, max_release_bytes=LARGE)
    assert made.fetch_bytes == 0


def test_a_device_that_has_nothing_fetches_everything(
    plant: Plant, model: Path, tmp_path: Path
) -> None:
    manifest = plant.manifest(model, 1)
    made = planned(plant, manifest, tmp_path / "chunks", [])
    indexes = {file.index.sha256 for file in manifest.files if file.index is not None}
    blobs = {one.blob.sha256 for one in made.chunks}
    assert blobs == set(plant.references) - indexes
    assert made.space_bytes > manifest.total_bytes + made.fetch_bytes


def test_only_the_chunks_of_changed_parts_lack(plant: Plant, model: Path, tmp_path: Path) -> None:
    changed = plant.manifest(make_folder(tmp_path / "changed", seed=5, threshold=0.6), 2)
    made = planned(plant, changed, tmp_path / "chunks", [model])
    from_disk = [one for file in made.files for one in file.steps if one.local is not None]
    assert len(from_disk) >= 5
    assert made.fetch_bytes < changed.total_bytes / 2
    assert {one.file.name for one in made.files if one.local is not None} == {
        "config.json",
        "tokenizer.json",
    }


def test_a_difference_is_used_where_its_base_is_here_and_not_elsewhere(
    plant: Plant, model: Path, tmp_path: Path
) -> None:
    near = tmp_path / "near"
    near.mkdir()
    for path in model.iterdir():
        content = bytearray(path.read_bytes())
        if path.suffix == ".safetensors":
            for place in range(len(content) - 20_000, len(content), 400):
                content[place] ^= 1
        (near / path.name).write_bytes(content)
    manifest = plant.manifest(near, 2, bases=[model])
    with_base = planned(plant, manifest, tmp_path / "with", [model])
    without = planned(plant, manifest, tmp_path / "without", [])
    assert with_base.fetch_bytes < 10_000 < without.fetch_bytes
    assert any(one.base is not None for file in with_base.files for one in file.steps)
    assert all(one.base is None for file in without.files for one in file.steps)


def test_chunks_that_are_here_are_not_fetched_again(
    plant: Plant, model: Path, tmp_path: Path
) -> None:
    manifest = plant.manifest(model, 1)
    first = planned(plant, manifest, tmp_path / "chunks", [])
    for one in first.chunks[:3]:
        bring(plant, ChunkFolder(tmp_path / "chunks"), *one.key)
    second = planned(plant, manifest, tmp_path / "chunks", [])
    assert {one.key for one in second.chunks} == {one.key for one in first.chunks[3:]}


def with_index(plant: Plant, manifest: Manifest, **changes: object) -> Manifest:
    """The manifest with another index of its file of tensors."""
    file = next(one for one in manifest.files if one.index is not None)
    index = decode_index(plant.blobs.read_range(file.source.sha256, 0, file.source.length_bytes))
    content = encode_index(replace(index, **changes))  # type: ignore[arg-type]
    plant.blobs.put(content)
    blob = blob_reference(content)
    plant.references[blob.sha256] = blob
    changed = replace(file, index=blob)
    return replace(
        manifest,
        files=tuple(changed if one.name == file.name else one for one in manifest.files),
    )


def index_of(plant: Plant, manifest: Manifest) -> tuple[PartSource, ...]:
    file = next(one for one in manifest.files if one.index is not None)
    content = plant.blobs.read_range(file.source.sha256, 0, file.source.length_bytes)
    return decode_index(content).sources


def test_an_index_that_makes_another_length_is_refused(
    plant: Plant, model: Path, tmp_path: Path
) -> None:
    manifest = plant.manifest(model, 1)
    file = next(one for one in manifest.files if one.index is not None)
    longer = replace(file, length_bytes=file.length_bytes + 1)
    files = tuple(longer if one.name == file.name else one for one in manifest.files)
    with pytest.raises(MalformedRelease, match="makes"):
        planned(plant, replace(manifest, files=files), tmp_path / "chunks", [])


def test_methods_that_this_program_lacks_are_named_as_the_reason(
    plant: Plant, model: Path, tmp_path: Path
) -> None:
    manifest = plant.manifest(model, 1)
    sources = tuple(replace(one, method="of-tomorrow") for one in index_of(plant, manifest))
    with pytest.raises(MalformedRelease, match="update it"):
        planned(plant, with_index(plant, manifest, sources=sources), tmp_path / "chunks", [])


def test_an_index_that_is_none_is_refused(plant: Plant, model: Path, tmp_path: Path) -> None:
    manifest = plant.manifest(model, 1)
    plant.blobs.put(b"no index")
    blob = blob_reference(b"no index")
    plant.references[blob.sha256] = blob
    file = next(one for one in manifest.files if one.index is not None)
    files = tuple(
        replace(one, index=blob) if one.name == file.name else one for one in manifest.files
    )
    with pytest.raises(MalformedRelease) as caught:
        planned(plant, replace(manifest, files=files), tmp_path / "chunks", [])
    assert isinstance(caught.value.__cause__, ProtocolError)


def test_what_is_larger_than_allowed_is_refused(plant: Plant, model: Path, tmp_path: Path) -> None:
    manifest = plant.manifest(model, 1)
    with pytest.raises(TooLarge, match="max_release_bytes"):
        plan(
            manifest,
            manifest.files,
            LocalContent([]),
            ChunkFolder(tmp_path),
            max_release_bytes=manifest.total_bytes - 1,
        )


def test_too_little_space_says_how_much_is_needed(
    plant: Plant, model: Path, tmp_path: Path
) -> None:
    made = planned(plant, plant.manifest(model, 1), tmp_path / "chunks", [])
    check_space(made, made.space_bytes)
    with pytest.raises(NotEnoughSpace, match=str(made.space_bytes)):
        check_space(made, made.space_bytes - 1)


def test_a_broken_file_of_ours_only_means_that_more_is_fetched(
    plant: Plant, model: Path, tmp_path: Path
) -> None:
    manifest = plant.manifest(model, 1)
    broken = make_folder(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\xff" * 100)
    assert planned(plant, manifest, tmp_path / "chunks", [broken]).fetch_bytes > 10**6
