"""Every engine in every precision computes the reference network, whatever the batch looks like.

The same tests run for all of them; a precision's tolerances are stated once, in `TOLERANCES`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reader.arrays import FloatArray
from reader.config import ReaderConfig
from reader.engines.choosing import load_engine
from reader.engines.engine import Engine
from reader.engines.torch_linear import activation_levels
from reader.errors import StateShapeError
from reader.network import AlbertReader
from reader.network_files import load_network, save_network
from reader.states import StateBatch
from reader.storage import PACKED
from reader.weights import shipped_model_folder


@dataclass(frozen=True)
class Tolerance:
    """Root mean square of a difference over that of the reference's rows.

    `reference`: against the float32 network, after any layer; `itself`: against the same engine
    with the work cut up in another way (batches, resumption).
    """

    reference: float
    itself: float


TOLERANCES = {
    "fp32": Tolerance(reference=1e-5, itself=1e-5),
    "bf16": Tolerance(reference=0.02, itself=0.02),
    "int8": Tolerance(reference=0.08, itself=0.02),
    "int8 of 7 bits": Tolerance(reference=0.16, itself=0.04),  # where sums of 8 bits overflow
}
VARIANTS = [
    ("torch", "fp32"),
    ("torch", "bf16"),
    ("torch", "int8"),
    ("onnx", "fp32"),
    ("onnx", "int8"),
]
PLAIN = ReaderConfig(
    vocab_size=120,
    embedding_size=32,
    hidden_size=64,
    layers=6,
    groups=3,
    heads=4,
    intermediate_size=128,
    max_positions=64,
)
CONFIGS = {
    "as built": PLAIN,
    "one group": replace(PLAIN, groups=1, hidden_act="gelu_new"),
    "a group a layer, relu": replace(PLAIN, groups=6, hidden_act="relu"),
    "pruned": replace(PLAIN, kept_heads=((0, 2, 3), (), (1,)), inner_sizes=(48, 128, 0)),
    "limited spans": replace(
        PLAIN,
        spans=(
            (64, 64, 64, 64),
            (64, 3, 64, 0),
            (2, 0, 5, 0),  # group 1: heads 1 and 3 are silent in both of its layers
            (64, 0, 1, 0),
            (0, 0, 0, 0),
            (0, 0, 0, 0),
        ),
    ),
    "pruned and limited": replace(
        PLAIN,
        kept_heads=((1, 2), (0, 1, 2, 3), (3,)),
        inner_sizes=(0, 16, 128),
        spans=((4, 0), (0, 64), (64, 1, 2, 3), (9, 9, 9, 9), (64,), (2,)),
    ),
}
LENGTHS, QUESTIONS = (23, 64, 9, 40), (5, 12, 3, 2)


@dataclass(frozen=True)
class Subject:
    """One engine with the network that it must equal."""

    engine: Engine
    network: AlbertReader
    tolerance: Tolerance

    @property
    def config(self) -> ReaderConfig:
        return self.network.config

    def embed(self) -> StateBatch:
        """Four windows of unequal length."""
        return self.engine.embed(_token_ids(self.config), QUESTIONS)

    @torch.no_grad()
    def reference(self, layer: int) -> list[FloatArray]:
        """Each of these windows after `layer`, from the reference network, on its own."""
        states = []
        for ids, heads in zip(_token_ids(self.config), QUESTIONS, strict=True):
            types = (torch.arange(len(ids)) >= heads).long()
            hidden = self.network.embed(torch.tensor([ids]), types[None])
            hidden = self.network.run(hidden, None, 0, layer, torch.tensor([heads]))
            states.append(hidden[0].numpy())
        return states


@pytest.fixture(scope="module", params=list(CONFIGS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random packed model folder of every kind that compression makes."""
    torch.manual_seed(3)
    network = AlbertReader(CONFIGS[request.param])
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "exits" in name or name.endswith("bias"):
                value.normal_(0, 0.5)
    path = tmp_path_factory.mktemp("model")
    save_network(network, path, tokenizer_from=path, storage=PACKED)
    return path


