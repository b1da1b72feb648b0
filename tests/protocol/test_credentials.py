"""A secret file may show a group's right to read as a credential of systemd, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.errors import BrokerSettingsError
from broker.settings import BrokerSettings
from protocol.errors import KeyFileError
from protocol.key_files import load_edge_keys, save_edge_keys
from protocol.keys import EdgeKeys


@pytest.fixture
def lent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key file where systemd puts credentials."""
    folder = tmp_path / "credentials"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    path = folder / "edge-secret.json"
    save_edge_keys(path, EdgeKeys.make("kitchen"))
    return path


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600])
def test_a_credential_is_taken_with_the_modes_that_systemd_gives_it(lent: Path, mode: int) -> None:
    lent.chmod(mode)
    assert load_edge_keys(lent).edge == "kitchen"


@pytest.mark.parametrize("mode", [0o444, 0o460, 0o450, 0o404, 0o644])
def test_a_credential_that_others_may_read_or_write_is_refused(lent: Path, mode: int) -> None:
    lent.chmod(mode)
    with pytest.raises(KeyFileError, match="open to other users"):
        load_edge_keys(lent)


def test_beside_and_below_the_credential_folder_the_group_may_still_not_read(lent: Path) -> None:
    for path in (lent.parent.parent / "edge-secret.json", lent.parent / "x" / "edge-secret.json"):
        save_edge_keys(path, EdgeKeys.make("kitchen"))
        path.chmod(0o440)
        with pytest.raises(KeyFileError, match="chmod 600"):
            load_edge_keys(path)


def test_a_link_out_of_the_credential_folder_is_no_credential(lent: Path, tmp_path: Path) -> None:
    outside = tmp_path / "edge-secret.json"
    save_edge_keys(outside, EdgeKeys.make("kitchen"))
    outside.chmod(0o440)
    link = lent.parent / "link.json"
    link.symlink_to(outside)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_edge_keys(link)


@pytest.mark.parametrize("folder", ["", ".", "credentials"])
def test_a_folder_that_systemd_would_not_name_changes_nothing(
    lent: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lent.parent)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", folder)
    lent.chmod(0o440)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_edge_keys(lent)


def test_the_broker_s_secrets_follow_the_same_rule(lent: Path) -> None:
    lent.chmod(0o440)
    settings = BrokerSettings(username="u", password_file=lent)
    assert settings.password()
    lent.chmod(0o444)
    with pytest.raises(BrokerSettingsError, match="open to other users"):
        settings.password()
