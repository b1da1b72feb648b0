"""Where a window stops, and that a family of thresholds runs from never to at once."""

from __future__ import annotations

import numpy as np
import pytest

from cloud_worker.training.policies import (
    equal_loss_family,
    exit_layers,
    isotonic_fit,
    shared_threshold_family,
)

INF = np.inf


def test_a_window_stops_at_the_first_layer_that_is_certain_enough() -> None:
    uncertainty = np.array([[0.9, 0.4, 0.1], [0.2, 0.9, 0.9], [0.9, 0.9, 0.9], [0.5, 0.0, 0.0]])

    layers = exit_layers(uncertainty, np.array([0.5, 0.4, INF]))

    assert layers.tolist() == [2, 1, 3, 1]  # a threshold that is met exactly stops


def test_at_the_last_layer_every_window_stops_whatever_the_threshold() -> None:
    layers = exit_layers(np.full((2, 3), 0.9), np.full(3, -INF))

    assert layers.tolist() == [3, 3]


@pytest.mark.parametrize("family", ["shared", "equal loss"])
def test_a_family_runs_from_never_stopping_to_stopping_at_once(family: str) -> None:
    random = np.random.default_rng(2)
    uncertainty, losses = random.random((200, 4)), random.normal(size=(200, 4))

    policies = (
        shared_threshold_family(uncertainty, count=20)
        if family == "shared"
        else equal_loss_family(uncertainty, losses, count=20)
    )
    layers = np.array([exit_layers(uncertainty, thresholds) for thresholds in policies])

    assert len(policies) <= 20
    assert (layers[0] == 4).all()
    assert (layers[-1] == 1).all()
    assert (np.diff(layers, axis=0) <= 0).all()  # a bolder policy never runs a window longer


def test_equal_loss_stops_where_it_is_free_and_goes_on_where_it_costs() -> None:
    # Layer 1 loses nothing below uncertainty 0.5 and everything above; layer 2 never loses.
    uncertainty = np.column_stack([np.linspace(0, 1, 101), np.linspace(0, 1, 101), np.zeros(101)])
    losses = np.column_stack([(uncertainty[:, 0] > 0.5).astype(float), np.zeros((101, 2))])

    free = [
        thresholds
        for thresholds in equal_loss_family(uncertainty, losses)
        if np.isfinite(thresholds[0]) and thresholds[0] < 1
    ]

    assert free
    assert free[0][0] == pytest.approx(0.505)  # halfway to the next window
    assert exit_layers(uncertainty, free[0]).tolist() == [1] * 51 + [2] * 50


def test_isotonic_fit_worked_by_hand() -> None:
    # x = 1 has the mean 0.5; 4 and 1 violate the order and are pooled to 2.5.
    values, fitted = isotonic_fit(
        np.array([3.0, 1.0, 2.0, 1.0, 4.0]), np.array([1.0, 0.0, 4.0, 1.0, 5.0])
    )

    assert values.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert fitted.tolist() == [0.5, 2.5, 2.5, 5.0]


def test_a_reader_of_one_layer_has_a_single_policy() -> None:
    assert len(equal_loss_family(np.zeros((5, 1)), np.zeros((5, 1)))) == 1
