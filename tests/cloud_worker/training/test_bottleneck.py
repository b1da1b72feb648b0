"""Learning the bottleneck: it fits the states, distillation does no harm, and the folder has it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cloud_worker.training.bottleneck import BottleneckSettings, train_bottleneck
from cloud_worker.training.settings import TrainingError
from cloud_worker.training.transform_coding import allocate_bits, fit_transform
from reader.bottleneck import Bottleneck
from reader.model import Reader
from tests.tiny import make_tiny_model

PASSAGE = "the lighthouse in the north was built of red stone in the year {}. the keeper was {}."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sixty-four short questions."""
    paragraphs = []
    for number in range(64):
        passage = PASSAGE.format(1800 + number, "old" if number % 2 else "young and long")
        answer = str(1800 + number)
        qas = [
            {
                "id": f"q{number}",
                "question": "when was the lighthouse built?",
                "answers": [{"text": answer, "answer_start": passage.index(answer)}],
                "is_impossible": False,
            }
        ]
        paragraphs.append({"context": passage, "qas": qas})
    path = tmp_path_factory.mktemp("data") / "train.json"
    path.write_text(
        json.dumps({"version": "v2.0", "data": [{"title": "x", "paragraphs": paragraphs}]})
    )
    return str(path)


def settings(data: str, **changes: object) -> BottleneckSettings:
    fields = {"bits": (32, 64, 160), "one_in": (1, 4, 16), "windows": 64, "steps": 3, **changes}
    return BottleneckSettings(data=(data,), layers=(2,), **fields)  # type: ignore[arg-type]  # any


def test_bits_go_where_the_error_falls_most() -> None:
    variances = np.array([16.0, 4.0, 1.0, 0.01], np.float32)
    bits = allocate_bits(variances, 9)
    assert bits.sum() == 9
    assert bits.tolist() == sorted(bits.tolist(), reverse=True)
    assert bits[3] == 0
    assert allocate_bits(variances, 1_000).tolist() == [8, 8, 8, 8]


def test_more_bits_mean_a_smaller_error() -> None:
    random = np.random.default_rng(0)
    mixing = random.standard_normal((24, 24)).astype(np.float32)
    states = [(random.standard_normal((30, 24)) @ mixing).astype(np.float32) for _ in range(40)]
    errors = []
    for bits in (16, 48, 120):
        codec = Bottleneck(fit_transform(states, (bits, 2 * bits), (1, 4)))
        back = [codec.decode(codec.encode(state), len(state)) for state in states]
        errors.append(float(np.mean((np.concatenate(back) - np.concatenate(states)) ** 2)))
    spread = float(np.concatenate(states).var())
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < spread
    assert errors[2] < 0.02 * spread


def test_the_trained_codec_is_in_the_folder_and_the_reader_offers_it(
    tmp_path: Path, data: str
) -> None:
    folder = make_tiny_model(tmp_path / "tiny")
    before = Reader.load(folder).digest
    heard: list[tuple[int, int]] = []
    (report,) = train_bottleneck(
        folder, settings(data), progress=lambda step, steps, _: heard.append((step, steps))
    )
    assert heard == [(1, 3), (2, 3), (3, 3)]
    assert report.layer == 2
    assert report.divergence_after <= report.divergence_before
    assert 0 < report.relative_error < 0.5
    reader = Reader.load(folder)
    assert reader.digest != before
    assert "bottleneck" in reader.codecs.names(2)
    assert "bottleneck" not in reader.codecs.names(1)
    size = reader.codecs.size("bottleneck", 2, 60)
    assert size / 60 == pytest.approx(report.bytes_a_token, rel=0.05)


def test_layers_are_learned_one_by_one_and_kept_beside_each_other(
    tmp_path: Path, data: str
) -> None:
    folder = make_tiny_model(tmp_path / "tiny")
    train_bottleneck(folder, settings(data, steps=0))
    first = Reader.load(folder)
    train_bottleneck(
        folder, BottleneckSettings(data=(data,), layers=(1,), bits=(64,), one_in=(1,), steps=0)
    )
    both = Reader.load(folder)
    state = np.random.default_rng(1).standard_normal((20, 32)).astype(np.float32)
    assert both.codecs.encode("bottleneck", 2, state) == first.codecs.encode("bottleneck", 2, state)
    assert "bottleneck" in both.codecs.names(1)


@pytest.mark.parametrize("layers", [(), (0,), (4,), (2, 9)])
def test_a_layer_that_no_device_hands_over_after_is_refused(
    tmp_path: Path, data: str, layers: tuple[int, ...]
) -> None:
    folder = make_tiny_model(tmp_path / "tiny")
    with pytest.raises(TrainingError, match="layers"):
        train_bottleneck(folder, BottleneckSettings(data=(data,), layers=layers))
