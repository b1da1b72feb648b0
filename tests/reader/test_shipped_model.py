"""The models that ship: small, offline, calibrated, exact in what they hand over, and they read."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest

from reader.codecs import BOTTLENECK
from reader.model import Reader
from reader.spans import choose_answers
from reader.state_codecs import CODECS
from reader.walk import finish, walk
from reader.weights import SHIPPED_MODELS, shipped_model_folder

PASSAGE = (
    "Bell Rock Lighthouse stands off the coast of Angus, Scotland. It was built between 1807 and "
    "1810 by Robert Stevenson on the Bell Rock, a reef that the sea covers at high tide. The "
    "tower is 35 metres tall and was made of 2,500 granite stones cut by hand at Arbroath. A horse "
    "named Bassey drew every stone to the pier. The light has been automatic since 1988, when the "
    "last keepers left."
)
QUESTIONS = {
    "Who built the lighthouse?": "Robert Stevenson",
    "How tall is the tower?": "35 metres",
    "What was the name of the horse?": "Bassey",
    "When did the last keepers leave?": "1988",
}


LARGEST_BYTES = {"elma-small": 30_000_000, "elma-fast": 20_000_000}


@pytest.fixture(scope="module", params=SHIPPED_MODELS)
def reader(request: pytest.FixtureRequest) -> Reader:
    return Reader.load(request.param)


@pytest.mark.parametrize("model", SHIPPED_MODELS)
def test_the_folder_takes_no_more_than_was_promised(model: str) -> None:
    total = sum(path.stat().st_size for path in shipped_model_folder(model).iterdir())
    assert total <= LARGEST_BYTES[model]


def test_it_loads_without_any_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened while the shipped model was loaded")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for model in SHIPPED_MODELS:
        assert Reader.load(model).config.layers == 12


def test_the_model_card_names_this_very_release(reader: Reader) -> None:
    card = (shipped_model_folder(reader.name) / "README.md").read_text(encoding="utf-8")
    assert reader.digest in card


def test_it_is_calibrated_and_hands_over_before_its_last_layer(reader: Reader) -> None:
    settings = reader.settings
    assert settings.default_edge_layers < reader.config.layers
    assert any(threshold > 0 for threshold in settings.exit_thresholds[:-1])
    assert len(settings.score_slopes) == reader.config.layers


@pytest.mark.parametrize("question", sorted(QUESTIONS))
def test_it_reads(reader: Reader, question: str) -> None:
    windows = reader.split(question, PASSAGE)
    results = finish(reader, walk(reader, windows, last_layer=reader.settings.default_edge_layers))
    answer = choose_answers(windows, results.values(), PASSAGE, reader.settings)[0]
    assert QUESTIONS[question] in answer.text
    assert len(answer.text) < 40
    assert 0 < answer.score < 1


@pytest.mark.parametrize("model", SHIPPED_MODELS)
@pytest.mark.parametrize("codec", [*CODECS, BOTTLENECK])
def test_resuming_at_every_layer_gives_the_logits_of_full_depth(model: str, codec: str) -> None:
    reader = Reader.load(model, precision="fp32")  # the codec's loss alone
    windows = reader.split("Who drew the stones to the pier?", PASSAGE)
    batch, last = reader.embed(windows), reader.config.layers
    whole = reader.exit_logits(reader.run(batch, 0, last), last)
    seen: list[float] = []
    for layer in range(1, last):
        batch = reader.run(batch, layer - 1, layer)
        if codec not in reader.codecs.names(layer):
            continue
        payload = reader.codecs.encode(codec, layer, reader.engine.states(batch)[0])
        state = reader.codecs.decode(codec, layer, payload, len(windows[0]))
        moved = reader.engine.pack([state], [windows[0].question_tokens])
        resumed = reader.exit_logits(reader.run(moved, layer, last), last)
        for there, here in zip(resumed, whole, strict=True):
            difference = np.abs(there[np.isfinite(here)] - here[np.isfinite(here)]).max()
            seen.append(float(difference))
        if codec in ("fp32", "fp16", "int8"):  # the others may turn the closest calls
            assert [pair.argmax() for pair in resumed] == [pair.argmax() for pair in whole]
    assert max(seen) <= reader.codecs.tolerance(codec)


def test_where_a_device_hands_over_the_bottleneck_is_a_tenth_of_fp16(reader: Reader) -> None:
    layer = reader.settings.default_edge_layers
    for tokens in (40, 180, 384):
        small = reader.codecs.size(BOTTLENECK, layer, tokens)
        assert small <= reader.codecs.size("fp16", layer, tokens) / 10
    assert reader.codecs.loss(BOTTLENECK, layer) is not None


@pytest.mark.parametrize("model", SHIPPED_MODELS)
def test_the_licence_and_the_settings_of_training_lie_beside_it(model: str) -> None:
    names = {path.name for path in Path(shipped_model_folder(model)).iterdir()}
    assert {"README.md", "training.json"} <= names
