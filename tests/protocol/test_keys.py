"""Keys and key files: made, kept private, refused when they are not."""

from __future__ import annotations

import base64
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import KeyFileError, MalformedMessage, SealingError, UnknownEdge, UnknownKeyId
from protocol.key_documents import MAX_FILE_BYTES
from protocol.key_files import (
    EdgeFolder,
    describe_key_file,
    load_edge_keys,
    load_edge_public,
    load_pool_keys,
    load_pool_public,
    save_edge_keys,
    save_edge_public,
    save_pool_keys,
    save_pool_public,
)
from protocol.keys import EdgeKeyring, EdgeKeys, PoolKeys, PoolPublic
from protocol.live_keys import LiveKeys


def test_keys_survive_their_files(tmp_path: Path) -> None:
    edge, pool = EdgeKeys.make("kitchen"), PoolKeys.make("pool-1").rotate("pool-2")
    save_edge_keys(tmp_path / "edge.json", edge)
    save_pool_keys(tmp_path / "pool.json", pool)
    save_pool_public(tmp_path / "public.json", pool.public)
    file = save_edge_public(tmp_path / "edges", "kitchen", edge.public)
    assert load_edge_keys(tmp_path / "edge.json") == edge
    assert load_pool_keys(tmp_path / "pool.json") == pool
    assert load_pool_keys(tmp_path / "pool.json").current_id == "pool-2"
    assert load_pool_public(tmp_path / "public.json") == pool.public
    assert load_edge_public(file) == ("kitchen", edge.public)


def test_key_files_are_for_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        save_edge_keys(tmp_path / "made" / "edge.json", EdgeKeys.make("kitchen"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "made" / "edge.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700


def test_public_keys_are_for_everyone_to_read_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        edge = save_edge_public(tmp_path / "edges", "kitchen", EdgeKeys.make("kitchen").public)
        pool = tmp_path / "pool-public.json"
        save_pool_public(pool, PoolKeys.make("pool-1").public)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (edge.parent, edge, pool)]
    assert modes == [0o755, 0o644, 0o644]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_a_secret_that_others_may_read_is_refused_with_the_fix(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "edge.json"
    save_edge_keys(path, EdgeKeys.make("kitchen"))
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"chmod 600 {path}"):
        load_edge_keys(path)
    path.chmod(0o600)
    assert load_edge_keys(path)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o620, 0o602])
def test_a_public_key_that_others_may_change_is_refused_with_the_fix(
    tmp_path: Path, mode: int
) -> None:
    edge, path = EdgeKeys.make("kitchen"), tmp_path / "public.json"
    save_pool_public(path, PoolKeys.make("pool-1").public)
    file = save_edge_public(tmp_path / "edges", "kitchen", edge.public)
    folder = EdgeFolder(tmp_path / "edges")
    assert folder.public_key("kitchen") == edge.public
    path.chmod(mode)
    file.chmod(mode)
    with pytest.raises(KeyFileError, match=f"chmod go-w {path}"):
        load_pool_public(path)
    with pytest.raises(KeyFileError, match=f"chmod go-w {file}"):
        folder.public_key("kitchen")
    path.chmod(0o644)
    file.chmod(0o644)
    assert load_pool_public(path)
    assert folder.public_key("kitchen") == edge.public


def test_a_rotation_of_the_pool_keys_is_read_without_a_restart(tmp_path: Path) -> None:
    path, first = tmp_path / "pool.json", PoolKeys.make("pool-1")
    save_pool_keys(path, first)
    read: list[PoolKeys] = []
    failures: list[KeyFileError] = []
    keys = LiveKeys(path, load_pool_keys, on_read=read.append, on_failure=failures.append)
    assert keys() is keys()
    second = first.rotate("pool-2")
    save_pool_keys(path, second, replace=True)
    assert [keys(), keys()] == [second, second]
    path.write_text("half a file")
    assert [keys(), keys()] == [second, second]
    assert len(failures) == 1
    path.unlink()
    assert [keys(), keys()] == [second, second]
    assert len(failures) == 2
    save_pool_keys(path, second)
    assert keys() == second
    third = second.rotate("pool-3")
    save_pool_keys(path, third, replace=True)
    assert keys() == third
    assert read == [second, third]
    assert len(failures) == 2