@pytest.fixture(scope="module", params=VARIANTS, ids=[" ".join(each) for each in VARIANTS])
def subject(request: pytest.FixtureRequest, folder: Path) -> Subject:
    return _subject(folder, *request.param)


def test_it_equals_the_reference_network_after_every_layer(subject: Subject) -> None:
    batch = subject.embed()
    for layer in range(subject.config.layers + 1):
        if layer:
            batch = subject.engine.run(batch, layer - 1, layer)
        for state, expected in zip(
            subject.engine.states(batch), subject.reference(layer), strict=True
        ):
            assert state.dtype == np.float32
            assert _distance(state, expected) < subject.tolerance.reference, layer


def test_exits_equal_those_of_the_reference_network(subject: Subject) -> None:
    batch, config = subject.engine.run(subject.embed(), 0, 4), subject.config
    for layer in range(1, config.layers + 1):  # any head can look at any state
        scores = subject.engine.exit_scores(batch, layer)
        rows = torch.from_numpy(np.concatenate(subject.engine.states(batch)))
        first = list(batch.boundaries[:-1])
        with torch.no_grad():
            logits = subject.network.exit_logits(layer, rows[None])[0].numpy()
            certainty = subject.network.exit_head(layer).certainty(rows[first])[:, 0].numpy()
        np.testing.assert_allclose(scores.logits, logits, atol=1e-4)
        np.testing.assert_allclose(scores.certainty, certainty, atol=1e-4)


def test_a_window_in_a_batch_equals_the_window_alone(subject: Subject) -> None:
    engine, config = subject.engine, subject.config
    together = engine.states(engine.run(subject.embed(), 0, config.layers))
    for window, ids in enumerate(_token_ids(config)):
        alone = engine.run(engine.embed([ids], [QUESTIONS[window]]), 0, config.layers)
        assert _distance(engine.states(alone)[0], together[window]) < subject.tolerance.itself


def test_what_shares_the_batch_may_even_be_broken(subject: Subject) -> None:
    engine, config = subject.engine, subject.config
    states = engine.states(engine.run(subject.embed(), 0, 2))
    whole = engine.states(engine.run(engine.pack(states, QUESTIONS), 2, config.layers))
    states[1] = np.full_like(states[1], np.nan)
    mixed = engine.states(engine.run(engine.pack(states, QUESTIONS), 2, config.layers))
    for window in (0, 2, 3):
        assert _distance(mixed[window], whole[window]) < subject.tolerance.itself


def test_resuming_at_every_layer_equals_running_through(subject: Subject) -> None:
    engine, config = subject.engine, subject.config
    whole = engine.states(engine.run(subject.embed(), 0, config.layers))
    batch = subject.embed()
    for layer in range(config.layers + 1):
        batch = engine.run(batch, max(layer - 1, 0), layer)
        resumed = engine.run(engine.pack(engine.states(batch), QUESTIONS), layer, config.layers)
        for state, expected in zip(engine.states(resumed), whole, strict=True):
            assert _distance(state, expected) < subject.tolerance.itself, layer


def test_windows_at_several_layers_of_a_group_run_in_one_batch(subject: Subject) -> None:
    engine, config = subject.engine, subject.config
    for group in range(config.groups):
        layers = [each for each in range(1, 7) if config.group_of(each) == group]
        wanted = [layers[window % len(layers)] for window in range(len(LENGTHS))]
        batch = engine.run(subject.embed(), 0, layers[0] - 1)
        mixed = engine.states(engine.run_mixed(batch, wanted))
        for window, layer in enumerate(wanted):
            alone = engine.run(engine.select(batch, [window]), layer - 1, layer)
            assert _distance(engine.states(alone)[0], mixed[window]) < subject.tolerance.itself


