"""The publisher's keys: in files, and as `elma keys publisher` makes, rotates and revokes them."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from elma.commands.keys import app
from elma.output import CommandError
from protocol.errors import BadSignature, KeyFileError, RevokedKey, SealingError, UnknownKeyId
from protocol.key_files import (
    load_publisher_public,
    load_publisher_root,
    load_publisher_secret,
    load_rollout_secret,
    save_publisher_public,
    save_publisher_root,
    save_publisher_secret,
    save_rollout_secret,
)
from protocol.manifest import sign_manifest
from protocol.signing import KeyList, PublisherTrust, SigningKey
from tests.protocol.release_samples import manifest

ROOT_FILE = "publisher-root-secret.json"
SECRET_FILE = "publisher-secret.json"
PUBLIC_FILE = "publisher-public.json"


def publisher(folder: Path, *arguments: str | Path) -> Result:
    """Run the verb in this process."""
    words = ["publisher", "--out", folder, *arguments]
    return CliRunner().invoke(app, [str(word) for word in words])


def made(folder: Path, *arguments: str | Path) -> dict[str, Any]:
    """What a successful run says as JSON."""
    result = publisher(folder, *arguments, "--json")
    assert result.exit_code == 0, result.output + repr(result.exception)
    said = json.loads(result.output)
    assert isinstance(said, dict)
    return said


def test_keys_survive_their_files(tmp_path: Path) -> None:
    root, key = SigningKey.make("root"), SigningKey.make("publisher-1")
    trust = PublisherTrust(root.public, KeyList(1, {key.key_id: key.public}).sign(root))
    save_publisher_root(tmp_path / "root.json", root)
    save_publisher_secret(tmp_path / "key.json", key)
    save_rollout_secret(tmp_path / "rollout.json", key)
    save_publisher_public(tmp_path / "public.json", trust)
    assert load_publisher_root(tmp_path / "root.json") == root
    assert load_publisher_secret(tmp_path / "key.json") == key
    assert load_rollout_secret(tmp_path / "rollout.json") == key
    assert load_publisher_public(tmp_path / "public.json") == trust


def test_a_key_for_one_thing_is_not_taken_for_another(tmp_path: Path) -> None:
    """A rollout key is on a machine with a network: it must not be taken to sign releases."""
    save_rollout_secret(tmp_path / "rollout.json", SigningKey.make("rollout"))
    with pytest.raises(KeyFileError, match="expected a publisher-secret file"):
        load_publisher_secret(tmp_path / "rollout.json")
    with pytest.raises(KeyFileError, match="expected a publisher-root-secret file"):
        load_publisher_root(tmp_path / "rollout.json")


@pytest.mark.parametrize("name", [ROOT_FILE, SECRET_FILE])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_secret_that_others_may_read_is_refused_with_the_fix(
    tmp_path: Path, name: str, mode: int
) -> None:
    made(tmp_path)
    (tmp_path / name).chmod(mode)
    load = load_publisher_root if name == ROOT_FILE else load_publisher_secret
    with pytest.raises(KeyFileError, match=f"chmod 600 {tmp_path / name}"):
        load(tmp_path / name)


def test_a_public_file_may_be_read_by_others_and_not_be_written(tmp_path: Path) -> None:
    made(tmp_path)
    path = tmp_path / PUBLIC_FILE
    path.chmod(0o644)
    assert load_publisher_public(path).keys().version == 1
    path.chmod(0o664)
    with pytest.raises(KeyFileError, match=f"chmod go-w {path}"):
        load_publisher_public(path)


@pytest.mark.parametrize("field", ["root", "keys", "signature"])
@pytest.mark.parametrize(
    "value", [None, "", "not base64!", 7, base64.b64encode(bytes(32)).decode()]
)
def test_a_public_file_that_does_not_fit_together_is_refused(
    tmp_path: Path, field: str, value: Any
) -> None:
    made(tmp_path)
    path = tmp_path / PUBLIC_FILE
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, field: value}))
    with pytest.raises(KeyFileError, match=str(path)):
        load_publisher_public(path)


def test_a_publisher_is_made_and_its_key_signs_what_its_public_file_trusts(tmp_path: Path) -> None:
    said = made(tmp_path)
    assert said["key_id"] == "publisher-1"
    assert said["key_list_version"] == 1
    assert said["revoked"] == []
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == sorted([ROOT_FILE, SECRET_FILE, PUBLIC_FILE])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {ROOT_FILE: 0o600, SECRET_FILE: 0o600, PUBLIC_FILE: 0o644}
    trust = load_publisher_public(tmp_path / PUBLIC_FILE)
    key = load_publisher_secret(tmp_path / SECRET_FILE)
    assert said["keys"] == [{"id": "publisher-1", "fingerprint": key.fingerprint}]
    assert said["root_fingerprint"] == load_publisher_root(tmp_path / ROOT_FILE).fingerprint
    assert sign_manifest(manifest(), key, trust.key_list).manifest(trust.keys()) == manifest()


def test_no_key_is_overwritten(tmp_path: Path) -> None:
    made(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert isinstance(publisher(tmp_path).exception, CommandError)
    (tmp_path / SECRET_FILE).unlink()  # carried to the machine that signs
    assert isinstance(publisher(tmp_path).exception, CommandError)
    del before[tmp_path / SECRET_FILE]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_after_a_rotation_old_and_new_key_count(tmp_path: Path) -> None:
    made(tmp_path)
    old_key = load_publisher_secret(tmp_path / SECRET_FILE)
    before = load_publisher_public(tmp_path / PUBLIC_FILE)
    said = made(tmp_path, "--rotate")
    assert (said["key_id"], said["key_list_version"]) == ("publisher-2", 2)
    trust, new_key = (
        load_publisher_public(tmp_path / PUBLIC_FILE),
        load_publisher_secret(tmp_path / SECRET_FILE),
    )
    assert trust.root_public == before.root_public  # the devices need nothing new
    for key in (old_key, new_key):
        signed = sign_manifest(manifest(), key, trust.key_list)
        assert signed.manifest(trust.keys()) == manifest()
    with pytest.raises(UnknownKeyId):
        sign_manifest(manifest(), new_key, trust.key_list).manifest(before.keys())
    assert made(tmp_path, "--rotate", "--key-id", "spring")["key_id"] == "spring"


def test_a_revoked_key_counts_no_more_and_its_name_is_not_used_again(tmp_path: Path) -> None:
    made(tmp_path)
    stolen = load_publisher_secret(tmp_path / SECRET_FILE)
    made(tmp_path, "--rotate")
    said = made(tmp_path, "--revoke", "publisher-1")
    assert (said["key_list_version"], said["revoked"]) == (3, ["publisher-1"])
    assert [key["id"] for key in said["keys"]] == ["publisher-2"]
    trust = load_publisher_public(tmp_path / PUBLIC_FILE)
    with pytest.raises(RevokedKey):
        sign_manifest(manifest(), stolen, trust.key_list).manifest(trust.keys())
    again = publisher(tmp_path, "--rotate", "--key-id", "publisher-1")
    assert isinstance(again.exception, SealingError)
    assert isinstance(publisher(tmp_path, "--revoke", "publisher-1").exception, RevokedKey)
    assert isinstance(publisher(tmp_path, "--revoke", "nobody").exception, UnknownKeyId)
    assert load_publisher_public(tmp_path / PUBLIC_FILE) == trust


def test_a_name_that_a_revoked_key_had_is_stepped_over(tmp_path: Path) -> None:
    made(tmp_path)
    made(tmp_path, "--rotate")
    made(tmp_path, "--rotate", "--key-id", "publisher-1-b")
    made(tmp_path, "--revoke", "publisher-2")
    assert made(tmp_path, "--rotate", "--key-id", "publisher-3")["key_id"] == "publisher-3"
    made(tmp_path, "--revoke", "publisher-1-b")
    made(tmp_path, "--revoke", "publisher-1")
    assert made(tmp_path, "--rotate")["key_id"] == "publisher-4"


@pytest.mark.parametrize("has_secret_here", [True, False])
def test_the_only_key_is_not_revoked(tmp_path: Path, has_secret_here: bool) -> None:
    """Nothing could be released any more, not even the news of the revocation."""
    made(tmp_path)
    if not has_secret_here:
        (tmp_path / SECRET_FILE).unlink()
    failed = publisher(tmp_path, "--revoke", "publisher-1").exception
    assert isinstance(failed, CommandError)
    assert "--rotate first" in str(failed)


def test_the_root_key_may_lie_elsewhere(tmp_path: Path) -> None:
    keys, stick = tmp_path / "keys", tmp_path / "stick" / "root.json"
    made(keys, "--root", stick)
    assert not (keys / ROOT_FILE).exists()
    assert isinstance(publisher(keys, "--rotate").exception, KeyFileError)
    assert made(keys, "--rotate", "--root", stick)["key_id"] == "publisher-2"


def test_a_foreign_root_key_changes_nothing(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    made(ours)
    made(theirs)
    before = {path: path.read_bytes() for path in ours.iterdir()}
    failed = publisher(ours, "--rotate", "--root", theirs / ROOT_FILE).exception
    assert isinstance(failed, CommandError)
    assert "is not the root key" in str(failed)
    assert {path: path.read_bytes() for path in ours.iterdir()} == before
    foreign = load_publisher_public(theirs / PUBLIC_FILE)
    with pytest.raises(BadSignature):
        foreign.key_list.open(load_publisher_public(ours / PUBLIC_FILE).root_public)


def test_an_edges_bundle_takes_the_publishers_public_file_along(tmp_path: Path) -> None:
    made(tmp_path)
    run = CliRunner().invoke
    assert run(app, ["pool", "--out", str(tmp_path)]).exit_code == 0
    enrol = ["edge", "kitchen", "--pool", str(tmp_path / "pool-public.json"), "--out"]
    trusted = ["--publisher", str(tmp_path / PUBLIC_FILE)]
    result = run(app, [*enrol, str(tmp_path), *trusted, "--json"])
    assert result.exit_code == 0, result.output
    bundle = tmp_path / "kitchen"
    assert load_publisher_public(bundle / PUBLIC_FILE) == load_publisher_public(
        tmp_path / PUBLIC_FILE
    )
    assert json.loads(result.output)["publisher_public_file"] == str(bundle / PUBLIC_FILE)
    assert sorted(path.name for path in bundle.iterdir()) == [
        "edge-secret.json",
        "pool-public.json",
        PUBLIC_FILE,
    ]
    (tmp_path / PUBLIC_FILE).write_text("{}")
    failed = run(app, [*enrol, str(tmp_path / "other"), *trusted])
    assert isinstance(failed.exception, KeyFileError)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rotate", "--revoke", "publisher-1"],
        ["--revoke", "publisher-1", "--key-id", "x"],
        ["--key-id", "a/b"],
        ["--revoke", "a/b"],
    ],
)
def test_a_call_that_means_nothing_makes_nothing(tmp_path: Path, arguments: list[str]) -> None:
    failed = publisher(tmp_path, *arguments).exception
    assert isinstance(failed, CommandError)
    assert failed.exit_status == 2
    assert list(tmp_path.iterdir()) == []


def test_nothing_secret_is_printed(tmp_path: Path) -> None:
    printed = publisher(tmp_path).output + publisher(tmp_path, "--rotate").output
    printed += publisher(tmp_path, "--revoke", "publisher-1", "--json").output
    save_rollout_secret(tmp_path / "rollout-secret.json", SigningKey.make("rollout"))
    for path in tmp_path.glob("*.json"):
        shown = CliRunner().invoke(app, ["show", str(path)])
        assert shown.exit_code == 0
        printed += shown.output
    assert "publisher-2" in printed
    for secret in (
        load_publisher_root(tmp_path / ROOT_FILE).secret,
        load_publisher_secret(tmp_path / SECRET_FILE).secret,
        load_rollout_secret(tmp_path / "rollout-secret.json").secret,
    ):
        assert base64.b64encode(secret).decode() not in printed
        assert secret.hex() not in printed
