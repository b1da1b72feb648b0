"""Exit criteria against hand-worked values, and settings that survive the disk."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reader.errors import ModelFolderError
from reader.exits import CRITERIA, ExitSettings, ExitView


def view(
    start: list[float],
    end: list[float],
    *,
    certainty: float = 0.0,
    earlier: list[list[int]] | None = None,
) -> ExitView:
    history = np.array([earlier or []], dtype=np.int64).reshape(1, -1, 2)
    logits = np.array([start, end], dtype=np.float32)
    return ExitView(logits[:1], logits[1:], np.array([certainty], dtype=np.float32), history)


def test_entropy_is_one_for_uniform_and_zero_for_certain() -> None:
    entropy = CRITERIA["entropy"]
    flat = [0.0, -math.inf, 0.0, 0.0, -math.inf]
    assert float(entropy(view(flat, flat))[0]) == pytest.approx(1.0)
    sure = [0.0, -math.inf, 200.0, 0.0, -math.inf]
    assert float(entropy(view(sure, sure))[0]) == pytest.approx(0.0, abs=1e-6)


def test_entropy_does_not_overflow_on_large_logits() -> None:
    large = [300.0, 299.0, -math.inf]
    expected = -(0.7310586 * math.log(0.7310586) + 0.2689414 * math.log(0.2689414)) / math.log(2)
    assert float(CRITERIA["entropy"](view(large, large))[0]) == pytest.approx(expected, abs=1e-4)


def test_margin_takes_the_less_certain_side() -> None:
    start, end = [math.log(0.8), math.log(0.2)], [math.log(0.6), math.log(0.4)]
    assert float(CRITERIA["margin"](view(start, end))[0]) == pytest.approx(1 - 0.2, abs=1e-6)


def test_patience_counts_back_from_the_newest_exit() -> None:
    start, end = [0.0, 5.0, 1.0], [0.0, 1.0, 5.0]  # best span (1, 2)
    patience = CRITERIA["patience"]
    assert float(patience(view(start, end))[0]) == 1.0
    assert float(patience(view(start, end, earlier=[[1, 2], [1, 2]]))[0]) == pytest.approx(1 / 3)
    assert float(patience(view(start, end, earlier=[[1, 2], [0, 0]]))[0]) == 1.0
    assert float(patience(view(start, end, earlier=[[0, 0], [1, 2]]))[0]) == 0.5


def test_learned_is_one_minus_the_heads_probability() -> None:
    assert float(CRITERIA["learned"](view([0.0, 1], [0.0, 1], certainty=2.0))[0]) == pytest.approx(
        1 - 1 / (1 + math.exp(-2)), abs=1e-6
    )


def test_decision_is_one_where_span_and_no_answer_are_level() -> None:
    start, end = [1.0, 4.0, 0.0], [1.0, 0.0, 5.0]  # null 2, best span 9
    found = view(start, end)
    level = replace(found, no_answer_threshold=-7.0)
    assert float(CRITERIA["decision"](level)[0]) == pytest.approx(1.0)
    assert float(CRITERIA["decision"](found)[0]) == pytest.approx(2 / (1 + math.exp(7)), rel=1e-4)
    cooler = replace(found, temperature=2.0)
    assert float(CRITERIA["decision"](cooler)[0]) == pytest.approx(
        2 / (1 + math.exp(3.5)), rel=1e-4
    )


def test_a_score_map_keeps_order_and_gives_probabilities() -> None:
    mapped = ExitSettings("margin", (0.1,), (0.0,), (1.0,), 1, (0.5,), (-1.0,))
    assert mapped.confidence(1, 0.5) == pytest.approx(1 / (1 + math.exp(1)))
    scores = [mapped.confidence(1, share) for share in (0.0, 0.2, 0.7, 1.0)]
    assert scores == sorted(scores)
    assert scores[0] >= 0
    assert scores[-1] <= 1
    assert ExitSettings.uncalibrated(1).confidence(1, 0.3) == 0.3


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_every_criterion_stays_between_zero_and_one(criterion: str) -> None:
    chance = np.random.default_rng(2)
    logits = 20 * chance.standard_normal((50, 30), dtype=np.float32)
    earlier = chance.integers(0, 3, (50, 4, 2))
    found = CRITERIA[criterion](ExitView(logits, logits[:, ::-1], logits[:, 0], earlier))
    assert found.shape == (50,)
    assert bool((found >= -1e-6).all())
    assert bool((found <= 1 + 1e-6).all())


def test_settings_come_back_from_the_disk(tmp_path: Path) -> None:
    settings = ExitSettings("margin", (0.1, 0.2), (0.5, -0.5), (1.5, 2.0), 1, (0.8, 1.0), (0.1, 0))
    settings.save(tmp_path)
    assert ExitSettings.load(tmp_path) == settings
    assert ExitSettings.load(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    "change",
    [
        {"criterion": "gut feeling"},
        {"temperatures": [1.0]},
        {"temperatures": [0.0, 1.0]},
        {"default_edge_layers": 3},
        {"exit_thresholds": "0.1"},
        {"score_slopes": [1.0], "score_intercepts": [1.0]},
        {"score_slopes": [-1.0, 1.0], "score_intercepts": [0.0, 0.0]},
    ],
)
def test_damaged_settings_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    ExitSettings.uncalibrated(2).save(tmp_path)
    values = json.loads((tmp_path / "exits.json").read_text())
    (tmp_path / "exits.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(ModelFolderError):
        ExitSettings.load(tmp_path)
