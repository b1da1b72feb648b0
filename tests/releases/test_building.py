"""What is built can be put together again, by whoever has nothing and by whoever has a base."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from protocol.file_index import FileIndex, decode_index
from protocol.manifest import ReleaseFile
from reader.tensor_file import TensorFile, write_tensor_file
from reader.weights import folder_digest
from releases.blob_folder import BlobFolder
from releases.building import INDEXED_BYTES, Contents, build_contents
from releases.deltas import WHOLE, apply
from releases.errors import ContentError
from releases.parts import split_file

LAYERS = 3
CANARIES = b'{"canaries": []}'
PACKED, EXITS = "packed.safetensors", "exits.safetensors"


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 30, shape)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder whose files have the kinds of tensors that a packed model has."""
    folder = tmp_path / "model"
    folder.mkdir()
    weights: dict[str, np.ndarray] = {"word.int4": draw(99, 400, 96).view(np.uint8)[:, :96]}
    for layer in range(LAYERS):
        codes = np.clip(draw(layer, 192, 128), -127, 127)
        weights[f"groups.{layer}.up.int8"] = codes.astype(np.int8)
        weights[f"groups.{layer}.up.int8_scale"] = draw(layer + 20, 192, 1).astype(np.float16)
        weights[f"groups.{layer}.bias"] = draw(layer + 40, 192).astype(np.float16)
    write_tensor_file(folder / PACKED, weights)
    heads = {f"exits.{n}.weight": draw(n, 4, 384).astype(np.float32) for n in range(LAYERS)}
    write_tensor_file(folder / EXITS, heads)
    assert (folder / EXITS).stat().st_size > INDEXED_BYTES
    for name in ("config.json", "tokenizer.json", "exits.json"):
        (folder / name).write_text(json.dumps({name: list(range(300))}), encoding="utf-8")
    (folder / "README.md").write_text("not part of a release", encoding="utf-8")
    return folder


def changed(
    model: Path, name: str, *, tensors: dict[str, dict[str, np.ndarray]] | None = None
) -> Path:
    """A copy of a model with some tensors replaced, by file."""
    folder = model.parent / name
    shutil.copytree(model, folder)
    for file, replaced in (tensors or {}).items():
        write_tensor_file(folder / file, dict(TensorFile(model / file)) | replaced)
    return folder


def fine_tuned(model: Path, name: str = "tuned", seed: int = 7) -> Path:
    """Every code moved a little, every scale and bias too."""
    weights = dict(TensorFile(model / PACKED))
    steps = np.random.default_rng(seed)
    for key, value in weights.items():
        if key.endswith(".int8"):
            moved = value + np.rint(steps.normal(0, 0.4, value.shape))
            weights[key] = np.clip(moved, -127, 127).astype(np.int8)
        elif value.dtype == np.float16:
            weights[key] = (value * np.float16(1.004)).astype(np.float16)
    heads = {key: value * np.float32(1.0005) for key, value in TensorFile(model / EXITS).items()}
    return changed(model, name, tensors={PACKED: weights, EXITS: heads})


