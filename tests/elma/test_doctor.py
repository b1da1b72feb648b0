"""`elma doctor`: what it sees on a sound device, what it says of each fault, its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloud_worker.settings import load_settings as load_worker_settings
from edge_agent.settings import EdgeSettings
from elma.doctor import engines
from elma.doctor.broker import check_keys, check_pool
from elma.doctor.engines import check_alternatives, check_choice
from elma.doctor.examination import Patient, examine
from elma.doctor.finding import Finding, State
from elma.doctor.machine import check_disk, check_memory, check_processor
from elma.doctor.model import check_canary, check_model
from protocol.key_files import save_edge_keys, save_edge_public, save_pool_keys, save_pool_public
from protocol.keys import EdgeKeys, PoolKeys
from reader.errors import EngineError
from reader.exits import ExitSettings
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random reader; its exits may stop a question."""
    calibrated = ExitSettings("margin", (0.5,) * 4, (0.0,) * 4, (1.0,) * 4, 2)
    return make_tiny_model(tmp_path_factory.mktemp("doctor") / "tiny", settings=calibrated)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    """Findings by their stable name, each of which stands once."""
    named = {finding.name: finding for finding in findings}
    assert len(named) == len(findings)
    return named


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the real program."""
    return subprocess.run(
        [sys.executable, "-m", "elma", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_sound_device_gets_status_0_and_one_object_with_every_finding(model_folder: Path) -> None:
    done = doctor("--model", str(model_folder), "--threads", "1", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is True
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert set(findings) == {
        *("processor", "memory", "disk", "engine", "engine torch", "engine onnx"),
        *("model", "exits", "canary"),
    }
    assert findings["engine"]["figures"]["threads"] == 1
    assert len(findings["model"]["figures"]["digest"]) == 64
    assert findings["canary"]["figures"]["milliseconds"] > 0


def test_what_does_not_work_is_named_with_advice_and_status_1(tmp_path: Path) -> None:
    done = doctor("--model", str(tmp_path / "nothing-here"))
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("failed")]
    assert "nothing-here" in line
    assert "-> " in done.stdout
    assert "Traceback" not in done.stderr


def test_wrong_settings_end_the_examination_after_the_machine(tmp_path: Path) -> None:
    config = tmp_path / "edge.toml"
    config.write_text("queue_bond = 5", encoding="utf-8")
    findings = by_name(list(examine(Patient(config))))
    assert set(findings) == {"processor", "memory", "settings"}
    assert findings["settings"].state is State.FAILED
    assert "queue_bond" in findings["settings"].text


def test_the_processor_is_described_by_what_matters() -> None:
    figures = check_processor().figures
    assert figures["cores"] == os.cpu_count()
    assert isinstance(figures["flags"], list)


@pytest.mark.parametrize(
    ("content", "state"),
    [
        ("MemTotal: 1000000 kB\nMemAvailable: 900000 kB\n", State.OK),
        ("MemTotal: 1000000 kB\nMemAvailable: 100000 kB\n", State.WARNING),
        ("", State.WARNING),
    ],
)
def test_little_memory_is_a_warning(tmp_path: Path, content: str, state: State) -> None:
    file = tmp_path / "meminfo"
    file.write_text(content, encoding="ascii")
    assert check_memory(file).state is state


def test_an_outbox_that_has_no_folder_is_a_failure(tmp_path: Path) -> None:
    assert check_disk(tmp_path / "outbox.sqlite3").state is not State.FAILED
    finding = check_disk(tmp_path / "no" / "outbox.sqlite3")
    assert finding.state is State.FAILED
    assert "mkdir" in finding.advice


def test_an_engine_that_is_not_there_is_a_failure_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(engine: str, precision: str, threads: int | None = None) -> Any:
        raise EngineError(f"{engine} is not installed")

    monkeypatch.setattr(engines, "choose_engine", nothing)
    monkeypatch.setattr(engines, "missing_modules", lambda extra: [extra])
    assert check_choice("auto", "auto", None).state is State.FAILED
    assert "elma-qa[edge]" in check_choice("auto", "auto", None).advice
    assert "elma-qa[torch]" in check_choice("torch", "auto", None).advice
    # One engine is enough: what is missing beside it is said, and is no failure.
    for finding in check_alternatives(None):
        assert finding.state is State.OK
        assert "not installed" in finding.text
        assert "pip install" in finding.advice


def test_the_engine_s_own_reason_is_shown() -> None:
    finding = check_choice("torch", "fp32", 1)
    assert finding.state is State.OK
    assert finding.text.startswith("torch, fp32, 1 thread: ")
    assert finding.text.endswith(finding.figures["reason"])


def test_a_model_that_was_never_calibrated_is_a_warning(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "tiny")
    options = {"engine": "auto", "precision": "auto", "threads": 1}
    (_, never), _ = check_model(str(folder), **options)
    assert never.state is State.WARNING
    assert "no exit may stop" in never.text
    (folder / "exits.json").unlink()
    (model, missing), reader = check_model(str(folder), **options)
    assert (model.state, missing.state) == (State.OK, State.WARNING)
    assert "elma calibrate" in missing.advice
    assert reader is not None


def test_a_reader_that_answers_wrongly_is_a_warning_and_one_that_breaks_a_failure(
    model_folder: Path,
) -> None:
    _, reader = check_model(str(model_folder), engine="auto", precision="auto", threads=1)
    assert reader is not None
    finding = check_canary(reader)  # random weights: an answer, but hardly the right one
    assert (finding.state is State.OK) is finding.figures["is_right"]

    def broken(*_: object) -> Any:
        raise RuntimeError("a kernel is missing")

    reader.engine = SimpleNamespace(  # type: ignore[assignment]
        config=reader.config, choice=reader.engine.choice, embed=broken
    )
    finding = check_canary(reader)
    assert finding.state is State.FAILED
    assert "a kernel is missing" in finding.text


def test_keys_have_to_be_there_and_belong_to_the_edge(tmp_path: Path) -> None:
    edge_file, pool_file = tmp_path / "edge.json", tmp_path / "pool.json"
    files = {"edge_key_file": edge_file, "pool_public_key_file": pool_file}

    def finding(name: str) -> Finding:
        return check_keys(EdgeSettings(name=name, offload=files))  # type: ignore[arg-type]

    assert check_keys(EdgeSettings()).state is State.OK
    assert finding("kitchen").state is State.FAILED
    save_edge_keys(edge_file, EdgeKeys.make("kitchen"))
    save_pool_public(pool_file, PoolKeys.make("p1").public)
    assert finding("kitchen").state is State.OK
    assert finding("cellar").state is State.FAILED
    assert "kitchen" in finding("cellar").advice


def test_a_settings_file_has_its_keys_and_broker_looked_at(
    tmp_path: Path, model_folder: Path, free_port: Callable[[], int]
) -> None:
    save_edge_keys(tmp_path / "edge.json", EdgeKeys.make("kitchen"))
    save_pool_public(tmp_path / "pool.json", PoolKeys.make("p1").public)
    config = tmp_path / "edge.toml"
    config.write_text(
        f'name = "kitchen"\nmodel = "{model_folder}"\nthreads = 1\n'
        f"[broker]\nport = {free_port()}\nconnect_timeout_seconds = 1.0\n"
        '[offload]\nedge_key_file = "edge.json"\npool_public_key_file = "pool.json"\n',
        encoding="utf-8",
    )
    findings = by_name(list(examine(Patient(config))))
    assert findings["settings"].state is State.OK
    assert findings["keys"].state is State.OK
    assert findings["broker"].state is State.FAILED


def test_a_device_that_waits_for_its_first_release_is_sound(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    save_edge_keys(tmp_path / "edge.json", EdgeKeys.make("kitchen"))
    save_pool_public(tmp_path / "pool.json", PoolKeys.make("p1").public)
    config = tmp_path / "edge.toml"
    config.write_text(
        f'name = "kitchen"\nmodel = "none"\nthreads = 1\n'
        f"[broker]\nport = {free_port()}\nconnect_timeout_seconds = 1.0\n"
        '[offload]\nedge_key_file = "edge.json"\npool_public_key_file = "pool.json"\n'
        '[releases]\npublisher_public_key_file = "publisher.json"\nfolder = "to/be/made"\n',
        encoding="utf-8",
    )
    findings = by_name(list(examine(Patient(config))))
    assert findings["model"].state is State.OK
    assert "channel stable" in findings["model"].text
    assert "canary" not in findings
    assert findings["release store"].state is not State.FAILED
    assert findings["release store"].figures["folder"] == str(tmp_path)


def test_a_worker_s_settings_have_the_same_things_looked_at(
    tmp_path: Path, model_folder: Path, free_port: Callable[[], int]
) -> None:
    config = tmp_path / "worker.toml"
    config.write_text(
        f'name = "north"\nmodel = "{model_folder}"\nthreads = 1\n'
        f"[broker]\nport = {free_port()}\nconnect_timeout_seconds = 1.0\n",
        encoding="utf-8",
    )
    findings = by_name(list(examine(Patient(worker_config=config))))
    assert "disk" not in findings  # it has no outbox
    assert findings["model"].state is State.OK
    assert findings["keys"].state is State.FAILED
    assert findings["broker"].state is State.FAILED
    save_pool_keys(tmp_path / "pool-secret.json", PoolKeys.make("p1"))
    (tmp_path / "edges").mkdir()
    assert check_pool(load_worker_settings(config)).state is State.WARNING
    save_edge_public(tmp_path / "edges", "kitchen", EdgeKeys.make("kitchen").public)
    sound = check_pool(load_worker_settings(config))
    assert (sound.state, sound.figures["edges"]) == (State.OK, 1)


def test_two_settings_files_at_once_are_refused(tmp_path: Path) -> None:
    done = doctor("--config", str(tmp_path / "a"), "--worker-config", str(tmp_path / "b"))
    assert done.returncode == 2
    assert "not both" in done.stderr
