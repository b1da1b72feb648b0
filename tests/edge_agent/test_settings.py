"""Settings from file, environment and arguments, and what is said of wrong ones."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from broker.settings import BrokerSettings
from edge_agent.errors import SettingsError
from edge_agent.settings import EdgeSettings, load_settings
from releases.settings import FollowSettings

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "edge.toml"


def write(folder: Path, text: str) -> Path:
    file = folder / "edge.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_without_anything_an_agent_works_alone() -> None:
    settings = load_settings()
    assert not settings.is_offloading
    assert settings.http.host == "127.0.0.1"


def test_arguments_beat_the_environment_which_beats_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(
        tmp_path, 'name = "file"\nqueue_bound = 7\nretention_seconds = 9.0\n[http]\nport = 1\n'
    )
    monkeypatch.setenv("ELMA_EDGE_NAME", "environment")
    monkeypatch.setenv("ELMA_EDGE_QUEUE_BOUND", "8")
    monkeypatch.setenv("ELMA_EDGE_HTTP__MAX_BODY_BYTES", "2048")
    settings = load_settings(config, {"name": "argument", "queue_bound": None})
    assert settings.name == "argument"
    assert settings.queue_bound == 8
    assert settings.retention_seconds == 9.0
    assert (settings.http.port, settings.http.max_body_bytes) == (1, 2_048)


def test_every_setting_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    document = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    for name, value in flatten(document):
        monkeypatch.setenv(f"ELMA_EDGE_{name.upper()}", str(value))
    settings = load_settings().model_dump(mode="json", exclude_none=True)
    for name, value in flatten(document):
        table: Any = settings
        for part in name.split("__"):
            table = table[part]
        assert table == value, name


def test_the_example_shows_every_setting_and_the_defaults_as_they_are() -> None:
    shown = EXAMPLE.read_text(encoding="utf-8")
    document = tomllib.loads(shown)
    defaults = EdgeSettings().model_dump(mode="json")
    defaults["broker"] = BrokerSettings().model_dump(mode="json")
    publisher = Path("publisher-public.json")
    rules = FollowSettings(publisher_public_key_file=publisher)
    defaults["releases"] = rules.model_dump(mode="json")
    for name in dict(flatten(defaults)):
        assert f"{name.split('__')[-1]} = " in shown, name
    for name, value in flatten(document):
        if name != "name" and not name.endswith("key_file"):
            assert dict(flatten(defaults))[name] == value, name
    assert load_settings(EXAMPLE).is_offloading


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").replace('"elma-edge.', '"state/outbox.')
    settings = load_settings(write(tmp_path, lines))
    assert settings.outbox == tmp_path / "state" / "outbox.sqlite3"
    assert settings.audit.store_file == tmp_path / "elma-audit.sqlite3"
    assert settings.releases is not None
    assert settings.releases.folder == tmp_path / "elma-releases"
    assert settings.releases.publisher_public_key_file.is_relative_to(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("queue_bound = 0", "queue_bound"),
        ("queue_bond = 5", "queue_bond"),
        ("[http]\nprot = 1", "http.prot"),
        ('[offload]\ncodec = "zip"', "offload.codec"),
        ('[offload]\nedge_key_file = "a"', "belong together"),
        ("[broker]\nport = 1883", "nothing may be sent unsealed"),
        ("default_deadline_seconds = 100.0", "above max_deadline_seconds"),
        ("max_deadline_seconds = nan", "max_deadline_seconds"),
        ('name = "a b"', "name"),
        ('model = "none"', r"set \[releases\]"),
        ('[releases]\npublisher_public_key_file = "p"', r"set \[broker\]"),
        ("[releases]\nwindow = 4", "publisher_public_key_file"),
        ('[releases]\nquiet_hours = "22-6"', "quiet_hours"),
        ("[metrics]\nreport_seconds = 60.0", r"set \[broker\]"),
        ("[metrics]\nreport_seconds = 0.5", "report_seconds"),
        ('[metrics]\ntextfile = "elma.txt"', "node_exporter"),
        ("name = ", "not valid TOML"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        load_settings(write(tmp_path, text))


def test_a_misspelt_variable_is_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELMA_EDGE_NAEM", "x")
    with pytest.raises(SettingsError, match="ELMA_EDGE_NAEM"):
        load_settings()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no\.toml"):
        load_settings(tmp_path / "no.toml")


def flatten(table: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """`{"http": {"port": 1}}` as `[("http__port", 1)]`."""
    flat: list[tuple[str, Any]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            flat += flatten(value, f"{prefix}{key}__")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat
