"""Rounding with error compensation loses less of the product than rounding to the nearest."""

from __future__ import annotations

import numpy as np
import torch

from cloud_worker.compress.activations import InputStatistics, input_statistics
from cloud_worker.compress.rounding import round_to_int4
from cloud_worker.training.features import TrainingWindow
from reader.config import ReaderConfig
from reader.network import AlbertReader
from reader.storage import encode_tensor


def test_the_product_with_correlated_inputs_loses_less() -> None:
    chance = np.random.default_rng(0)
    matrix = chance.standard_normal((24, 64)).astype(np.float32)
    inputs = chance.standard_normal((500, 12)) @ chance.standard_normal((12, 64)) + 3
    inputs += 0.1 * chance.standard_normal(inputs.shape)
    statistics = InputStatistics(inputs.mean(0), np.cov(inputs.T, bias=True))
    stored, correction = round_to_int4(matrix, statistics)

    def outputs_off(other: np.ndarray, bias: np.ndarray | float) -> np.ndarray:
        off: np.ndarray = inputs @ (other - matrix).T + bias
        return off

    rounded = outputs_off(stored.decode(), correction)
    nearest = outputs_off(encode_tensor(matrix, "int4").decode(), 0.0)
    assert np.square(rounded).sum() < 0.2 * np.square(nearest).sum()
    np.testing.assert_allclose(rounded.mean(0), 0, atol=1e-4)


def test_inputs_that_never_vary_are_no_obstacle() -> None:
    matrix = np.random.default_rng(1).standard_normal((8, 32)).astype(np.float32)
    stored, correction = round_to_int4(matrix, InputStatistics(np.zeros(32), np.zeros((32, 32))))
    np.testing.assert_allclose(stored.decode(), encode_tensor(matrix, "int4").decode(), atol=1e-6)
    assert not correction.any()


def test_statistics_are_those_of_valid_tokens_over_all_layers_of_a_group() -> None:
    torch.manual_seed(2)
    config = ReaderConfig(
        vocab_size=40,
        embedding_size=16,
        hidden_size=16,
        layers=2,
        groups=1,
        heads=2,
        intermediate_size=32,
        max_positions=32,
    )
    network = AlbertReader(config).eval()
    windows = [TrainingWindow(tuple(range(3, 3 + size)), 3, 0, 0) for size in (5, 12, 20)]
    seen: list[torch.Tensor] = []
    network.group(0).query_key_value.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0])
    )
    found = input_statistics(network, windows)
    batched = found["groups.0.query_key_value.weight"]
    seen.clear()
    for window in windows:
        types = (torch.arange(len(window)) >= 3).long().unsqueeze(0)
        with torch.no_grad():
            network.run(network.embed(torch.tensor([window.token_ids]), types), None, 0, 2)
    rows = torch.cat([each.flatten(0, 1) for each in seen]).double()
    assert len(rows) == 2 * (5 + 12 + 20)
    np.testing.assert_allclose(batched.mean, rows.mean(0).numpy(), atol=1e-5)
    np.testing.assert_allclose(batched.covariance, np.cov(rows.numpy().T, bias=True), atol=1e-4)
    assert set(found) == {
        f"groups.0.{name}.weight" for name in ("query_key_value", "attention_output", "up", "down")
    }
