"""Training: learns, resumes exactly, runs on two processes, and saves what everyone can load."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AlbertForQuestionAnswering

from cloud_worker.training.objective import exit_weights
from cloud_worker.training.run import Progress
from cloud_worker.training.settings import ObjectiveSettings, TrainingError
from cloud_worker.training.trainer import train
from reader.model import Reader
from tests.cloud_worker.training.small_runs import column, settings_for, write_questions
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("data") / "train.json")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base"), layers=2, groups=2)


def losses(folder: Path) -> list[float]:
    return column(folder, "loss")


def test_training_learns_and_writes_everything_beside_the_weights(
    base: Path, data: Path, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    folder = train(
        settings_for(base, data, tmp_path, epochs=25, dropout=0.0, negatives=0.0),
        on_progress=seen.append,
    )
    found = losses(folder)
    assert sum(found[-10:]) / 10 < 0.6 * sum(found[:10]) / 10
    assert seen[-1].step == seen[-1].steps == len(found)
    assert json.loads((folder / "training.json").read_text())["seed"] == 1
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")
    reader = Reader.load(folder)
    (window,) = reader.split(
        "what is green?", "the old red city was the first and the green ship was the last."
    )
    best = reader.spans(reader.run(reader.embed([window]), 0, 2), 2, [0])[0].spans[0]
    start, end = window.offsets[best.start_token][0], window.offsets[best.end_token][1]
    assert "the old red city was the first and the green ship was the last."[start:end] == "ship"
    AlbertForQuestionAnswering.from_pretrained(folder)


def test_a_resumed_run_ends_with_the_same_weights(base: Path, data: Path, tmp_path: Path) -> None:
    whole = train(settings_for(base, data, tmp_path / "whole"))
    broken = settings_for(base, data, tmp_path / "broken")
    train(broken, stop_after_step=5)
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    train(broken, resume=True)
    left, right = (
        load_file(folder / "model.safetensors") for folder in (whole, tmp_path / "broken")
    )
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, atol=1e-6, rtol=1e-5, msg=name)
    assert losses(whole) == pytest.approx(losses(tmp_path / "broken"), abs=1e-4)


def test_out_of_time_it_saves_what_it_has_and_can_go_on(
    base: Path, data: Path, tmp_path: Path
) -> None:
    settings = settings_for(base, data, tmp_path)
    train(settings, stop_after_step=4)
    folder = train(settings, resume=True, max_seconds=0)
    assert Reader.load(folder).config.layers == 2
    assert json.loads((folder / "training.json").read_text())["run"]["steps_done"] == 4
    train(settings, resume=True)
    run = json.loads((folder / "training.json").read_text())["run"]
    assert run["steps_done"] == run["steps_planned"] > 4


def test_a_finished_run_is_not_overwritten(base: Path, data: Path, tmp_path: Path) -> None:
    folder = train(settings_for(base, data, tmp_path, steps=2))
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="--resume"):
        train(settings_for(base, data, tmp_path, steps=2))
    assert (folder / "model.safetensors").read_bytes() == before


def test_resuming_under_other_settings_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    train(settings_for(base, data, tmp_path), stop_after_step=2)
    with pytest.raises(TrainingError, match="learning_rate"):
        train(settings_for(base, data, tmp_path, learning_rate=1e-3), resume=True)
    with pytest.raises(TrainingError, match="no checkpoint"):
        train(settings_for(base, data, tmp_path / "empty"), resume=True)


def test_frozen_embeddings_stay_on_the_packed_grid(base: Path, data: Path, tmp_path: Path) -> None:
    from reader.encodings import decode_int4_groups, encode_int4_groups
    from reader.storage import WORD_EMBEDDINGS

    folder = train(settings_for(base, data, tmp_path, freeze_embeddings=True, steps=3))
    before = load_file(base / "model.safetensors")[WORD_EMBEDDINGS]
    after = load_file(folder / "model.safetensors")[WORD_EMBEDDINGS]
    expected = decode_int4_groups(*encode_int4_groups(before.numpy()))
    torch.testing.assert_close(after, torch.from_numpy(expected))


def test_source_weights_thin_and_repeat(base: Path, data: Path, tmp_path: Path) -> None:
    def steps(name: str, **changes: object) -> int:
        seen: list[Progress] = []
        settings = settings_for(base, data, tmp_path / name, epochs=1, negatives=0.0, **changes)
        train(settings, stop_after_step=1, on_progress=seen.append)
        return seen[0].steps

    once = steps("once")
    assert steps("twice", data=(f"{data}@2",)) == pytest.approx(2 * once, abs=1)
    assert steps("thin", source_weights={"colors": 0.0}) < once / 2
    with pytest.raises(TrainingError, match="no question"):
        steps("none", data=(f"{data}@0",))


def test_a_teacher_changes_what_is_learned(base: Path, data: Path, tmp_path: Path) -> None:
    teacher = make_tiny_model(tmp_path / "teacher", layers=2, groups=1, seed=9)
    plain = train(settings_for(base, data, tmp_path / "plain", steps=4))
    taught = train(settings_for(base, data, tmp_path / "taught", steps=4, teacher=str(teacher)))
    left, right = (load_file(folder / "model.safetensors") for folder in (plain, taught))
    assert any(not torch.equal(left[name], right[name]) for name in left)


def test_a_base_grows_while_it_is_loaded(base: Path, data: Path, tmp_path: Path) -> None:
    folder = train(settings_for(base, data, tmp_path, steps=2, layers=4, groups=4))
    assert Reader.load(folder).config.layers == 4


def test_exit_weights_rise_and_sum_to_one() -> None:
    weights = exit_weights(12, ObjectiveSettings(last_exit_share=0.3))
    assert sum(weights) == pytest.approx(1)
    assert weights == sorted(weights)
    assert weights[-1] > 0.3


def test_two_processes_under_torchrun_train_one_model(
    base: Path, data: Path, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--master-addr", "127.0.0.1", "--master-port", str(port), "-m", "elma", "train"),
        *("--base", str(base), "--data", str(data), "--out", str(tmp_path / "out")),
        *(
            "--epochs",
            "1",
            "--batch-windows",
            "16",
            "--batch-tokens",
            "2048",
            "--no-bf16",
            "--threads",
            "1",
        ),
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    alone: list[Progress] = []
    train(
        settings_for(base, data, tmp_path / "alone", epochs=1, negatives=0.0, dropout=0.0),
        stop_after_step=1,
        on_progress=alone.append,
    )
    assert len(losses(tmp_path / "out")) == alone[0].steps // 2
    assert Reader.load(tmp_path / "out").config.layers == 2


def test_a_data_set_in_the_hubs_folder_layout_trains(
    base: Path, data: Path, tmp_path: Path
) -> None:
    """The code path of `--data rajpurkar/squad_v2`, on a data set of the same columns."""
    rows = []
    for article in json.loads(data.read_text())["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"][:3]:
                rows.append(
                    {
                        "id": asked["id"],
                        "title": article["title"],
                        "context": paragraph["context"],
                        "question": asked["question"],
                        "answers": {
                            "text": [answer["text"] for answer in asked["answers"]],
                            "answer_start": [answer["answer_start"] for answer in asked["answers"]],
                        },
                    }
                )
    hub = tmp_path / "squad_tiny"
    hub.mkdir()
    (hub / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from cloud_worker.training.data import load_questions

    questions = load_questions(str(hub))
    assert len(questions) == len(rows)
    assert sum(question.is_impossible for question in questions) == len(rows) // 3
    folder = train(settings_for(base, hub, tmp_path / "out", steps=2))
    assert (folder / "model.safetensors").is_file()


def test_the_seeds_setup_trains_by_hub_names_alone(base: Path, data: Path, tmp_path: Path) -> None:
    """`elma train --base USER/MODEL --data USER/DATA`, from a hub cache that the test lays out."""
    snapshot = tmp_path / "hub" / "models--albert--albert-tiny" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copyfile(base / name, snapshot / name)
    references = snapshot.parents[1] / "refs"
    references.mkdir()
    (references / "main").write_text("0123abcd")
    command = [
        *(sys.executable, "-m", "elma", "train", "--base", "albert/albert-tiny"),
        *("--data", str(data), "--out", str(tmp_path / "out"), "--steps", "2", "--json"),
        *("--batch-tokens", "2048", "--threads", "1"),
    ]
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["steps"] == 2
    assert Reader.load(tmp_path / "out").config.layers == 2


def test_a_base_that_nobody_has_is_named(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "elma", "train", "--base", "nobody/nothing"]
    done = subprocess.run(
        [*command, "--data", str(data), "--out", str(tmp_path)],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "nobody/nothing" in done.stderr
    assert "Traceback" not in done.stderr
