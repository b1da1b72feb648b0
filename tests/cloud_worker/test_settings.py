"""The worker's settings: file, environment and options, each beating the one before."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from cloud_worker.errors import WorkerSettingsError
from cloud_worker.settings import ReleaseSettings, WorkerSettings, load_settings
from protocol.blobs import CHUNK_BYTES

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "worker.toml"


def write(folder: Path, text: str) -> Path:
    path = folder / "worker.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_options_beat_the_environment_and_the_environment_beats_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path, 'name = "file"\nqueue_bound = 1\n[http]\nport = 1\nhost = "::1"\n')
    monkeypatch.setenv("ELMA_WORKER_QUEUE_BOUND", "2")
    monkeypatch.setenv("ELMA_WORKER_HTTP__PORT", "2")
    settings = load_settings(config, {"queue_bound": 3, "name": None, "http": {"port": None}})
    assert (settings.name, settings.queue_bound) == ("file", 3)
    assert (settings.http.port, settings.http.host) == (2, "::1")


def test_every_setting_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELMA_WORKER_OLDER_MODELS", '["a", "b"]')
    monkeypatch.setenv("ELMA_WORKER_BROKER__HOST", "broker.example")
    monkeypatch.setenv("ELMA_WORKER_BATCH__MAX_TOKENS", "2048")
    settings = load_settings()
    assert settings.models == ("elma-small", "a", "b")
    assert settings.broker.host == "broker.example"
    assert settings.batch.limits.max_tokens == 2048


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "reader").mkdir()
    config = write(
        tmp_path,
        'model = "reader"\nedges_folder = "known"\n[broker]\ntls_ca_file = "ca.pem"\n',
    )
    settings = load_settings(config)
    assert settings.model == str(tmp_path / "reader")
    assert settings.edges_folder == tmp_path / "known"
    assert settings.pool_secret_file == tmp_path / "pool-secret.json"
    assert settings.broker.tls_ca_file == tmp_path / "ca.pem"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("queue_bound = 0", "queue_bound"),
        ("max_request_bytes = 2_000_000\nincoming_bound_bytes = 2_000_000", "incoming_bound_bytes"),
        ('name = "a/b"', "name"),
        ("[batch]\nstep_seconds = 0", "step_seconds"),
        ('precision = "fp8"', "precision"),
        ('priorities = ["normal", "normal"]', "priorities"),
        ("[broker]\nport = 70000", "broker.port"),
        ("colour = 1", "colour"),
        ("name = ", "TOML"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(WorkerSettingsError, match=named):
        load_settings(write(tmp_path, text))


def test_a_misspelt_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELMA_WORKER_QUEUEBOUND", "2")
    with pytest.raises(WorkerSettingsError, match="ELMA_WORKER_QUEUEBOUND"):
        load_settings()


def test_a_missing_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(WorkerSettingsError, match=r"nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml")


def test_workers_of_one_machine_never_share_a_default_name() -> None:
    usual, other = load_settings(), load_settings(None, {"http": {"port": 8600}})
    free = [load_settings(None, {"http": {"port": 0}}).name for _ in range(2)]
    assert len({usual.name, other.name, *free}) == 4
    assert other.name == f"{usual.name}-8600"
    assert load_settings(None, {"http": {"port": 8600}}).name == other.name


def test_the_example_shows_every_setting_with_its_default() -> None:
    shown = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    defaults = WorkerSettings()
    optional = {"threads", "releases"}  # shown as comments
    assert set(shown) | optional == set(WorkerSettings.model_fields)
    for name in ("queue_bound", "queue_bound_bytes", "lease_seconds", "drain_seconds", "model"):
        assert shown[name] == getattr(defaults, name), name
    assert shown["batch"] == defaults.batch.model_dump()
    assert shown["http"] == defaults.http.model_dump()
    assert load_settings(EXAMPLE).client_id == "worker-worker-1"


def test_the_example_shows_every_setting_of_a_channel_with_its_default() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").split("# [releases]\n")[1].split("\n\n")[0]
    shown = tomllib.loads(lines.replace("# ", "", 1).replace("\n# ", "\n"))
    assert set(shown) == set(ReleaseSettings.model_fields)
    defaults = ReleaseSettings(publisher_public_key_file=Path("publisher-public.json"))
    without = {"https_ca_file", "max_bytes_per_second", "quiet_hours"}
    for name in set(shown) - without:
        value = getattr(defaults, name)
        assert shown[name] == (str(value) if isinstance(value, Path) else value), name
    assert all(getattr(defaults, name) is None for name in without)


CHANNEL = '[releases]\npublisher_public_key_file = "publisher-public.json"\n'


def test_a_channel_is_followed_with_paths_relative_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELMA_WORKER_RELEASES__CHANNEL", "beta")
    monkeypatch.setenv("ELMA_WORKER_RELEASES__MAX_LOADED", "5")
    rules = load_settings(write(tmp_path, f'{CHANNEL}folder = "store"\n')).releases
    assert rules is not None
    assert (rules.channel, rules.max_loaded) == ("beta", 5)
    assert rules.publisher_public_key_file == tmp_path / "publisher-public.json"
    assert rules.folder == tmp_path / "store"


def test_a_chunk_always_fits_and_always_finds_a_place(tmp_path: Path) -> None:
    small = "max_request_bytes = 65_536\nqueue_bound = 1\n"
    alone = load_settings(write(tmp_path, small))
    following = load_settings(write(tmp_path, small + CHANNEL))
    assert (alone.receive_maximum, following.receive_maximum) == (1, 5)
    assert alone.largest_packet_bytes < CHUNK_BYTES < following.largest_packet_bytes


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('model = "none"', r"set \[releases\]"),
        (f"older_models = ['a', 'b']\n{CHANNEL}max_loaded = 4", "max_loaded must be at least 5"),
    ],
)
def test_a_worker_always_has_a_place_for_what_it_must_load(
    tmp_path: Path, text: str, named: str
) -> None:
    with pytest.raises(WorkerSettingsError, match=named):
        load_settings(write(tmp_path, text))
