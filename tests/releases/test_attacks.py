"""Attacks on the way of a release. Each names its defence; without that, the test fails.

The broker and everybody on it may be the attacker: what the device was enrolled with is all that it
trusts. A poisoned release that fails its canaries is in `test_follower`.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import releases.files
from broker.session import Session
from protocol.blobs import CHUNK_BYTES, BlobRef
from protocol.file_index import FileIndex, PartSource, decode_index, encode_index
from protocol.manifest import Manifest, SignedManifest, sign_manifest
from protocol.signing import SigningKey
from protocol.topics import BlobTopic
from reader.weights import folder_digest
from releases.blob_folder import blob_reference
from tests.releases.conftest import Follows
from tests.releases.plant import (
    NOW,
    Plant,
    announce,
    make_folder,
    retain,
    upload,
    wait_until,
)

Follow = Callable[..., Follows]


@pytest.fixture
def settled(
    plant: Plant, model: Path, publisher: Session, follow: Follow
) -> tuple[Follows, Manifest]:
    """A device that runs version 5."""
    manifest = plant.manifest(model, 5)
    upload(publisher, plant)
    announce(publisher, plant.sign(manifest), plant.order(manifest))
    device = follow()
    wait_until(lambda: device.state == "active")
    return device, manifest


def refused(device: Follows, code: str, kept: str | None) -> None:
    """The device says so, and answers with what it had."""
    wait_until(lambda: code in device.codes(), f"{device.codes()} {device.state}")
    assert device.store.active == kept
    assert device.reason


def offer(plant: Plant, publisher: Session, manifest: Manifest, signed: SignedManifest) -> None:
    """Everything that a device needs to take it, except the right to."""
    upload(publisher, plant)
    announce(publisher, signed, plant.order(manifest, sequence=7))


def test_a_manifest_signed_by_a_stranger_is_refused(
    plant: Plant, publisher: Session, settled: tuple[Follows, Manifest], tmp_path: Path
) -> None:
    device, before = settled
    manifest = plant.manifest(make_folder(tmp_path / "evil", seed=6), 6)
    stranger = SigningKey(plant.key.key_id, os.urandom(32))
    signed = sign_manifest(manifest, stranger, plant.key_list.sign(plant.root))
    offer(plant, publisher, manifest, signed)
    refused(device, "forged", before.release)


def test_a_key_list_of_another_root_is_refused(
    plant: Plant, publisher: Session, settled: tuple[Follows, Manifest], tmp_path: Path
) -> None:
    device, before = settled
    manifest = plant.manifest(make_folder(tmp_path / "evil", seed=6), 6)
    thief = SigningKey.make("key1")
    lists = replace(plant.key_list, version=9, keys={"key1": thief.public})
    signed = sign_manifest(manifest, thief, lists.sign(SigningKey.make("root")))
    offer(plant, publisher, manifest, signed)
    refused(device, "forged", before.release)


def test_a_manifest_of_another_channel_is_refused(
    plant: Plant, publisher: Session, settled: tuple[Follows, Manifest], tmp_path: Path
) -> None:
    device, before = settled
    manifest = plant.manifest(make_folder(tmp_path / "beta", seed=6), 6, channel="beta")
    offer(plant, publisher, manifest, plant.sign(manifest))
    refused(device, "wrong_channel", before.release)


def test_an_expired_manifest_is_refused(
    plant: Plant, publisher: Session, settled: tuple[Follows, Manifest], tmp_path: Path
) -> None:
    device, before = settled
    manifest = plant.manifest(
        make_folder(tmp_path / "old", seed=6), 6, created=NOW - 99, expires=NOW - 1
    )
    offer(plant, publisher, manifest, plant.sign(manifest))
    refused(device, "expired", before.release)


def test_an_older_version_is_refused(
    plant: Plant, publisher: Session, settled: tuple[Follows, Manifest], tmp_path: Path
) -> None:
    device, before = settled
    manifest = plant.manifest(make_folder(tmp_path / "older", seed=6), 4)
    offer(plant, publisher, manifest, plant.sign(manifest))
    refused(device, "rollback", before.release)


def test_the_same_version_with_other_content_is_refused(
    plant: Plant, publisher: Session, settled: tuple[Follows, Manifest], tmp_path: Path
) -> None:
    device, before = settled
    manifest = plant.manifest(make_folder(tmp_path / "other", seed=6), 5)
    offer(plant, publisher, manifest, plant.sign(manifest))
    refused(device, "rollback", before.release)


def test_the_last_release_of_a_retired_key_does_not_come_back(
    plant: Plant, publisher: Session, settled: tuple[Follows, Manifest], tmp_path: Path
) -> None:
    device, before = settled
    replayed = plant.sign(before)
    plant.rotate("key2", revoke=False)
    newer = plant.manifest(make_folder(tmp_path / "newer", seed=6), 1, created=NOW + 10)
    offer(plant, publisher, newer, plant.sign(newer))
    wait_until(lambda: device.store.active == newer.release)
    announce(publisher, replayed, plant.order(before, sequence=8))
    refused(device, "rollback", newer.release)


def test_a_revoked_keys_huge_version_is_refused_and_the_new_keys_low_one_taken(
    plant: Plant, publisher: Session, settled: tuple[Follows, Manifest], tmp_path: Path
) -> None:
    device, _ = settled
    huge = plant.manifest(make_folder(tmp_path / "huge", seed=6), 2**53 - 1, created=NOW + 50)
    stolen = plant.sign(huge)
    offer(plant, publisher, huge, stolen)  # the theft is not known yet: it is taken
    wait_until(lambda: device.store.active == huge.release)
    plant.rotate("key2")
    low = plant.manifest(make_folder(tmp_path / "low", seed=7), 1, created=NOW + 20)
    offer(plant, publisher, low, plant.sign(low))
    wait_until(lambda: device.store.active == low.release)
    huger = plant.manifest(make_folder(tmp_path / "huger", seed=8), 2**53 - 1, created=NOW + 55)
    thief_list = plant.key_list.sign(plant.root)
    signed = sign_manifest(huger, SigningKey("key1", os.urandom(32)), thief_list)
    announce(publisher, signed, plant.order(huger, sequence=9))
    refused(device, "revoked_key", low.release)


def test_a_revocation_counts_at_once_even_with_a_manifest_that_is_refused(
    plant: Plant, publisher: Session, settled: tuple[Follows, Manifest], tmp_path: Path
) -> None:
    device, before = settled
    old = plant.rotate("key2")
    expired = plant.manifest(tmp_path / "model", 1, created=NOW - 99, expires=NOW - 1)
    announce(publisher, plant.sign(expired))
    refused(device, "expired", before.release)
    late = plant.manifest(make_folder(tmp_path / "late", seed=6), 6)
    old_list = replace(plant.key_list, version=1, keys={"key1": old.public}, revoked=())
    signed = sign_manifest(late, old, old_list.sign(plant.root))
    offer(plant, publisher, late, signed)
    refused(device, "revoked_key", before.release)


@pytest.mark.parametrize("how", ["swapped", "truncated", "padded"])
def test_a_changed_chunk_is_never_written_and_named_in_the_end(
    plant: Plant,
    publisher: Session,
    settled: tuple[Follows, Manifest],
    tmp_path: Path,
    how: str,
) -> None:
    device, before = settled
    manifest = plant.manifest(make_folder(tmp_path / "next", seed=6, tensors=9), 6)
    pack = max(plant.references.values(), key=lambda blob: blob.length_bytes)
    chunk, sha256 = pack.chunk_count - 2, pack.sha256
    content = plant.blobs.read_range(sha256, chunk * CHUNK_BYTES, CHUNK_BYTES)
    other = plant.blobs.read_range(sha256, 0, CHUNK_BYTES)
    wrong = {
        "swapped": other,
        "truncated": content[:-1],
        "padded": content + b"\0",
    }[how]
    upload(publisher, plant)
    retain(publisher, BlobTopic(sha256, chunk), wrong)
    announce(publisher, plant.sign(manifest), plant.order(manifest))
    refused(device, "chunk_corrupt", before.release)
    assert f"chunk {chunk} of blob {sha256}" in device.reason
    assert not (device.store.downloads.folder / sha256 / str(chunk)).exists()
    retain(publisher, BlobTopic(sha256, chunk), content)
    wait_until(lambda: device.store.active == manifest.release)


def test_a_release_of_endless_chunks_is_refused_before_one_is_asked_for(
    plant: Plant, publisher: Session, settled: tuple[Follows, Manifest], tmp_path: Path
) -> None:
    device, before = settled
    manifest = plant.manifest(make_folder(tmp_path / "endless", seed=6, tensors=9), 6)
    file = next(one for one in manifest.files if one.index is not None)
    index = decode_index(plant.blobs.read_range(file.source.sha256, 0, file.source.length_bytes))
    chunks = 8000
    endless = BlobRef("e" * 64, chunks * CHUNK_BYTES, ("e" * 64,) * chunks)
    blobs = tuple(replace(endless, sha256=f"{number:064x}") for number in range(3))
    sources = tuple(
        PartSource(part, "zstd", None, part % 3, 0, endless.length_bytes)
        for part in range(len(index.parts))
    )
    content = encode_index(FileIndex(index.parts, blobs, sources))
    plant.blobs.put(content)
    blob = blob_reference(content)
    plant.references = {**plant.references, blob.sha256: blob}
    changed = replace(file, index=blob)
    files = tuple(changed if one.name == file.name else one for one in manifest.files)
    manifest = replace(manifest, files=files)
    offer(plant, publisher, manifest, plant.sign(manifest))
    refused(device, "too_large", before.release)
    assert not any("0" * 60 in topic for topic in device.fetched)


def test_a_release_larger_than_allowed_is_refused_before_anything_is_fetched(
    plant: Plant, publisher: Session, model: Path, follow: Follow
) -> None:
    manifest = plant.manifest(model, 1)
    offer(plant, publisher, manifest, plant.sign(manifest))
    device = follow(settings={"max_release_bytes": 1_000_000})
    refused(device, "too_large", None)
    assert not device.fetched


def test_a_manifest_of_another_architecture_is_refused_before_anything_is_fetched(
    plant: Plant, publisher: Session, settled: tuple[Follows, Manifest], tmp_path: Path
) -> None:
    device, before = settled
    device.fetched.clear()
    manifest = plant.manifest(make_folder(tmp_path / "bert", seed=6), 6)
    manifest = replace(manifest, architecture=replace(manifest.architecture, model_type="bert"))
    offer(plant, publisher, manifest, plant.sign(manifest))
    refused(device, "architecture", before.release)
    assert not device.fetched


def test_an_architecture_that_config_json_contradicts_is_refused(
    plant: Plant, publisher: Session, settled: tuple[Follows, Manifest], tmp_path: Path
) -> None:
    device, before = settled
    folder = make_folder(tmp_path / "liar", seed=6)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 2_000_000}))
    manifest = plant.manifest(folder, 6)
    offer(plant, publisher, manifest, plant.sign(manifest))
    refused(device, "architecture", before.release)
    assert "vocab_size" in device.reason
    assert device.store.installed.find(manifest.release) is None


def test_files_that_do_not_make_the_release_are_refused(
    plant: Plant, publisher: Session, settled: tuple[Follows, Manifest], tmp_path: Path
) -> None:
    device, before = settled
    manifest = plant.manifest(make_folder(tmp_path / "mixed", seed=6), 6, release="a" * 64)
    offer(plant, publisher, manifest, plant.sign(manifest))
    refused(device, "digest", before.release)
    assert set(device.store.installed.digests()) == {before.release}


@pytest.mark.parametrize("where", ["chunks", "assembly"])
def test_a_disk_that_fills_in_the_middle_keeps_the_old_release_and_goes_on_with_space(
    plant: Plant,
    publisher: Session,
    settled: tuple[Follows, Manifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """An injected writer says ENOSPC: no rights to mount a small file system are needed."""
    device, before = settled
    is_full = True
    written = 0
    real = Path.open

    def open_or_fill(self: Path, mode: str = "r", *arguments: object, **options: object) -> object:
        nonlocal written
        inside = "downloads" if where == "chunks" else "installed"
        if is_full and mode in ("wb", "xb") and inside in self.parts:
            written += 1
            if written > 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return real(self, mode, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(releases.files.Path, "open", open_or_fill)
    manifest = plant.manifest(make_folder(tmp_path / "next", seed=6, tensors=12), 6)
    offer(plant, publisher, manifest, plant.sign(manifest))
    refused(device, "no_space", before.release)
    assert device.store.installed.find(before.release) is not None
    assert not list(device.store.installed.path_of(before.release).parent.glob("*.partial"))
    is_full = False
    wait_until(lambda: device.store.active == manifest.release)
    assert folder_digest(device.adopted[-1].folder) == manifest.release


def test_too_little_space_is_noticed_before_the_download(
    plant: Plant, publisher: Session, model: Path, follow: Follow
) -> None:
    manifest = plant.manifest(model, 1)
    offer(plant, publisher, manifest, plant.sign(manifest))
    free = [1_000_000]
    device = follow(free_bytes=lambda _: free[0])
    refused(device, "no_space", None)
    assert len(device.fetched) <= 1  # the index, by which the need is known
    free[0] = 10**9
    wait_until(lambda: device.state == "active")
