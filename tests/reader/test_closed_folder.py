"""A model is found, or its absence explained, from a folder that its user may not look into."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from reader import weights
from reader.errors import ModelFolderError


@pytest.fixture
def open_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everyone may read, seen from one that is closed, without the rights of root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        closed = Path(folder) / "closed"
        closed.mkdir()
        monkeypatch.chdir(closed)
        closed.chmod(0o000)
        user = os.geteuid()
        os.seteuid(65_534 if user == 0 else user)
        try:
            yield Path(folder)
        finally:
            os.seteuid(user)
            closed.chmod(0o700)
            monkeypatch.undo()


def test_a_shipped_model_is_found_by_its_name(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(weights, "shipped_model_folder", lambda _name: open_folder)
        assert weights.resolve_model_folder("elma-small") == open_folder


@pytest.mark.usefixtures("open_folder")
def test_a_folder_that_cannot_be_looked_for_is_named_with_the_reason() -> None:
    with pytest.raises(ModelFolderError, match=r"model mine cannot be looked for.*Permission"):
        weights.resolve_model_folder("mine")