def test_layers_of_several_groups_do_not_run_in_one_batch(subject: Subject) -> None:
    if subject.config.groups == 1:
        return
    with pytest.raises(ValueError, match="do not share one parameter group"):
        subject.engine.run_mixed(subject.embed(), [1, 6, 1, 1])


def test_selecting_and_joining_keep_every_window_whole(subject: Subject) -> None:
    engine = subject.engine
    batch = subject.embed()
    states = engine.states(batch)
    joined = engine.join([engine.select(batch, [2, 0]), engine.select(batch, [3])])
    assert joined.lengths == (LENGTHS[2], LENGTHS[0], LENGTHS[3])
    assert joined.question_tokens == (QUESTIONS[2], QUESTIONS[0], QUESTIONS[3])
    for state, window in zip(engine.states(joined), (2, 0, 3), strict=True):
        np.testing.assert_array_equal(state, states[window])


def test_states_are_copies_that_later_work_leaves_alone(subject: Subject) -> None:
    engine = subject.engine
    batch = subject.embed()
    states = engine.states(batch)
    before = [state.copy() for state in states]
    engine.run(batch, 0, 3)
    for state in states:
        state += 1  # must not reach the batch
    again = engine.states(batch)
    for state, expected in zip(again, before, strict=True):
        np.testing.assert_array_equal(state, expected)


def test_running_no_layer_changes_nothing(subject: Subject) -> None:
    batch = subject.embed()
    same = subject.engine.run(batch, 3, 3)
    for state, expected in zip(
        subject.engine.states(same), subject.engine.states(batch), strict=True
    ):
        np.testing.assert_array_equal(state, expected)


def test_layers_that_the_reader_lacks_are_refused(subject: Subject) -> None:
    for first, last in ((0, 7), (-1, 2), (4, 3)):
        with pytest.raises(ValueError, match=r"this reader has layers 0\.\.6"):
            subject.engine.run(subject.embed(), first, last)


def test_states_that_fit_no_batch_are_refused(subject: Subject) -> None:
    state = np.zeros((5, 64), dtype=np.float32)
    for states, heads in (([], []), ([state], [2, 3]), ([state], [5]), ([state, state.T], [2, 2])):
        with pytest.raises(StateShapeError):
            subject.engine.pack(states, heads)


@pytest.mark.parametrize(
    ("engine", "precision"), VARIANTS, ids=[" ".join(each) for each in VARIANTS]
)
def test_the_shipped_model_computes_the_same_everywhere(engine: str, precision: str) -> None:
    subject = _subject(shipped_model_folder(), engine, precision)
    generator = np.random.default_rng(5)
    ids = [generator.integers(1000, 30_000, 150).tolist()]
    batch = subject.engine.run(subject.engine.embed(ids, [12]), 0, subject.config.layers)
    with torch.no_grad():
        types = (torch.arange(150) >= 12).long()
        hidden = subject.network.embed(torch.tensor(ids), types[None])
        hidden = subject.network.run(hidden, None, 0, subject.config.layers, torch.tensor([12]))
    assert _distance(subject.engine.states(batch)[0], hidden[0].numpy()) < (
        subject.tolerance.reference
    )


def _subject(folder: Path, engine: str, precision: str) -> Subject:
    if engine == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed (pip install 'elma-qa[onnx]')")
    loaded = load_engine(folder, engine=engine, precision=precision, threads=1)
    narrow = engine == "torch" and precision == "int8" and activation_levels() < 127
    tolerance = TOLERANCES["int8 of 7 bits" if narrow else precision]
    return Subject(loaded, load_network(folder), tolerance)


def _token_ids(config: ReaderConfig) -> list[list[int]]:
    generator = np.random.default_rng(1)
    return [generator.integers(0, config.vocab_size, length).tolist() for length in LENGTHS]


def _distance(found: FloatArray, expected: FloatArray | Sequence[float]) -> float:
    expected = np.asarray(expected)
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))
