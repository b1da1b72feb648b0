"""Blobs are found under the sha256 of their bytes, and nowhere else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from protocol.errors import MalformedMessage
from protocol.manifest import CHUNK_BYTES
from releases.blob_folder import BlobFolder, blob_reference
from releases.errors import ContentError, StoreError


def test_a_blob_comes_back_whole_and_by_range(tmp_path: Path) -> None:
    folder = BlobFolder(tmp_path / "blobs")
    sha256 = folder.put(b"hello, edge")
    assert sha256 == hashlib.sha256(b"hello, edge").hexdigest()
    assert folder.path_of(sha256).read_bytes() == b"hello, edge"
    assert folder.read_range(sha256, 7, 4) == b"edge"
    assert folder.has(sha256)
    assert folder.has(sha256, 11)


def test_a_blob_that_was_cut_short_on_disk_is_written_again(tmp_path: Path) -> None:
    folder = BlobFolder(tmp_path)
    sha256 = folder.put(b"hello")
    folder.path_of(sha256).write_bytes(b"he")
    assert not folder.has(sha256, 5)
    folder.put(b"hello")
    assert folder.read_range(sha256, 0, 5) == b"hello"


def test_a_blob_that_is_not_here_is_an_error_with_its_name(tmp_path: Path) -> None:
    sha256 = "0" * 64
    assert not BlobFolder(tmp_path).has(sha256)
    with pytest.raises(ContentError, match=sha256):
        BlobFolder(tmp_path).read_range(sha256, 0, 1)


def test_a_range_past_the_end_is_an_error(tmp_path: Path) -> None:
    folder = BlobFolder(tmp_path)
    sha256 = folder.put(b"abc")
    with pytest.raises(ContentError, match="no bytes"):
        folder.read_range(sha256, 2, 2)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "0" * 63])
def test_a_name_that_is_no_sha256_leads_nowhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(MalformedMessage):
        BlobFolder(tmp_path).path_of(name)


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be made"):
        BlobFolder(tmp_path / "file" / "blobs")


@pytest.mark.parametrize("length", [1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_a_reference_has_the_hash_of_every_chunk(length: int) -> None:
    content = bytes(index % 251 for index in range(length))
    reference = blob_reference(content)
    assert reference.length_bytes == length
    for chunk in range(reference.chunk_count):
        piece = content[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
        assert len(piece) == reference.chunk_length(chunk)
        assert hashlib.sha256(piece).hexdigest() == reference.chunk_sha256(chunk)
