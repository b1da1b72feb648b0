"""A teacher reaches every exit and every state; its own shape may differ where that makes sense."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cloud_worker.training.batches import Batch, collate
from cloud_worker.training.distillation import ask_teacher, divergence, state_distance
from cloud_worker.training.features import TrainingWindow
from cloud_worker.training.objective import Objective, span_cross_entropy
from cloud_worker.training.settings import (
    DistillationSettings,
    ObjectiveSettings,
    TrainingError,
    TrainSettings,
)
from reader.config import ReaderConfig
from reader.network import AlbertReader

CONFIG = ReaderConfig(
    vocab_size=50,
    embedding_size=16,
    hidden_size=16,
    layers=3,
    groups=3,
    heads=2,
    intermediate_size=32,
    max_positions=64,
)
ALL_FROM_THE_TEACHER = ObjectiveSettings(distillation_rate=1.0, distillation_temperature=2.0)


def random_network(seed: int, config: ReaderConfig = CONFIG) -> AlbertReader:
    torch.manual_seed(seed)
    network = AlbertReader(config)
    with torch.no_grad():
        for value in network.parameters():
            if value.dim() > 1:
                value.normal_(0, 0.3)
    return network


@pytest.fixture
def batch() -> Batch:
    windows = [
        TrainingWindow(tuple(range(5, 5 + length)), 4, start, start + 1)
        for length, start in ((20, 6), (13, 8))
    ]
    return collate(windows, pad_token_id=0)


def exit_gradients(objective: Objective, batch: Batch) -> list[float]:
    loss, _ = objective(batch)
    loss.backward()
    return [
        float(objective.network.exit_head(layer).span.weight.grad.abs().sum())
        for layer in range(1, objective.network.config.layers + 1)
    ]


@pytest.mark.parametrize("same_exit_share", [0.0, 0.5, 1.0])
def test_the_teacher_alone_moves_every_exit(batch: Batch, same_exit_share: float) -> None:
    objective = Objective(
        random_network(1),
        ALL_FROM_THE_TEACHER,
        random_network(2),
        distillation=DistillationSettings(same_exit_share=same_exit_share),
    )
    assert min(exit_gradients(objective, batch)) > 1e-4
    teacher = objective._teacher[0]
    assert all(value.grad is None for value in teacher.parameters())


def test_without_a_teacher_the_last_exit_teaches_the_others_and_learns_from_labels(
    batch: Batch,
) -> None:
    *others, last = exit_gradients(Objective(random_network(1), ALL_FROM_THE_TEACHER), batch)
    assert min(others) > 1e-4
    other_answers = replace(batch, starts=batch.starts + 1, ends=batch.ends + 1)
    *same, other_last = exit_gradients(
        Objective(random_network(1), ALL_FROM_THE_TEACHER), other_answers
    )
    assert same == pytest.approx(others)  # the labels reach them through the last exit only
    assert last != pytest.approx(other_last)


def test_a_learner_that_is_its_teacher_has_nothing_to_learn(batch: Batch) -> None:
    same = random_network(1)
    teaching = ask_teacher(same, batch)
    assert float(divergence(teaching.logits[0], teaching.logits[0], 2.0)) == pytest.approx(0)
    distance = state_distance(list(teaching.states), teaching, [1, 2, 3], batch.valid)
    assert float(distance) == 0.0
    other = ask_teacher(random_network(2), batch)
    assert float(divergence(other.logits[0], teaching.logits[0], 2.0)) > 0
    assert float(state_distance(list(other.states), teaching, [1, 2, 3], batch.valid)) > 0


def test_the_divergence_is_hintons() -> None:
    learner, teacher = torch.randn(2, 7, 2), torch.randn(2, 7, 2)
    soft = (teacher / 3).softmax(1)
    expected = 9 * (soft * (soft.log() - (learner / 3).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(divergence(learner, teacher, 3.0), expected)


def test_states_are_compared_where_asked_and_never_on_padding(batch: Batch) -> None:
    teaching = ask_teacher(random_network(2), batch)
    learner = [state.clone() for state in ask_teacher(random_network(1), batch).states]
    first = state_distance(learner, teaching, [1], batch.valid)
    learner[2] += 5.0
    learner[0][~batch.valid] += 100.0
    assert torch.equal(state_distance(learner, teaching, [1], batch.valid), first)
    assert float(state_distance(learner, teaching, [3], batch.valid)) > float(first)


def test_hidden_states_reach_only_the_layers_below(batch: Batch) -> None:
    network = random_network(1)
    objective = Objective(
        network,
        replace(ALL_FROM_THE_TEACHER, distillation_rate=0.0),
        random_network(2),
        distillation=DistillationSettings(hidden_weight=1e6, hidden_layers=(2,)),
    )
    objective(batch)[0].backward()
    strong = [float(network.group(group).up.weight.grad.abs().mean()) for group in range(3)]
    assert min(strong[:2]) > 100 * strong[2]


def test_a_deeper_teacher_is_asked_at_the_same_share_of_its_depth(batch: Batch) -> None:
    deep = ask_teacher(random_network(2, replace(CONFIG, layers=6, groups=6)), batch)
    learner = [deep.states[1], deep.states[3], deep.states[5]]
    assert float(state_distance(learner, deep, [1, 2, 3], batch.valid)) == 0.0


@pytest.mark.parametrize(
    ("teacher", "settings", "message"),
    [
        (replace(CONFIG, layers=6), DistillationSettings(same_exit_share=0.5), "same layer"),
        (
            replace(CONFIG, hidden_size=32),
            DistillationSettings(hidden_weight=1.0),
            "32 wide",
        ),
        (CONFIG, DistillationSettings(hidden_weight=1.0, hidden_layers=(4,)), "1..3"),
    ],
)
def test_a_teacher_of_the_wrong_shape_is_refused(
    teacher: ReaderConfig, settings: DistillationSettings, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        Objective(
            random_network(1), ALL_FROM_THE_TEACHER, AlbertReader(teacher), distillation=settings
        )


def test_distillation_without_a_teacher_is_refused() -> None:
    with pytest.raises(TrainingError, match="teacher"):
        TrainSettings(
            base="base",
            out="out",
            data=("data",),
            distillation=DistillationSettings(hidden_weight=1.0),
        )


def test_each_exits_plain_loss_is_its_cross_entropy(batch: Batch) -> None:
    network = random_network(1)
    _, plain = Objective(network, ALL_FROM_THE_TEACHER)(batch)
    logits = ask_teacher(network, batch).logits
    expected = torch.stack([span_cross_entropy(each, batch) for each in logits])
    torch.testing.assert_close(plain, expected, atol=1e-5, rtol=1e-5)
