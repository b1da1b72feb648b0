"""The network is `transformers`' ALBERT, layer by layer, and resumes exactly at every layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AlbertConfig, AlbertForQuestionAnswering

from reader.errors import ModelFolderError, StateShapeError
from reader.model import Reader
from reader.network import AlbertReader
from reader.states import StateBatch
from reader.weights import load_network, save_network
from tests.tiny import make_tiny_model, make_tiny_tokenizer

LAYERS = 12
PASSAGE = (
    "The lighthouse was built in 1771 of red stone. The keeper was the last to leave the tower."
)


def make_theirs(folder: Path, groups: int, seed: int = 0) -> AlbertForQuestionAnswering:
    """A random checkpoint written by `transformers`, with weights large enough to matter."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = AlbertConfig(
        vocab_size=make_tiny_tokenizer(folder / "tokenizer.json"),
        embedding_size=16,
        hidden_size=48,
        num_hidden_layers=LAYERS,
        num_hidden_groups=groups,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    theirs = AlbertForQuestionAnswering(config).eval()
    with torch.no_grad():
        for value in theirs.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    theirs.save_pretrained(folder)
    return theirs


def random_input(vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    token_ids = torch.randint(5, vocabulary, (3, 21), generator=generator)
    token_types = (torch.arange(21) >= 7).long().expand(3, 21)
    valid = torch.arange(21).unsqueeze(0) < torch.tensor([21, 14, 9]).unsqueeze(1)
    return token_ids, token_types, valid


@pytest.mark.parametrize("groups", [1, 6, LAYERS])
def test_every_layer_equals_transformers(tmp_path: Path, groups: int) -> None:
    theirs = make_theirs(tmp_path, groups)
    ours = load_network(tmp_path)
    token_ids, token_types, valid = random_input(theirs.config.vocab_size)
    with torch.no_grad():
        expected = theirs(
            token_ids,
            attention_mask=valid.long(),
            token_type_ids=token_types,
            output_hidden_states=True,
        )
        hidden = ours.embed(token_ids, token_types)
        for layer in range(LAYERS + 1):
            if layer:
                hidden = ours.run_layer(layer, hidden, valid)
            torch.testing.assert_close(
                hidden[valid], expected.hidden_states[layer][valid], atol=2e-5, rtol=1e-4
            )
        logits = ours.exit_logits(LAYERS, hidden)
    torch.testing.assert_close(
        logits[..., 0][valid], expected.start_logits[valid], atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        logits[..., 1][valid], expected.end_logits[valid], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("groups", [1, 6, LAYERS])
def test_transformers_loads_what_we_save(tmp_path: Path, groups: int) -> None:
    theirs = make_theirs(tmp_path / "theirs", groups)
    network = load_network(tmp_path / "theirs")
    save_network(network, tmp_path / "ours", tokenizer_from=tmp_path / "theirs")
    again = AlbertForQuestionAnswering.from_pretrained(tmp_path / "ours")
    assert set(again.state_dict()) == set(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, atol=0, rtol=0, msg=name)
    assert again.config.num_hidden_groups == groups


def test_exits_start_from_qa_outputs_and_come_back_when_saved(tmp_path: Path) -> None:
    theirs = make_theirs(tmp_path / "theirs", 6)
    network = load_network(tmp_path / "theirs")
    for head in network.exits:
        torch.testing.assert_close(head.span.weight, theirs.qa_outputs.weight)
    with torch.no_grad():
        network.exits[2].span.bias.add_(1)
        network.exits[4].certainty.weight.add_(1)
    save_network(network, tmp_path / "ours", tokenizer_from=tmp_path / "theirs")
    again = load_network(tmp_path / "ours")
    for name, value in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, atol=0, rtol=0, msg=name)


def test_training_attention_equals_inference_attention(tmp_path: Path) -> None:
    theirs = make_theirs(tmp_path, 6)
    ours = load_network(tmp_path)
    token_ids, token_types, valid = random_input(theirs.config.vocab_size)
    written_out = ours.run(ours.embed(token_ids, token_types), valid, 0, LAYERS)
    with torch.no_grad():
        fused = ours.run(ours.embed(token_ids, token_types), valid, 0, LAYERS)
    torch.testing.assert_close(written_out[valid], fused[valid], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 6, LAYERS])
def test_resume_is_exact_at_every_layer(tmp_path: Path, groups: int) -> None:
    folder = make_tiny_model(tmp_path, layers=LAYERS, groups=groups)
    reader = Reader.load(folder)
    windows = reader.split("who was the keeper?", PASSAGE)
    begun = reader.embed(windows)
    whole = reader.exit_logits(reader.run(begun, 0, LAYERS), LAYERS)
    for layer in range(LAYERS + 1):
        there = reader.run(begun, 0, layer)
        moved = StateBatch.of([there.state(0).clone()], [windows[0].question_tokens])
        resumed = reader.exit_logits(reader.run(moved, layer, LAYERS), LAYERS)
        torch.testing.assert_close(resumed[0], whole[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(resumed[1], whole[1], atol=1e-5, rtol=1e-5)


def test_a_window_gives_the_same_logits_alone_and_in_a_padded_batch(tmp_path: Path) -> None:
    reader = Reader.load(make_tiny_model(tmp_path, layers=4))
    windows = [
        reader.split(question, passage)[0]
        for question, passage in [
            ("who?", "the king"),
            ("what was the tower made of?", PASSAGE),
            ("when was the lighthouse built?", PASSAGE[:40]),
        ]
    ]
    together = reader.run(reader.embed(windows), 0, 4)
    for row, window in enumerate(windows):
        alone = reader.run(reader.embed([window]), 0, 4)
        torch.testing.assert_close(together.state(row), alone.state(0), atol=1e-5, rtol=1e-5)


def test_a_state_of_another_width_is_refused(tmp_path: Path) -> None:
    reader = Reader.load(make_tiny_model(tmp_path, hidden_size=32))
    with pytest.raises(StateShapeError, match="wide"):
        reader.run(StateBatch.of([torch.zeros(9, 16)], [4]), 1, 2)


def test_a_folder_that_does_not_fit_together_says_which_tensor(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, layers=4, groups=2)
    text = (
        (tmp_path / "config.json")
        .read_text()
        .replace('"num_hidden_groups": 2', '"num_hidden_groups": 4')
    )
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelFolderError, match=r"groups\.2.*missing"):
        Reader.load(tmp_path)


def test_the_digest_changes_with_every_file_that_decides_an_answer(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path)
    before = Reader.load(folder).digest
    assert Reader.load(folder).digest == before
    text = (
        (folder / "exits.json")
        .read_text()
        .replace('"default_edge_layers": 4', '"default_edge_layers": 3')
    )
    (folder / "exits.json").write_text(text)
    assert Reader.load(folder).digest != before


def test_dropout_acts_only_while_training() -> None:
    from reader.config import ReaderConfig

    config = ReaderConfig(
        vocab_size=30,
        embedding_size=8,
        hidden_size=8,
        layers=2,
        groups=1,
        heads=2,
        intermediate_size=16,
    )
    network = AlbertReader(config, dropout=0.5)
    ids, types = torch.ones(1, 5, dtype=torch.int64), torch.zeros(1, 5, dtype=torch.int64)
    network.train()
    assert not torch.equal(network.embed(ids, types), network.embed(ids, types))
    network.eval()
    assert torch.equal(network.embed(ids, types), network.embed(ids, types))
