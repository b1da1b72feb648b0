"""Each step writes a folder that loads, is what was asked for, and tells how it came about."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cloud_worker.compress.report import FolderFacts, has_own_exits, read_steps
from cloud_worker.compress.steps import (
    CompressionError,
    add_bottleneck,
    change_precision,
    drop_smallest,
    narrow_embeddings,
    train_smaller,
)
from cloud_worker.compress.text import TextSettings, count_words
from cloud_worker.training.bottleneck import BottleneckSettings
from cloud_worker.training.settings import PruneSettings, TrainingError
from cloud_worker.training.trainer import train
from reader.bottleneck import BOTTLENECK_FILE
from reader.errors import ModelFolderError
from reader.exits import ExitSettings
from reader.model import Reader
from reader.weights import ModelTensors
from tests.cloud_worker.training.small_runs import settings_for, write_questions
from tests.tiny import make_tiny_model

NO_TEXT = TextSettings()
PASSAGE = "the old red city was the first and the green ship was the last."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("data") / "train.json")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(
        tmp_path_factory.mktemp("base") / "base", layers=3, groups=2, hidden_size=64
    )


def logits(folder: Path) -> np.ndarray:
    reader = Reader.load(folder, engine="torch", precision="fp32", threads=1)
    batch = reader.embed(reader.split("what is red?", PASSAGE))
    start, end = reader.exit_logits(reader.run(batch, 0, 3), 3)
    both = np.stack((start, end))
    return both[np.isfinite(both)]


def error_against(base: Path, folder: Path) -> float:
    wanted, got = logits(base), logits(folder)
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(("storage", "limit"), [("float16", 0.01), ("int8", 0.2), ("int4", 0.4)])
def test_a_precision_is_smaller_and_reads_nearly_the_same(
    storage: str, limit: float, base: Path, tmp_path: Path
) -> None:
    record = change_precision(str(base), tmp_path / "out", storage=storage, text=NO_TEXT)
    assert record["after"]["model_bytes"] < record["before"]["model_bytes"]
    assert record["after"] == json.loads(json.dumps(vars_of(tmp_path / "out")))
    assert error_against(base, tmp_path / "out") < limit


def test_int4_rounded_by_text_says_which_and_reads_nearly_the_same(
    base: Path, data: Path, tmp_path: Path
) -> None:
    text = TextSettings((str(data),), windows=40)
    seen: list[tuple[int, int]] = []
    record = change_precision(
        str(base),
        tmp_path / "out",
        storage="int4",
        text=text,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (40, 40)
    assert record["settings"]["windows"] == 40
    assert error_against(base, tmp_path / "out") < 0.4
    change_precision(str(base), tmp_path / "nearest", storage="int4", text=NO_TEXT)
    codes = [
        ModelTensors.open(tmp_path / name).read("groups.0.up.weight") for name in ("out", "nearest")
    ]
    assert not np.array_equal(*codes)


def test_the_same_precision_again_keeps_the_codes(base: Path, data: Path, tmp_path: Path) -> None:
    text = TextSettings((str(data),), windows=20)
    change_precision(str(base), tmp_path / "once", storage="int4", text=text)
    change_precision(str(tmp_path / "once"), tmp_path / "twice", storage="int4", text=NO_TEXT)
    once, twice = (tmp_path / name / "packed.safetensors" for name in ("once", "twice"))
    assert once.read_bytes() == twice.read_bytes()


def test_frequent_words_keep_int4_and_rare_ones_a_bit_an_entry(
    base: Path, data: Path, tmp_path: Path
) -> None:
    text = TextSettings((str(data),), windows=20)
    change_precision(str(base), tmp_path / "out", storage="int8", frequent_words=20, text=text)
    name = "embeddings.word.weight"
    before, after = (ModelTensors.open(folder).read(name) for folder in (base, tmp_path / "out"))
    errors = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
    ranked = np.argsort(-count_words(base, text), kind="stable")
    assert errors[ranked[:20]].max() < 0.15 < errors[ranked[20:]].min()
    words = ModelTensors.open(tmp_path / "out").stored(name)
    assert words is not None
    assert words.encoding == "mixed"


def test_dropping_the_smallest_leaves_the_share_that_was_asked_for(
    base: Path, tmp_path: Path
) -> None:
    record = drop_smallest(str(base), tmp_path / "half", keep=0.5)
    assert record["after"]["zero_share"] == pytest.approx(0.5, abs=0.01)
    name = "groups.0.up.weight"
    whole = ModelTensors.open(base).read(name)
    kept = ModelTensors.open(tmp_path / "half").read(name)
    assert np.abs(whole[kept == 0]).max() <= np.abs(whole[kept != 0]).min()
    sparse = change_precision(
        str(tmp_path / "half"), tmp_path / "sparse", storage="sparse-int8", text=NO_TEXT
    )
    dense = change_precision(str(base), tmp_path / "dense", storage="int8", text=NO_TEXT)
    assert sparse["after"]["model_bytes"] < dense["after"]["model_bytes"]
    assert sparse["after"]["zero_share"] >= record["after"]["zero_share"]


def test_narrow_embeddings_are_exact_when_nothing_is_cut_and_better_with_text(
    base: Path, data: Path, tmp_path: Path
) -> None:
    text = TextSettings((str(data),), windows=200)
    narrow_embeddings(str(base), tmp_path / "same", width=64, text=NO_TEXT)
    assert error_against(base, tmp_path / "same") < 0.02
    record = narrow_embeddings(str(base), tmp_path / "by-text", width=24, text=text)
    assert record["after"]["embedding_size"] == 24
    narrow_embeddings(str(base), tmp_path / "blind", width=24, text=NO_TEXT)
    by_text, blind = (error_against(base, tmp_path / name) for name in ("by-text", "blind"))
    assert by_text < 0.7 * blind


def test_pruning_while_training_makes_a_smaller_network(
    base: Path, data: Path, tmp_path: Path
) -> None:
    settings = settings_for(
        base,
        data,
        tmp_path / "out",
        steps=8,
        teacher=str(base),
        pruning=PruneSettings(keep_heads=0.5, keep_units=0.5, end_share=0.5),
    )
    record = train_smaller("prune", settings, max_seconds=math.inf)
    assert sum(record["after"]["heads"]) == sum(record["before"]["heads"]) // 2
    assert record["after"]["inner_units"] == [64, 64]
    assert record["settings"]["pruning"]["method"] == "movement"
    assert record["settings"]["data"] == ["train.json"]
    assert record["settings"]["teacher"] == "base"
    assert str(tmp_path) not in (tmp_path / "out" / "compression.json").read_text()
    packed = change_precision(
        str(tmp_path / "out"), tmp_path / "packed", storage="int4", text=NO_TEXT
    )
    assert packed["after"]["heads"] == record["after"]["heads"]
    assert [step["step"] for step in read_steps(tmp_path / "packed")] == ["prune", "precision"]


def test_a_run_that_was_cut_short_goes_on(base: Path, data: Path, tmp_path: Path) -> None:
    settings = settings_for(base, data, tmp_path / "out", steps=4)
    train(settings, stop_after_step=2)
    with pytest.raises(CompressionError, match="exists already"):
        train_smaller("distill", settings, max_seconds=math.inf)
    train_smaller("distill", settings, max_seconds=math.inf, resume=True)
    run = json.loads((tmp_path / "out" / "training.json").read_text())["run"]
    assert run["steps_done"] == 4
    with pytest.raises(TrainingError):
        train_smaller(
            "distill", replace(settings, out=str(tmp_path / "new")), max_seconds=0, resume=True
        )


def test_a_bottleneck_is_added_to_a_copy_and_outlives_a_precision(
    base: Path, data: Path, tmp_path: Path
) -> None:
    settings = BottleneckSettings((str(data),), layers=(1,), windows=40, steps=2)
    seen: list[tuple[int, int]] = []
    record = add_bottleneck(
        str(base), tmp_path / "out", settings, progress=lambda *done: seen.append(done)
    )
    assert seen[-1] == (2, 2)
    assert record["measured"][0]["layer"] == 1
    assert error_against(base, tmp_path / "out") == 0
    change_precision(str(tmp_path / "out"), tmp_path / "small", storage="int8", text=NO_TEXT)
    kept = [tmp_path / name / BOTTLENECK_FILE for name in ("out", "small")]
    assert kept[0].read_bytes() == kept[1].read_bytes()
    assert not (base / BOTTLENECK_FILE).exists()


def test_exits_go_along_with_a_warning_and_not_without_any(base: Path, tmp_path: Path) -> None:
    record = change_precision(str(base), tmp_path / "out", storage="float16", text=NO_TEXT)
    assert (tmp_path / "out" / "exits.json").read_bytes() == (base / "exits.json").read_bytes()
    assert "elma calibrate" in record["exits"]
    assert "elma calibrate" in (tmp_path / "out" / "README.md").read_text()
    assert has_own_exits(base)
    assert not has_own_exits(tmp_path / "out")
    settings = ExitSettings.load(tmp_path / "out")
    assert settings is not None
    replace(settings, default_edge_layers=1).save(tmp_path / "out")
    assert has_own_exits(tmp_path / "out")
    (tmp_path / "out" / "exits.json").unlink()
    record = change_precision(
        str(tmp_path / "out"), tmp_path / "next", storage="int8", text=NO_TEXT
    )
    assert record["exits"].startswith("none")
    assert not (tmp_path / "next" / "exits.json").exists()


def test_nothing_is_overwritten_and_nonsense_is_refused(
    base: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for out in (tmp_path / "full", tmp_path / "full" / "mine", base):
        with pytest.raises(CompressionError, match="exists already"):
            change_precision(str(base), out, storage="int8", text=NO_TEXT)
    for call, words in (
        (lambda out: change_precision(str(base), out, storage="int5", text=NO_TEXT), "int5"),
        (
            lambda out: change_precision(
                str(base), out, storage="int4", frequent_words=3, text=NO_TEXT
            ),
            "--text",
        ),
        (
            lambda out: change_precision(
                str(base),
                out,
                storage="int4",
                frequent_words=10**6,
                text=TextSettings((str(data),)),
            ),
            "--frequent-words",
        ),
        (lambda out: drop_smallest(str(base), out, keep=0), "--keep"),
        (lambda out: narrow_embeddings(str(base), out, width=65, text=NO_TEXT), "--width"),
    ):
        with pytest.raises(CompressionError, match=words):
            call(tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_broken_report_is_named(base: Path, tmp_path: Path) -> None:
    change_precision(str(base), tmp_path / "out", storage="int8", text=NO_TEXT)
    (tmp_path / "out" / "compression.json").write_text("{}")
    with pytest.raises(ModelFolderError, match=r"compression\.json"):
        change_precision(str(tmp_path / "out"), tmp_path / "next", storage="int8", text=NO_TEXT)


def vars_of(folder: Path) -> dict[str, object]:
    return vars(FolderFacts.of(folder))
