"""`elma keys` as its user runs it."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from elma.commands.keys import app
from protocol.errors import KeyFileError
from protocol.key_files import EdgeFolder, load_edge_keys, load_pool_keys, load_pool_public


def keys(*arguments: str | Path) -> Result:
    """Run the verb in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def make_pool_and_edge(folder: Path) -> None:
    """What a newcomer types."""
    assert keys("pool", "--out", folder).exit_code == 0
    made = keys("edge", "kitchen", "--pool", folder / "pool-public.json", "--out", folder)
    assert made.exit_code == 0, made.output


def test_a_pool_and_an_edge_are_made_and_fit_together(tmp_path: Path) -> None:
    make_pool_and_edge(tmp_path)
    pool = load_pool_keys(tmp_path / "pool-secret.json")
    edge = load_edge_keys(tmp_path / "kitchen" / "edge-secret.json")
    assert load_pool_public(tmp_path / "kitchen" / "pool-public.json") == pool.public
    assert EdgeFolder(tmp_path / "edges").public_key("kitchen") == edge.public
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}
    assert modes == {
        "pool-secret.json": 0o600,
        "edge-secret.json": 0o600,
        "pool-public.json": 0o644,
        "kitchen.json": 0o644,
    }


def test_rotation_keeps_the_key_before(tmp_path: Path) -> None:
    make_pool_and_edge(tmp_path)
    first = load_pool_keys(tmp_path / "pool-secret.json")
    result = keys("pool", "--out", tmp_path, "--rotate", "--json")
    assert json.loads(result.output)["live_key_ids"] == ["pool-1", "pool-2"]
    second = load_pool_keys(tmp_path / "pool-secret.json")
    assert second.secret_of("pool-1") == first.secret_of("pool-1")
    assert load_pool_public(tmp_path / "pool-public.json").key_id == "pool-2"
    assert keys("pool", "--out", tmp_path, "--rotate", "--key-id", "spring").exit_code == 0
    assert load_pool_keys(tmp_path / "pool-secret.json").ids == ("pool-2", "spring")


def test_no_key_is_overwritten(tmp_path: Path) -> None:
    make_pool_and_edge(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    assert isinstance(keys("pool", "--out", tmp_path).exception, KeyFileError)
    again = keys("edge", "kitchen", "--pool", tmp_path / "pool-public.json", "--out", tmp_path)
    assert again.exception is not None
    (tmp_path / "edges" / "kitchen.json").unlink()
    third = keys("edge", "kitchen", "--pool", tmp_path / "pool-public.json", "--out", tmp_path)
    assert isinstance(third.exception, KeyFileError)
    del before[tmp_path / "edges" / "kitchen.json"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


@pytest.mark.parametrize("name", ["../kitchen", "a/b", "", "x" * 65, "edges"])
def test_a_name_that_is_no_name_makes_nothing(tmp_path: Path, name: str) -> None:
    assert keys("pool", "--out", tmp_path / "keys").exit_code == 0
    public = tmp_path / "keys" / "pool-public.json"
    assert keys("edge", name, "--pool", public, "--out", tmp_path / "out").exit_code != 0
    assert not (tmp_path / "out").exists()


def test_nothing_secret_is_printed(tmp_path: Path) -> None:
    printed = keys("pool", "--out", tmp_path).output
    public = tmp_path / "pool-public.json"
    printed += keys("edge", "kitchen", "--pool", public, "--out", tmp_path, "--json").output
    for path in tmp_path.rglob("*.json"):
        printed += keys("show", path).output + keys("show", path, "--json").output
    assert "fingerprint" in printed
    for secret in (
        load_pool_keys(tmp_path / "pool-secret.json").secret_of("pool-1"),
        load_edge_keys(tmp_path / "kitchen" / "edge-secret.json").secret,
    ):
        assert base64.b64encode(secret).decode() not in printed
        assert secret.hex() not in printed
