"""What a person reads who gave a process the wrong settings file."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud_worker.errors import WorkerSettingsError
from cloud_worker.settings import load_settings


def test_the_file_of_another_kind_of_process_is_suspected(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text('name = "kitchen"\noutbox = "x"\n[offload]\n', encoding="utf-8")
    with pytest.raises(WorkerSettingsError) as caught:
        load_settings(file)
    words = str(caught.value)
    assert "outbox: there is no such setting" in words
    assert "another kind of process?" in words
    file.write_text('nmae = "kitchen"\n', encoding="utf-8")
    with pytest.raises(WorkerSettingsError, match=r"nmae: there is no such setting$"):
        load_settings(file)


def test_a_folder_for_a_settings_file_is_told_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(WorkerSettingsError, match="Is a directory; name a TOML file"):
        load_settings(tmp_path)
