"""Attention spans: learned softly, stored as whole numbers, and the same network thereafter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cloud_worker.training.learned_spans import LearnedSpans
from cloud_worker.training.settings import SpanSettings, TrainingError
from reader.config import ReaderConfig
from reader.network import AlbertReader

CONFIG = ReaderConfig(
    vocab_size=50,
    embedding_size=16,
    hidden_size=16,
    layers=2,
    groups=1,
    heads=2,
    intermediate_size=32,
    max_positions=64,
)
SETTINGS = SpanSettings(ramp_tokens=8, penalty=1.0)
TOKENS = torch.arange(30).view(1, 30) + 5
ASKED = torch.tensor([4])


def spans_of(*tokens: float, settings: SpanSettings = SETTINGS) -> LearnedSpans:
    """Spans of 4 heads: two of each layer."""
    spans = LearnedSpans(CONFIG, settings, max_tokens=40)
    with torch.no_grad():
        spans.shares[0].copy_(torch.tensor(tokens[:2]) / 40)
        spans.shares[1].copy_(torch.tensor(tokens[2:]) / 40)
    return spans


def test_the_mask_is_the_papers_ramp() -> None:
    limits = spans_of(10.0, 40.0, -6.0, 0.0).limits(1, 30)
    shown = limits.bias.detach().exp()
    for distance in range(30):
        expected = min(max((8 + 10 - distance) / 8, 0.0), 1.0)  # equation 3
        assert float(shown[0, 0, distance]) == pytest.approx(expected, abs=1e-5)
    assert float(shown[1].min()) == 1.0
    faded = spans_of(10.0, 40.0, -6.0, 0.0).limits(2, 30)
    assert faded.scale.tolist() == pytest.approx([0.25, 1.0])


def test_the_softmax_is_weighed_by_the_mask() -> None:
    """Equation 2: a = m exp(s) / sum m exp(s)."""
    scores = torch.randn(30)
    limits = spans_of(10.0, 40.0, -6.0, 0.0).limits(1, 30)
    weighed = limits.bias[0, 0].exp() * scores.exp()
    torch.testing.assert_close((scores + limits.bias[0, 0]).softmax(0), weighed / weighed.sum())


def test_a_new_head_sees_everything() -> None:
    spans = LearnedSpans(CONFIG, SETTINGS, max_tokens=40)
    assert float(spans.limits(1, 40).bias.detach().abs().max()) == 0.0
    assert spans.mean_tokens() == 40
    assert spans.whole_numbers(64) == ((64, 64), (64, 64))


def test_the_penalty_pulls_and_the_loss_holds() -> None:
    torch.manual_seed(3)
    network = AlbertReader(CONFIG)
    with torch.no_grad():
        for value in network.parameters():
            value.normal_(0, 0.5)
    wanted = network.run(network.embed(TOKENS, TOKENS * 0), None, 0, 2).detach()
    found = {}
    for weight in (0.0, 3000.0):
        spans = LearnedSpans(CONFIG, SETTINGS, max_tokens=40)
        optimizer = torch.optim.Adam(spans.parameters(), lr=0.05)
        for _ in range(40):
            hidden = network.embed(TOKENS, TOKENS * 0)
            for layer in (1, 2):
                hidden = network.run_layer(
                    layer, hidden, None, ASKED, limits=spans.limits(layer, 30)
                )
            loss = spans.penalty() + weight * (hidden - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            spans.clamp()
        found[weight] = spans.mean_tokens()
    assert found[0.0] == 0.0  # nothing but the penalty: every head fades
    assert found[3000.0] > 5.0


def test_whole_numbers_are_the_ramps_middle() -> None:
    spans = spans_of(10.2, 36.5, -4.1, -3.9)
    assert spans.whole_numbers(64) == ((15, 64), (0, 1))
    assert spans.mean_tokens() == pytest.approx((10.2 + 36.5) / 4, abs=1e-4)


def test_a_short_ramp_is_the_hard_mask_that_is_stored() -> None:
    """What is exported is what was learned: with a ramp of one token both give the same states."""
    torch.manual_seed(4)
    network = AlbertReader(CONFIG).eval()
    with torch.no_grad():
        for value in network.parameters():
            value.normal_(0, 0.5)
    spans = spans_of(5.0, 11.0, 40.0, 2.0, settings=SpanSettings(ramp_tokens=1))
    hard = AlbertReader(replace(CONFIG, spans=((5, 11), (64, 2)))).eval()
    hard.load_state_dict(network.state_dict())
    with torch.no_grad():
        begun = network.embed(TOKENS, TOKENS * 0)
        soft = begun
        for layer in (1, 2):
            soft = network.run_layer(layer, soft, None, ASKED, limits=spans.limits(layer, 30))
        torch.testing.assert_close(hard.run(begun, None, 0, 2, ASKED), soft, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(network.run(begun, None, 0, 2), soft, atol=1e-3)


def test_spans_follow_a_cut_of_heads() -> None:
    spans = spans_of(1.0, 2.0, 3.0, 4.0)
    kept = spans.keep(replace(CONFIG, kept_heads=((1,),)), [[1], [1]])
    assert [share.tolist() for share in kept.shares] == [
        [pytest.approx(2 / 40)],
        [pytest.approx(4 / 40)],
    ]


@pytest.mark.parametrize(
    "changes", [{"ramp_tokens": 0}, {"penalty": -1.0}, {"begin_share": 0.8, "freeze_share": 0.2}]
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(TrainingError):
        replace(SETTINGS, **changes)
