"""Installed releases: whole, what was signed, and nowhere but in their folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from reader.weights import folder_digest
from releases.errors import StoreError
from releases.installed_folder import InstalledFolder


@pytest.fixture
def installed(tmp_path: Path) -> InstalledFolder:
    """An empty one."""
    folder = tmp_path / "installed"
    folder.mkdir()
    return InstalledFolder(folder)


def put(installed: InstalledFolder, content: str) -> str:
    """A release of one file; returns its digest."""
    made = installed.folder.parent / "made"
    made.mkdir()
    (made / "config.json").write_text(content)
    release = folder_digest(made)
    assert installed.put(made, release) == installed.path_of(release)
    return release


def test_a_folder_that_is_not_what_was_signed_is_as_if_it_were_not_here(
    installed: InstalledFolder,
) -> None:
    release, other = put(installed, "{}"), put(installed, "{ }")
    path = installed.path_of(release)
    assert installed.sound(release) == path
    (path / "config.json").write_text("[]")
    installed.remove_damaged()
    assert installed.find(release) is None
    assert installed.digests() == (other,)
    assert [one.name for one in installed.folder.iterdir()] == [other]


def test_a_name_that_is_no_digest_leads_nowhere(installed: InstalledFolder) -> None:
    with pytest.raises(StoreError, match="no digest"):
        installed.path_of("../../etc")


def test_only_whole_folders_named_by_a_digest_count(installed: InstalledFolder) -> None:
    (installed.folder / "notes").mkdir()
    (installed.folder / ("a" * 64)).write_text("a file, no folder")
    installed.partial_folder("b" * 64).mkdir()
    assert installed.digests() == ()
    installed.clear_partial()
    assert not installed.partial_folder("b" * 64).exists()
