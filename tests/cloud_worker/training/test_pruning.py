"""Masks: the wanted density to the entry, by magnitude and by movement, and cut out for real."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cloud_worker.training.cutting import Cut, cut_config, cut_network
from cloud_worker.training.pruning import KeptZeros, Pruner, top_mask
from cloud_worker.training.schedules import cubic_density
from cloud_worker.training.settings import PruneSettings, TrainingError
from reader.config import ReaderConfig
from reader.network import AlbertReader

CONFIG = ReaderConfig(
    vocab_size=50,
    embedding_size=32,
    hidden_size=32,
    layers=3,
    groups=2,
    heads=4,
    intermediate_size=128,
    max_positions=64,
)
STEPS, BEGIN, END = 20, 4, 12
TOKENS = torch.arange(24).view(2, 12) + 5


def random_network(config: ReaderConfig = CONFIG, seed: int = 1) -> AlbertReader:
    torch.manual_seed(seed)
    network = AlbertReader(config)
    with torch.no_grad():
        for value in network.parameters():
            value.normal_(0, 0.2)
    return network


def prune_settings(**changes: object) -> PruneSettings:
    plain = PruneSettings(
        begin_share=BEGIN / STEPS,
        end_share=END / STEPS,
        keep=0.3,
        keep_heads=0.5,
        keep_units=0.5,
        score_learning_rate=0.05,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # test helper


def last_state(network: AlbertReader) -> Tensor:
    return network.run(network.embed(TOKENS, torch.zeros_like(TOKENS)), None, 0, CONFIG.layers)


def take_steps(network: AlbertReader, pruner: Pruner, steps: int, rate: float = 1e-3) -> None:
    """Train towards fixed states, as a run does it."""
    torch.manual_seed(7)
    wanted = torch.randn(2, 12, CONFIG.hidden_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    for step in range(steps):
        pruner.mask(step)
        loss = (last_state(network) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        pruner.unmask(step)
        optimizer.step()


def test_the_density_falls_by_the_cubic_between_begin_and_end() -> None:
    densities = [cubic_density(step, begin=4, end=12, final=0.3) for step in range(20)]
    assert densities[:5] == [1.0] * 5
    assert densities[8] == pytest.approx(0.3 + 0.7 * 0.5**3)  # equation 1, half way
    assert densities[12:] == [0.3] * 8
    assert densities == sorted(densities, reverse=True)
    assert cubic_density(3, begin=3, end=3, final=0.5) == 0.5


@pytest.mark.parametrize("count", [0, 1, 3, 7, 8])
def test_exactly_so_many_are_kept_even_of_equals(count: int) -> None:
    assert int(top_mask(torch.zeros(8), count).sum()) == count
    worth = torch.tensor([3.0, 1.0, 2.0, 2.0, 2.0, 0.0, 5.0, 2.0])
    mask = top_mask(worth, count)
    assert int(mask.sum()) == count
    if 0 < count < 8:
        assert worth[mask].min() >= worth[~mask].max()


@pytest.mark.parametrize("method", ["magnitude", "movement"])
def test_single_weights_end_at_the_wanted_density(method: str) -> None:
    network = random_network()
    pruner = Pruner(network, prune_settings(method=method, structure="weights"), STEPS)
    take_steps(network, pruner, END)
    pruner.finish(END)
    assert pruner.cut() is None
    pruner.zero(dict(network.named_parameters()))
    for group in (0, 1):
        for name in ("query_key_value", "attention_output", "up", "down"):
            weight = getattr(network.group(group), name).weight
            assert int((weight != 0).sum()) == round(0.3 * weight.numel())
    assert pruner.sparsity() == pytest.approx(0.7, abs=1e-3)


def test_zeros_stay_zero_while_the_rest_learns() -> None:
    network = random_network()
    weight = network.group(0).up.weight
    with torch.no_grad():
        weight[::2] = 0
    zeros = KeptZeros(network)
    assert zeros.sparsity() == pytest.approx(128 * 32 / 2 / (2 * 12 * 1024))
    before = weight.detach().clone()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (last_state(network) - 1.0).square().mean().backward()
        zeros.mask_gradients()
        optimizer.step()
    assert torch.equal(weight == 0, before == 0)
    assert not torch.equal(weight, before)


def test_magnitude_keeps_the_largest_and_movement_another_choice() -> None:
    kept = {}
    for method in ("magnitude", "movement"):
        network = random_network()
        pruner = Pruner(network, prune_settings(method=method, structure="weights"), STEPS)
        weight = network.group(0).up.weight
        take_steps(network, pruner, END, rate=0.0)  # the weights stay where they are
        pruner.finish(END)
        pruner.zero(dict(network.named_parameters()))
        kept[method] = weight.detach() != 0
    largest = top_mask(
        random_network().group(0).up.weight.abs().flatten(), int(kept["magnitude"].sum())
    )
    assert torch.equal(kept["magnitude"].flatten(), largest)
    assert not torch.equal(kept["movement"], kept["magnitude"])


def test_movement_scores_rise_where_training_moves_weights_away_from_zero() -> None:
    network = random_network()
    pruner = Pruner(network, prune_settings(method="movement", structure="weights"), STEPS)
    pruner.mask(0)
    (last_state(network) ** 2).mean().backward()
    weight = network.group(0).down.weight
    toward_larger = weight.grad * weight < 0  # a gradient step would make |w| grow
    pruner.unmask(0)
    scores = pruner.state()["3.score"]  # the fourth matrix of group 0
    assert scores.shape == weight.shape
    assert torch.equal(scores > 0, toward_larger.detach())


def test_soft_movement_keeps_what_passes_the_threshold() -> None:
    network = random_network()
    settings = prune_settings(
        method="soft_movement",
        structure="weights",
        soft_penalty=1.0,
        soft_threshold=0.4,
        score_learning_rate=0.1,
    )
    pruner = Pruner(network, settings, STEPS)
    take_steps(network, pruner, STEPS)
    state = pruner.state()
    pruner.finish(STEPS)
    pruner.zero(dict(network.named_parameters()))
    left = network.group(0).query_key_value.weight != 0
    assert torch.equal(left, state["0.score"].sigmoid() > 0.4)
    assert 0 < int(left.sum()) < left.numel()


@pytest.mark.parametrize("method", ["magnitude", "movement"])
@pytest.mark.parametrize("globally", [False, True])
def test_heads_and_units_are_cut_to_the_wanted_numbers(method: str, globally: bool) -> None:
    network = random_network()
    settings = prune_settings(
        method=method, heads_compete_globally=globally, keep_units=0.4, start_from_fisher=True
    )
    pruner = Pruner(network, settings, STEPS)
    take_steps(network, pruner, END)
    pruner.finish(END)
    cut = pruner.cut()
    assert cut is not None
    heads = [len(group) for group in cut.heads]
    assert sum(heads) == 4
    assert globally or heads == [2, 2]
    assert [len(units) for units in cut.units] == [64, 64]  # 51 of 128, up to a multiple of 32


def test_soft_movement_of_units_leaves_a_multiple() -> None:
    network = random_network()
    settings = prune_settings(method="soft_movement", soft_penalty=50.0, score_learning_rate=0.3)
    pruner = Pruner(network, settings, STEPS)
    take_steps(network, pruner, STEPS)
    pruner.finish(STEPS)
    cut = pruner.cut()
    assert cut is not None
    assert all(len(units) % 32 == 0 for units in cut.units)


def test_the_cut_network_computes_what_the_masked_one_did() -> None:
    network = random_network().eval()
    pruner = Pruner(network, prune_settings(), STEPS)
    take_steps(network, pruner, END)
    pruner.finish(END)
    cut = pruner.cut()
    assert cut is not None
    with torch.no_grad():
        whole = last_state(network)
        small = last_state(cut_network(network, cut))
        pruner.zero(dict(network.named_parameters()))
        masked = last_state(network)
    torch.testing.assert_close(small, masked, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(masked, whole, atol=1e-3)


def test_a_second_cut_keeps_original_numbers_and_spans() -> None:
    config = replace(CONFIG, spans=((9, 8, 7, 6), (5, 4, 3, 2), (64, 64, 64, 1)))
    units = tuple(range(128))
    once = cut_config(config, Cut(heads=((1, 2, 3), (0, 3)), units=(units, units[:64])))
    twice = cut_config(once, Cut(heads=((0, 2), ()), units=(units, units[:32])))
    assert once.kept_heads == ((1, 2, 3), (0, 3))
    assert twice.kept_heads == ((1, 3), ())
    assert twice.spans == ((8, 6), (4, 2), ())
    assert twice.inner_sizes == (128, 32)


def test_training_goes_on_where_nothing_is_left_of_a_group() -> None:
    network = random_network()
    nothing = Cut(heads=((), (0,)), units=((), tuple(range(32))))
    small = cut_network(network, nothing)
    pruner = Pruner(small, prune_settings(method="magnitude"), STEPS)
    take_steps(small, pruner, 2)
    assert torch.isfinite(last_state(small)).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "luck"},
        {"structure": "layers"},
        {"keep": 1.5},
        {"keep_heads": -0.1},
        {"begin_share": 0.6, "end_share": 0.5},
        {"unit_multiple": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(TrainingError):
        prune_settings(**changes)