def test_a_device_reads_a_rotated_public_key_and_keeps_the_one_before_while_it_is_broken(
    tmp_path: Path,
) -> None:
    path, pool = tmp_path / "pool-public.json", PoolKeys.make("pool-1")
    save_pool_public(path, pool.public)
    failures: list[KeyFileError] = []
    key = LiveKeys(path, load_pool_public, on_read=lambda _: None, on_failure=failures.append)
    path.chmod(0o666)
    assert [key(), key()] == [pool.public, pool.public]
    assert "chmod go-w" in str(failures[0])
    path.chmod(0o600)
    later = pool.rotate("pool-2").public
    save_pool_public(path, later, replace=True)
    assert key() == later
    assert len(failures) == 1


def test_saving_replaces_no_key_unasked(tmp_path: Path) -> None:
    path = tmp_path / "edge.json"
    first = EdgeKeys.make("kitchen")
    save_edge_keys(path, first)
    with pytest.raises(KeyFileError, match="exists"):
        save_edge_keys(path, EdgeKeys.make("kitchen"))
    assert load_edge_keys(path) == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["edge.json"]


def good_document() -> dict[str, Any]:
    """A pool file's document."""
    return {
        "elma": "pool-secret",
        "keys": [{"id": "pool-1", "secret": base64.b64encode(bytes(32)).decode()}],
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[]",
        b"\xff\xfe",
        b'{"elma": "edge-secret"}',
        b'{"elma": "pool-secret"}',
        b'{"elma": "pool-secret", "keys": []}',
        b'{"elma": "pool-secret", "keys": ["x"]}',
        b'{"elma": "pool-secret", "keys": [{"id": "a/b", "secret": "AAAA"}]}',
        b"[" * 5000,
        b" " * (MAX_FILE_BYTES + 1),
        json.dumps({**good_document(), "keys": good_document()["keys"] * 2}).encode(),
        json.dumps(good_document()).replace("AAAA", "AA!A").encode(),
    ],
)
def test_a_broken_key_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pool.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=str(path)):
        load_pool_keys(path)


def test_a_missing_key_file_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="elma keys"):
        load_pool_public(tmp_path / "none.json")


def test_an_error_about_a_key_file_holds_nothing_of_its_content(tmp_path: Path) -> None:
    path = tmp_path / "edge.json"
    path.write_text('{"elma": "edge-secret", "edge": "kitchen", "secret": "c2VjcmV0"} trailing')
    path.chmod(0o600)
    with pytest.raises(KeyFileError) as caught:
        load_edge_keys(path)
    assert "c2VjcmV0" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_description_shows_fingerprints_and_no_secret(tmp_path: Path) -> None:
    edge, pool = EdgeKeys.make("kitchen"), PoolKeys.make("pool-1")
    save_edge_keys(tmp_path / "edge.json", edge)
    save_pool_keys(tmp_path / "pool.json", pool)
    save_pool_public(tmp_path / "public.json", pool.public)
    file = save_edge_public(tmp_path / "edges", "kitchen", edge.public)
    secret_side = describe_key_file(tmp_path / "edge.json")
    assert secret_side["fingerprint"] == describe_key_file(file)["fingerprint"]
    pool_side = describe_key_file(tmp_path / "pool.json")
    assert (
        pool_side["keys"][0]["fingerprint"]
        == describe_key_file(tmp_path / "public.json")["fingerprint"]
    )
    shown = json.dumps([secret_side, pool_side])
    for secret in (edge.secret, pool.secret_of("pool-1")):
        assert base64.b64encode(secret).decode() not in shown


