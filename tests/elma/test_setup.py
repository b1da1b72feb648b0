"""What the demonstration writes is what the three processes read."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

from cloud_worker.settings import load_settings as load_worker_settings
from edge_agent.settings import load_settings as load_edge_settings
from elma.demonstration.setup import free_ports, prepare, write_toml
from protocol.key_files import EdgeFolder, load_edge_keys, load_pool_keys, load_pool_public


def test_worker_and_edge_are_told_of_each_others_keys_and_of_one_broker(tmp_path: Path) -> None:
    setup = prepare(tmp_path, "elma-small", "embedded", max_edge_layers=3)
    worker = load_worker_settings(tmp_path / "worker.toml")
    edge = load_edge_settings(tmp_path / "edge.toml")

    assert edge.broker == worker.broker
    assert worker.broker.port == setup.broker_port
    assert edge.max_edge_layers == 3
    assert edge.offload.edge_key_file is not None
    assert edge.offload.pool_public_key_file is not None
    keys = load_edge_keys(edge.offload.edge_key_file)
    assert keys.edge == edge.name
    assert EdgeFolder(worker.edges_folder).public_key(edge.name) == keys.public
    pool = load_pool_keys(worker.pool_secret_file)
    assert load_pool_public(edge.offload.pool_public_key_file) == pool.public
    assert len({setup.broker_port, worker.http.port, edge.http.port}) == 3


def test_secret_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    prepare(tmp_path, "elma-small", "embedded")
    secrets = list(tmp_path.rglob("*secret*"))
    assert len(secrets) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}


def test_a_model_folder_is_found_from_the_settings_folder(tmp_path: Path) -> None:
    model = tmp_path / "my-model"
    model.mkdir()
    settings = tmp_path / "settings"
    settings.mkdir()
    prepare(settings, str(model), "embedded")
    assert load_edge_settings(settings / "edge.toml").model == str(model)


def test_free_ports_differ() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5


def test_settings_survive_being_written(tmp_path: Path) -> None:
    settings = {"name": 'a "quoted" Zürich\\n', "count": 3, "http": {"host": "::1", "on": True}}
    write_toml(tmp_path / "x.toml", settings)
    assert tomllib.loads((tmp_path / "x.toml").read_text(encoding="utf-8")) == settings