@dataclass
class Device:
    """Puts a release together from blobs and the model folders that it has; counts what it reads
    of blobs. It looks at nothing that a device would not see."""

    blobs: BlobFolder
    folders: Sequence[Path] = ()
    fetched_bytes: int = 0

    def receive(self, contents: Contents, target: Path) -> Path:
        target.mkdir()
        for file in contents.files:
            content = self._file(file)
            assert len(content) == file.length_bytes
            assert hashlib.sha256(content).hexdigest() == file.sha256
            (target / file.name).write_bytes(content)
        return target

    def _file(self, file: ReleaseFile) -> bytes:
        for folder in self.folders:
            path = folder / file.name
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256:
                return path.read_bytes()
        data = self._fetch(file.source.sha256, 0, file.source.length_bytes)
        if file.blob is not None:
            return (
                data if file.compression == "none" else apply(WHOLE, None, data, file.length_bytes)
            )
        index, held = decode_index(data), self._held()
        return b"".join(self._part(index, part.sha256, held) for part in index.parts)

    def _part(self, index: FileIndex, sha256: str, held: dict[str, bytes]) -> bytes:
        if sha256 in held:
            return held[sha256]
        usable = [
            source
            for source in index.sources
            if index.parts[source.part].sha256 == sha256
            and (source.base is None or source.base in held)
        ]
        source = min(usable, key=lambda one: one.length_bytes)
        blob = index.blobs[source.blob]
        data = self._fetch(blob.sha256, source.offset, source.length_bytes)
        base = None if source.base is None else held[source.base]
        return apply(source.method, base, data, index.parts[source.part].length_bytes)

    def _held(self) -> dict[str, bytes]:
        return {
            span.sha256: path.read_bytes()[span.offset : span.offset + span.length_bytes]
            for folder in self.folders
            for path in folder.glob("*.safetensors")
            for span in split_file(path)
        }

    def _fetch(self, sha256: str, offset: int, length_bytes: int) -> bytes:
        self.fetched_bytes += length_bytes
        return self.blobs.read_range(sha256, offset, length_bytes)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobFolder:
    return BlobFolder(tmp_path / "blobs")


def indexes(contents: Contents, blobs: BlobFolder) -> list[FileIndex]:
    return [
        decode_index(blobs.path_of(file.index.sha256).read_bytes())
        for file in contents.files
        if file.index is not None
    ]


def test_who_has_nothing_gets_the_same_release(
    model: Path, blobs: BlobFolder, tmp_path: Path
) -> None:
    contents = build_contents(model, CANARIES, blobs=blobs)
    received = Device(blobs).receive(contents, tmp_path / "received")
    assert folder_digest(received) == folder_digest(model)
    assert (received / "canaries.json").read_bytes() == CANARIES
    assert not (received / "README.md").exists()
    assert contents.new_bytes == sum(blob.length_bytes for blob in contents.blobs)
    assert {path.name for path in blobs.folder.iterdir()} == {one.sha256 for one in contents.blobs}


def test_who_has_the_base_fetches_differences_and_gets_the_same_bits(
    model: Path, blobs: BlobFolder, tmp_path: Path
) -> None:
    first = build_contents(model, CANARIES, blobs=blobs)
    tuned = fine_tuned(model)
    contents = build_contents(
        tuned, CANARIES, blobs=blobs, bases=[model], earlier=indexes(first, blobs)
    )
    fresh, owner = Device(blobs), Device(blobs, [model])
    for number, device in enumerate((fresh, owner)):
        received = device.receive(contents, tmp_path / f"received-{number}")
        assert folder_digest(received) == folder_digest(tuned)
    assert owner.fetched_bytes < 0.4 * fresh.fetched_bytes
    assert contents.figures.difference_bytes[0] < 0.4 * contents.figures.whole_bytes


def test_changed_thresholds_are_one_small_blob(model: Path, blobs: BlobFolder) -> None:
    first = build_contents(model, CANARIES, blobs=blobs)
    after = changed(model, "thresholds")
    (after / "exits.json").write_text('{"criterion": "margin"}', encoding="utf-8")
    contents = build_contents(
        after, CANARIES, blobs=blobs, bases=[model], earlier=indexes(first, blobs)
    )
    (exits,) = [file for file in contents.files if file not in first.files]
    assert exits.name == "exits.json"
    assert exits.blob is not None
    assert contents.new_bytes == exits.blob.length_bytes < 100


def test_changed_exit_heads_send_those_heads_alone(
    model: Path, blobs: BlobFolder, tmp_path: Path
) -> None:
    first = build_contents(model, CANARIES, blobs=blobs)
    after = changed(
        model, "heads", tensors={EXITS: {"exits.1.weight": draw(5, 4, 384).astype(np.float32)}}
    )
    contents = build_contents(
        after, CANARIES, blobs=blobs, bases=[model], earlier=indexes(first, blobs)
    )
    device = Device(blobs, [model])
    received = device.receive(contents, tmp_path / "received")
    assert folder_digest(received) == folder_digest(after)
    assert contents.figures.parts - contents.figures.reused_parts == 1
    assert device.fetched_bytes < 4 * 384 * 4 + 1000
    assert [file.name for file in contents.files if file not in first.files] == [EXITS]


def test_what_an_earlier_release_uploaded_is_pointed_to_and_not_sent_again(
    model: Path, blobs: BlobFolder, tmp_path: Path
) -> None:
    first = build_contents(model, b"", blobs=blobs)
    other = dict(TensorFile(model / PACKED))["groups.1.up.int8"][::-1]
    after = changed(model, "half", tensors={PACKED: {"groups.1.up.int8": other.copy()}})
    contents = build_contents(after, b"", blobs=blobs, earlier=indexes(first, blobs))
    assert contents.new_bytes < 0.4 * first.new_bytes
    packs_of_first = {blob.sha256 for index in indexes(first, blobs) for blob in index.blobs}
    assert packs_of_first & {blob.sha256 for blob in contents.blobs}
    received = Device(blobs).receive(contents, tmp_path / "received")
    assert folder_digest(received) == folder_digest(after)


def test_differences_of_an_earlier_release_serve_who_skipped_it(
    model: Path, blobs: BlobFolder, tmp_path: Path
) -> None:
    first = build_contents(model, b"", blobs=blobs)
    tuned = fine_tuned(model)
    second = build_contents(tuned, b"", blobs=blobs, bases=[model], earlier=indexes(first, blobs))
    after = changed(tuned, "tuned-thresholds")
    (after / "exits.json").write_text("{}", encoding="utf-8")
    third = build_contents(
        after,
        b"",
        blobs=blobs,
        bases=[tuned, model],
        earlier=[*indexes(second, blobs), *indexes(first, blobs)],
    )
    assert third.new_bytes < 100
    behind, up_to_date = Device(blobs, [model]), Device(blobs, [tuned])
    for number, device in enumerate((behind, up_to_date)):
        received = device.receive(third, tmp_path / f"received-{number}")
        assert folder_digest(received) == folder_digest(after)
    assert behind.fetched_bytes < 0.4 * third.files[0].length_bytes + second.new_bytes / 2
    assert up_to_date.fetched_bytes < 100


def test_a_difference_against_what_nobody_has_any_more_is_left_behind(
    model: Path, blobs: BlobFolder
) -> None:
    first = build_contents(model, b"", blobs=blobs)
    tuned = fine_tuned(model)
    second = build_contents(tuned, b"", blobs=blobs, bases=[model], earlier=indexes(first, blobs))
    third = build_contents(tuned, b"", blobs=blobs, earlier=indexes(second, blobs))
    assert any(source.base for index in indexes(second, blobs) for source in index.sources)
    assert not any(source.base for index in indexes(third, blobs) for source in index.sources)
    assert len(third.blobs) < len(second.blobs)


def test_the_way_back_to_an_old_release_is_a_difference_too(
    model: Path, blobs: BlobFolder, tmp_path: Path
) -> None:
    first = build_contents(model, b"", blobs=blobs)
    tuned = fine_tuned(model)
    second = build_contents(tuned, b"", blobs=blobs, bases=[model], earlier=indexes(first, blobs))
    back = build_contents(
        model,
        b"",
        blobs=blobs,
        bases=[tuned],
        earlier=[*indexes(first, blobs), *indexes(second, blobs)],
    )
    device = Device(blobs, [tuned])
    received = device.receive(back, tmp_path / "received")
    assert folder_digest(received) == folder_digest(model)
    assert back.figures.whole_bytes == 0
    assert device.fetched_bytes < 0.4 * first.new_bytes


def test_all_differences_of_a_base_lie_next_to_each_other_in_one_blob(
    model: Path, blobs: BlobFolder
) -> None:
    tuned = fine_tuned(model)
    contents = build_contents(tuned, b"", blobs=blobs, bases=[model])
    spans = {
        (index.blobs[source.blob].sha256, source.offset, source.length_bytes)
        for index in indexes(contents, blobs)
        for source in index.sources
        if source.base
    }
    (pack,) = {sha256 for sha256, _, _ in spans}
    end = 0
    for _, offset, length_bytes in sorted(spans):
        assert offset == end
        end += length_bytes
    assert end == blobs.path_of(pack).stat().st_size