def test_a_folder_of_edges_follows_enrolment_and_revocation(tmp_path: Path) -> None:
    folder = EdgeFolder(tmp_path)
    with pytest.raises(UnknownEdge, match="kitchen"):
        folder.public_key("kitchen")
    first = EdgeKeys.make("kitchen")
    file = save_edge_public(tmp_path, "kitchen", first.public)
    assert folder.public_key("kitchen") == first.public
    second = EdgeKeys.make("kitchen")
    save_edge_public(tmp_path, "kitchen", second.public, replace=True)
    assert folder.public_key("kitchen") == second.public
    file.unlink()
    with pytest.raises(UnknownEdge):
        folder.public_key("kitchen")


def test_a_folder_of_edges_is_left_through_no_name(tmp_path: Path) -> None:
    (tmp_path / "edges").mkdir()
    save_edge_public(tmp_path, "outside", EdgeKeys.make("outside").public)
    folder = EdgeFolder(tmp_path / "edges")
    with pytest.raises(MalformedMessage):
        folder.public_key("../outside")


def test_a_renamed_edge_file_vouches_for_nobody_else(tmp_path: Path) -> None:
    save_edge_public(tmp_path, "kitchen", EdgeKeys.make("kitchen").public)
    (tmp_path / "kitchen.json").rename(tmp_path / "cellar.json")
    with pytest.raises(KeyFileError, match="another edge"):
        EdgeFolder(tmp_path).public_key("cellar")


@contextmanager
def without_rights() -> Iterator[Path]:
    """A folder that everyone gets to, and the right of root to read everything given up."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        user = os.geteuid()
        edges = Path(folder) / "edges"
        save_edge_public(edges, "kitchen", EdgeKeys.make("kitchen").public)
        save_edge_public(edges, "cellar", EdgeKeys.make("cellar").public)
        (edges / "kitchen.json").chmod(0o200)
        os.seteuid(65_534 if user == 0 else user)
        try:
            yield edges
        finally:
            os.seteuid(user)
            edges.chmod(0o755)


def test_an_edges_key_that_may_not_be_read_is_told_once_with_the_fix() -> None:
    told: list[KeyFileError] = []
    with without_rights() as edges:
        folder = EdgeFolder(edges, told.append)
        for _ in range(3):
            with pytest.raises(KeyFileError):
                folder.public_key("kitchen")
            assert folder.public_key("cellar")
        with pytest.raises(UnknownEdge):
            folder.public_key("stranger")
    (error,) = told
    assert "Permission denied" in str(error)
    assert f"chmod 644 {edges / 'kitchen.json'}" in str(error)


def test_a_folder_of_edges_that_may_not_be_looked_into_is_told_once() -> None:
    told: list[KeyFileError] = []
    with without_rights() as edges:
        folder = EdgeFolder(edges, told.append)
        reader = os.geteuid()
        os.seteuid(edges.stat().st_uid)
        edges.chmod(0o600)
        os.seteuid(reader)
        for stranger in ("kitchen", "cellar", "stranger"):
            with pytest.raises(UnknownEdge):
                folder.public_key(stranger)
    (error,) = told
    assert f"chmod 755 {edges}" in str(error)


def test_an_edge_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="nowhere"):
        EdgeFolder(tmp_path / "nowhere")


def test_a_keyring_holds_edges_in_memory() -> None:
    keys = EdgeKeys.make("kitchen")
    assert EdgeKeyring({"kitchen": keys.public}).public_key("kitchen") == keys.public
    with pytest.raises(UnknownEdge):
        EdgeKeyring({}).public_key("kitchen")


def test_a_pool_key_id_is_used_once() -> None:
    pool = PoolKeys.make("pool-1")
    with pytest.raises(SealingError, match="pool-1"):
        pool.rotate("pool-1")
    with pytest.raises(UnknownKeyId, match="pool-7"):
        pool.secret_of("pool-7")


def test_a_pool_has_at_most_two_keys() -> None:
    with pytest.raises(SealingError):
        PoolKeys({name: bytes(32) for name in ("a", "b", "c")})
    with pytest.raises(SealingError):
        PoolKeys({})


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_a_public_key_that_makes_every_secret_guessable_is_refused(point: bytes) -> None:
    with pytest.raises(MalformedMessage, match="low-order"):
        PoolPublic("pool-1", point)
