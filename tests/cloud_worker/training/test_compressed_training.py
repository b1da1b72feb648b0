"""Whole runs that prune, learn spans and distil: they resume exactly and save what was asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AlbertForQuestionAnswering

from cloud_worker.training.batches import collate, plan_epoch
from cloud_worker.training.compressing import Compression
from cloud_worker.training.cutting import Cut, cut_config
from cloud_worker.training.data import load_training_windows
from cloud_worker.training.objective import Objective
from cloud_worker.training.settings import (
    DistillationSettings,
    PruneSettings,
    SpanSettings,
    TrainingError,
    TrainSettings,
)
from cloud_worker.training.trainer import train
from reader.network_files import load_network
from tests.cloud_worker.training.small_runs import column, settings_for, write_questions
from tests.tiny import make_tiny_model

STEPS = 12
STRUCTURED = PruneSettings(
    begin_share=0.25,  # step 3
    end_share=0.5,  # step 6: the cut
    keep_heads=0.5,
    keep_units=0.5,
    start_from_fisher=True,
    score_learning_rate=0.05,
)
SINGLE = PruneSettings(
    structure="weights", begin_share=0.25, end_share=0.5, keep=0.4, score_learning_rate=0.05
)
# Six steps are enough to limit every head.
SPANS = SpanSettings(
    penalty=5.0, ramp_tokens=4, learning_rate=0.1, begin_share=0.25, freeze_share=0.75
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("data") / "train.json")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base"), layers=3, groups=2)


def compressing_run(base: Path, data: Path, out: Path, **changes: object) -> TrainSettings:
    return settings_for(
        base,
        data,
        out,
        **{
            "steps": STEPS,
            "max_tokens": 40,
            "negatives": 0.0,
            "freeze_embeddings": True,
            **changes,
        },
    )


@pytest.mark.parametrize("stop", [2, 4, 6, 8, 10])
@pytest.mark.parametrize("pruning", [STRUCTURED, SINGLE], ids=["structured", "single"])
def test_a_run_resumed_anywhere_in_the_schedule_ends_the_same(
    base: Path, data: Path, tmp_path: Path, stop: int, pruning: PruneSettings
) -> None:
    changes = {"pruning": pruning, "spans": SPANS}
    whole = train(compressing_run(base, data, tmp_path / "whole", **changes))
    broken = compressing_run(base, data, tmp_path / "broken", **changes)
    train(broken, stop_after_step=stop)
    train(broken, resume=True)
    left, right = (load_network(folder) for folder in (whole, tmp_path / "broken"))
    assert left.config == right.config
    for name, value in left.state_dict().items():
        torch.testing.assert_close(right.state_dict()[name], value, atol=1e-6, rtol=1e-5, msg=name)
    for name in ("loss", "sparsity", "mean_span_tokens"):
        assert column(whole, name) == pytest.approx(column(tmp_path / "broken", name), abs=1e-4)


def test_heads_and_units_end_as_wanted_and_everyone_can_load_them(
    base: Path, data: Path, tmp_path: Path
) -> None:
    folder = train(compressing_run(base, data, tmp_path, pruning=STRUCTURED))
    config = load_network(folder).config
    assert sum(len(heads) for heads in config.kept_heads) == 4  # of 2 groups of 4
    assert config.inner_sizes == (32, 32)
    sparsity = column(folder, "sparsity")
    assert sparsity[:3] == [0.0] * 3
    assert sparsity[-1] == pytest.approx(0.5)
    assert sparsity == sorted(sparsity)
    AlbertForQuestionAnswering.from_pretrained(folder)


def test_single_weights_end_at_the_wanted_density(base: Path, data: Path, tmp_path: Path) -> None:
    folder = train(compressing_run(base, data, tmp_path, pruning=SINGLE))
    for name, value in load_file(folder / "model.safetensors").items():
        if "albert_layer_groups" in name and value.dim() == 2 and ".attention." not in name:
            assert int((value != 0).sum()) == round(0.4 * value.numel()), name
    assert column(folder, "sparsity")[-1] == pytest.approx(0.6, abs=1e-3)


def test_single_zeros_outlive_further_training(base: Path, data: Path, tmp_path: Path) -> None:
    sparse = train(compressing_run(base, data, tmp_path / "sparse", pruning=SINGLE, spans=SPANS))
    again = train(compressing_run(sparse, data, tmp_path / "again", steps=4))
    left, right = (load_network(folder).state_dict() for folder in (sparse, again))
    for name, value in left.items():
        if name.startswith("groups.") and value.dim() == 2:
            assert torch.equal(value == 0, right[name] == 0), name
    assert not torch.equal(left["groups.0.up.weight"], right["groups.0.up.weight"])
    assert column(again, "sparsity")[-1] > 0.55


def test_spans_fall_are_stored_and_hold_from_then_on(
    base: Path, data: Path, tmp_path: Path
) -> None:
    folder = train(compressing_run(base, data, tmp_path, spans=SPANS))
    config = load_network(folder).config
    assert all(0 < span < 40 for row in config.spans for span in row)
    spans = column(folder, "mean_span_tokens")
    assert spans[:3] == [40.0] * 3
    assert spans == sorted(spans, reverse=True) or spans[9] >= spans[8]  # rounded up when frozen
    assert spans[-1] == spans[9] == sum(map(sum, config.spans)) / 12 < 25


def test_heads_that_see_nothing_are_cut_when_spans_freeze(base: Path, data: Path) -> None:
    network = load_network(base)
    settings = compressing_run(base, data, base, spans=SPANS)
    compression = Compression(network, settings, STEPS)
    assert compression.spans is not None
    with torch.no_grad():
        for share in compression.spans.shares:
            share.copy_(torch.tensor([0.2, -0.1, 1.0, 0.5]))
        compression.spans.shares[0][3] = -0.1  # group 0 has layers 1 and 2
        compression.spans.shares[2][2] = -0.1  # group 1 has layer 3
    config, cut = compression.finish_spans(network.config)
    assert cut.heads == ((0, 2, 3), (0, 3))
    assert cut_config(config, cut).spans == ((10, 512, 0), (10, 512, 22), (10, 22))


def test_spans_that_nothing_limits_are_not_stored(base: Path, data: Path) -> None:
    network = load_network(base)
    compression = Compression(network, compressing_run(base, data, base, spans=SPANS), STEPS)
    config, cut = compression.finish_spans(network.config)
    assert config == network.config
    assert cut == Cut.nothing(config)


def test_after_the_freeze_training_sees_what_the_reader_will(
    base: Path, data: Path, tmp_path: Path
) -> None:
    """The last step's losses, computed from the saved folder, are those that the run itself had
    (with a learning rate of 0, so that only masks and spans change)."""
    settings = compressing_run(
        base,
        data,
        tmp_path,
        pruning=STRUCTURED,
        spans=SPANS,
        average_decay=0.0,
        dropout=0.0,
        learning_rate=0.0,
    )
    folder = train(settings)
    losses = [column(folder, f"loss_exit_{layer}") for layer in (1, 2, 3)]
    network = load_network(folder)
    assert network.config.spans
    assert network.config.inner_sizes == (32, 32)
    windows = load_training_windows(settings, base)
    last = [
        batch
        for epoch in range(3)
        for batch in plan_epoch(
            windows, epoch=epoch, seed=1, batch_windows=16, batch_tokens=2048
        ).batches
    ][STEPS - 1]
    _, plain = Objective(network, settings.objective)(
        collate([windows[index] for index in last], pad_token_id=0)
    )
    assert plain.tolist() == pytest.approx([values[-1] for values in losses], abs=1e-4)


def test_out_of_time_in_the_middle_it_saves_what_is_masked_by_then(
    base: Path, data: Path, tmp_path: Path
) -> None:
    settings = compressing_run(base, data, tmp_path, pruning=STRUCTURED, spans=SPANS)
    train(settings, stop_after_step=5)
    folder = train(settings, resume=True, max_seconds=0)
    early = load_network(folder).config
    assert 32 < early.inner_sizes[0] < 64
    train(settings, resume=True)
    assert load_network(folder).config.inner_sizes == (32, 32)


def test_a_compressed_model_can_be_trained_on_and_keeps_its_shape(
    base: Path, data: Path, tmp_path: Path
) -> None:
    small = train(compressing_run(base, data, tmp_path / "small", pruning=STRUCTURED, spans=SPANS))
    again = train(compressing_run(small, data, tmp_path / "again", steps=3, teacher=str(base)))
    assert load_network(again).config == load_network(small).config
    shorter = train(compressing_run(small, data, tmp_path / "shorter", spans=SPANS))
    assert sum(map(sum, load_network(shorter).config.spans)) < sum(
        map(sum, load_network(small).config.spans)
    )


@pytest.mark.parametrize("method", ["magnitude", "movement", "soft_movement"])
@pytest.mark.parametrize("structure", ["weights", "heads_and_units"])
def test_what_is_left_still_learns(
    base: Path, data: Path, tmp_path: Path, method: str, structure: str
) -> None:
    pruning = PruneSettings(
        method=method,
        structure=structure,
        begin_share=0.1,
        end_share=0.4,
        keep_heads=0.5,
        score_learning_rate=0.05 if method == "movement" else 0.2,
        soft_penalty=5.0,
    )
    folder = train(compressing_run(base, data, tmp_path, steps=90, dropout=0.0, pruning=pruning))
    losses = column(folder, "loss")
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])
    assert column(folder, "sparsity")[-1] > 0.2


def test_a_teacher_of_the_same_base_keeps_a_pruned_reader_closer_to_it(
    base: Path, data: Path, tmp_path: Path
) -> None:
    def distance(name: str, weight: float) -> float:
        folder = train(
            compressing_run(
                base,
                data,
                tmp_path / name,
                pruning=STRUCTURED,
                teacher=str(base),
                distillation=DistillationSettings(same_exit_share=0.5, hidden_weight=weight),
                steps=30,
            )
        )
        token_ids = torch.arange(40).view(2, 20) + 10
        with torch.no_grad():
            left, right = (
                network.run(network.embed(token_ids, token_ids * 0), None, 0, 3)
                for network in (load_network(folder), load_network(base))
            )
        return float((left - right).square().mean())

    assert distance("near", 20.0) < 0.8 * distance("far", 0.0)


def test_spans_cannot_freeze_before_pruning_ends(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="freeze_share"):
        compressing_run(
            base,
            data,
            tmp_path,
            pruning=PruneSettings(end_share=0.8),
            spans=SpanSettings(freeze_share=0.5),
        )