def test_what_some_base_has_no_difference_for_stands_first_in_the_pack(
    model: Path, blobs: BlobFolder
) -> None:
    tuned = fine_tuned(model)
    strange = draw(77, 192, 128).astype(np.int8)
    after = changed(tuned, "strange", tensors={PACKED: {"groups.2.up.int8": strange}})
    (index, _) = indexes(build_contents(after, b"", blobs=blobs, bases=[model]), blobs)
    with_difference = {source.part for source in index.sources if source.base}
    whole = sorted(
        (source.offset, source.part not in with_difference)
        for source in index.sources
        if source.base is None and source.part in with_difference | {_part(index, strange)}
    )
    assert whole[0][1]
    assert not any(lacks for _, lacks in whole[1:])


def _part(index: FileIndex, array: np.ndarray) -> int:
    sha256 = hashlib.sha256(array.tobytes()).hexdigest()
    return next(n for n, part in enumerate(index.parts) if part.sha256 == sha256)


def test_a_network_that_lost_units_is_sent_as_rows_of_the_old_one(
    model: Path, blobs: BlobFolder, tmp_path: Path
) -> None:
    draws, old, smaller = np.random.default_rng(3), dict(TensorFile(model / PACKED)), {}
    for layer in range(LAYERS):
        kept = np.sort(draws.permutation(192)[:150])
        moved = old[f"groups.{layer}.up.int8"][kept] + np.rint(draws.normal(0, 0.4, (150, 128)))
        smaller[f"groups.{layer}.up.int8"] = np.clip(moved, -127, 127).astype(np.int8)
    after = changed(model, "smaller", tensors={PACKED: smaller})
    contents = build_contents(after, b"", blobs=blobs, bases=[model])
    sent_whole = sum(one.size for one in smaller.values())
    assert 0 < contents.figures.bytes_by_method["gathered"] < 0.4 * sent_whole
    received = Device(blobs, [model]).receive(contents, tmp_path / "received")
    assert folder_digest(received) == folder_digest(after)


def test_building_twice_gives_the_same_blobs(model: Path, blobs: BlobFolder) -> None:
    tuned = fine_tuned(model)
    once = build_contents(tuned, CANARIES, blobs=blobs, bases=[model])
    again = build_contents(tuned, CANARIES, blobs=blobs, bases=[model])
    assert once.files == again.files
    assert once.blobs == again.blobs
    assert again.new_bytes == 0


def test_a_base_without_that_file_and_one_of_other_shapes_do_no_harm(
    model: Path, blobs: BlobFolder, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    other = changed(model, "other", tensors={PACKED: {"groups.0.up.int8": np.int8([[1, 2]])}})
    contents = build_contents(model, b"", blobs=blobs, bases=[bare, other])
    for number, folders in enumerate(([], [bare], [other])):
        received = Device(blobs, folders).receive(contents, tmp_path / f"received-{number}")
        assert folder_digest(received) == folder_digest(model)


def test_a_part_that_two_files_share_is_sent_once(
    model: Path, blobs: BlobFolder, tmp_path: Path
) -> None:
    alike = draw(8, 200, 400).astype(np.float32)
    after = changed(model, "alike", tensors={PACKED: {"a": alike}, EXITS: {"a": alike}})
    contents = build_contents(after, b"", blobs=blobs)
    sent = [blob for blob in contents.blobs if blob.length_bytes > alike.nbytes / 2]
    assert sum(blob.length_bytes for blob in sent) < 1.7 * alike.nbytes
    received = Device(blobs).receive(contents, tmp_path / "received")
    assert folder_digest(received) == folder_digest(after)


def test_a_folder_without_a_model_or_with_a_broken_file_is_refused(
    model: Path, blobs: BlobFolder, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ContentError, match="no file of a model"):
        build_contents(tmp_path / "empty", CANARIES, blobs=blobs)
    broken = changed(model, "broken")
    (broken / PACKED).write_bytes((model / PACKED).read_bytes()[:-1])
    with pytest.raises(ContentError, match=PACKED):
        build_contents(broken, CANARIES, blobs=blobs)
