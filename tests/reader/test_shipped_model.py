"""The model that ships: small, offline, calibrated, exact in what it hands over, and it reads."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import pytest
import torch

from reader.model import Reader
from reader.spans import choose_answers
from reader.state_codecs import CODECS, codec_tolerance, decode_state, encode_state
from reader.states import StateBatch
from reader.walk import finish, walk
from reader.weights import SHIPPED_MODEL, shipped_model_folder

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


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader.load(SHIPPED_MODEL)


def test_the_weights_take_at_most_thirty_megabytes() -> None:
    total = sum(path.stat().st_size for path in shipped_model_folder().iterdir())
    assert total <= 30_000_000


def test_it_loads_without_any_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened while the shipped model was loaded")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert Reader.load(SHIPPED_MODEL).config.layers == 12


def test_the_model_card_names_this_very_release(reader: Reader) -> None:
    card = (shipped_model_folder() / "README.md").read_text(encoding="utf-8")
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


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_resuming_at_every_layer_gives_the_logits_of_full_depth(reader: Reader, codec: str) -> None:
    windows = reader.split("Who drew the stones to the pier?", PASSAGE)
    batch, last = reader.embed(windows), reader.config.layers
    whole = reader.exit_logits(reader.run(batch, 0, last), last)
    seen = 0.0
    for layer in range(1, last):
        batch = reader.run(batch, layer - 1, layer)
        payload = encode_state(codec, batch.state(0))
        state = decode_state(codec, payload, len(windows[0]), reader.config.hidden_size)
        moved = StateBatch.of([state], [windows[0].question_tokens])
        resumed = reader.exit_logits(reader.run(moved, layer, last), last)
        for there, here in zip(resumed, whole, strict=True):
            difference = (there - here)[torch.isfinite(here)].abs().max()
            seen = max(seen, float(difference))
        assert [pair.argmax() for pair in resumed] == [pair.argmax() for pair in whole]
    assert seen <= codec_tolerance(codec)
    assert math.isfinite(seen)


def test_the_licence_and_the_settings_of_training_lie_beside_it() -> None:
    names = {path.name for path in Path(shipped_model_folder()).iterdir()}
    assert {"README.md", "training.json"} <= names
