"""The network is `transformers`' ALBERT, layer by layer, and resumes exactly at every layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AlbertConfig, AlbertForQuestionAnswering

from reader.config import ReaderConfig
from reader.errors import ModelFolderError, StateShapeError
from reader.model import Reader
from reader.network import AlbertReader, Layer
from reader.network_files import load_network, save_network
from reader.states import StateBatch
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
    reader = Reader.load(folder, engine="torch", precision="fp32")
    windows = reader.split("who was the keeper?", PASSAGE)
    begun = reader.embed(windows)
    whole = reader.exit_logits(reader.run(begun, 0, LAYERS), LAYERS)
    for layer in range(LAYERS + 1):
        there = reader.run(begun, 0, layer)
        moved = reader.engine.pack(reader.engine.states(there), [windows[0].question_tokens])
        resumed = reader.exit_logits(reader.run(moved, layer, LAYERS), LAYERS)
        np.testing.assert_allclose(resumed[0], whole[0], atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(resumed[1], whole[1], atol=1e-5, rtol=1e-5)


def test_a_window_gives_the_same_logits_alone_and_in_a_batch(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, layers=4)
    reader = Reader.load(folder, engine="torch", precision="fp32")
    windows = [
        reader.split(question, passage)[0]
        for question, passage in [
            ("who?", "the king"),
            ("what was the tower made of?", PASSAGE),
            ("when was the lighthouse built?", PASSAGE[:40]),
        ]
    ]
    together = reader.engine.states(reader.run(reader.embed(windows), 0, 4))
    for row, window in zip(together, windows, strict=True):
        (alone,) = reader.engine.states(reader.run(reader.embed([window]), 0, 4))
        np.testing.assert_allclose(row, alone, atol=1e-5, rtol=1e-5)


def test_a_state_of_another_width_is_refused(tmp_path: Path) -> None:
    reader = Reader.load(make_tiny_model(tmp_path, hidden_size=32))
    with pytest.raises(StateShapeError, match="wide"):
        reader.run(StateBatch(torch.zeros(9, 16), (9,), (4,)), 1, 2)


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


SMALL = ReaderConfig(
    vocab_size=40,
    embedding_size=16,
    hidden_size=16,
    layers=3,
    groups=2,
    heads=4,
    intermediate_size=24,
    max_positions=32,
)
# Layers 1 and 2 share group 0, which kept heads 0, 2 and 3; group 1 kept nothing of either kind.
KEPT_HEADS = ((0, 2, 3), ())


def random_network(config: ReaderConfig, seed: int = 1) -> AlbertReader:
    torch.manual_seed(seed)
    network = AlbertReader(config).eval()
    with torch.no_grad():
        for value in network.parameters():
            value.normal_(0, 0.4)
    return network


def zero_what_was_pruned(full: AlbertReader, kept_units: list[list[int]]) -> AlbertReader:
    """The small network's full counterpart: a pruned head or unit gives exactly 0."""
    size = full.config.head_size
    with torch.no_grad():
        for group, (heads, units) in enumerate(zip(KEPT_HEADS, kept_units, strict=True)):
            layer = full.group(group)
            for head in set(range(full.config.heads)) - set(heads):
                layer.attention_output.weight[:, head * size : (head + 1) * size] = 0
            for unit in set(range(full.config.intermediate_size)) - set(units):
                layer.down.weight[:, unit] = 0
    return full


def test_a_pruned_network_equals_the_full_one_with_zeros(tmp_path: Path) -> None:
    kept_units = [list(range(0, 24, 3)), []]
    full = zero_what_was_pruned(random_network(SMALL), kept_units)
    config = replace(SMALL, kept_heads=KEPT_HEADS, inner_sizes=(8, 0))
    small = AlbertReader(config).eval()
    tensors = dict(full.state_dict())
    size = SMALL.head_size
    for group, (heads, units) in enumerate(zip(KEPT_HEADS, kept_units, strict=True)):
        rows = [head * size + row for head in heads for row in range(size)]
        three = [part * SMALL.hidden_size + row for part in range(3) for row in rows]
        prefix = f"groups.{group}"
        for part in ("weight", "bias"):
            tensors[f"{prefix}.query_key_value.{part}"] = tensors[
                f"{prefix}.query_key_value.{part}"
            ][three]
            tensors[f"{prefix}.up.{part}"] = tensors[f"{prefix}.up.{part}"][units]
        for name, columns in (("attention_output", rows), ("down", units)):
            tensors[f"{prefix}.{name}.weight"] = tensors[f"{prefix}.{name}.weight"][:, columns]
    small.load_state_dict(tensors)
    token_ids, token_types, valid = random_input(SMALL.vocab_size)
    for learns in (False, True):
        with torch.set_grad_enabled(learns):
            left, right = (each.embed(token_ids, token_types) for each in (small, full))
            for layer in range(1, 4):
                left, right = (
                    network.run_layer(layer, hidden, valid)
                    for network, hidden in ((small, left), (full, right))
                )
                torch.testing.assert_close(left[valid], right[valid], atol=1e-5, rtol=1e-5)
    make_tiny_tokenizer(tmp_path / "tokenizer.json")
    save_network(small, tmp_path / "small", tokenizer_from=tmp_path)
    theirs = AlbertForQuestionAnswering.from_pretrained(tmp_path / "small").eval()
    again = load_network(tmp_path / "small")
    assert again.config == config
    with torch.no_grad():
        states = theirs.albert(
            token_ids, attention_mask=valid.long(), token_type_ids=token_types
        ).last_hidden_state
        reloaded = again.run(again.embed(token_ids, token_types), valid, 0, 3)
    torch.testing.assert_close(reloaded[valid], left.detach()[valid], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(states[valid], left.detach()[valid], atol=1e-4, rtol=1e-4)


SPANS = ((0, 1, 32), (2, 4, 3))


def attend_by_hand(
    layer: Layer, hidden: torch.Tensor, spans: tuple[int, ...], question_tokens: int
) -> torch.Tensor:
    """Attention of one window `[T, H]`, one query and one head at a time, before the output."""
    tokens, size, width = len(hidden), layer.head_size, layer.heads * layer.head_size
    made = layer.query_key_value(hidden)
    mixed = torch.zeros(tokens, width)
    for head, span in enumerate(spans):
        columns = slice(head * size, (head + 1) * size)
        query, key, value = (
            made[:, part * width : (part + 1) * width][:, columns] for part in range(3)
        )
        for place in range(tokens):
            seen = [
                other
                for other in range(tokens)
                if place < question_tokens or other < question_tokens or abs(place - other) <= span
            ]
            weights = (key[seen] @ query[place] / size**0.5).softmax(0)
            if span > 0:
                mixed[place, columns] = weights @ value[seen]
    return mixed


def layer_by_hand(
    layer: Layer, hidden: torch.Tensor, spans: tuple[int, ...], question_tokens: int
) -> torch.Tensor:
    mixed = attend_by_hand(layer, hidden, spans, question_tokens)
    hidden = layer.attention_norm(hidden + layer.attention_output(mixed))
    return layer.output_norm(hidden + layer.down(layer.activation(layer.up(hidden))))


@pytest.mark.parametrize("learns", [False, True])
def test_heads_see_as_far_as_their_spans_in_every_batch(learns: bool) -> None:
    config = replace(
        SMALL, layers=2, groups=1, kept_heads=((0, 2, 3),), inner_sizes=(24,), spans=SPANS
    )
    network = random_network(config)
    lengths, questions = [21, 14, 9], [7, 3, 2]
    token_ids, token_types, valid = random_input(config.vocab_size)
    asked = torch.tensor(questions)
    with torch.set_grad_enabled(learns):
        embedded = network.embed(token_ids, token_types)
        together = network.run(embedded, valid, 0, 2, asked)
        for row, (length, question) in enumerate(zip(lengths, questions, strict=True)):
            alone = network.run(embedded[row : row + 1, :length], None, 0, 2, asked[row : row + 1])[
                0
            ]
            by_hand = embedded[row, :length]
            for layer in (1, 2):
                by_hand = layer_by_hand(
                    network.layer(layer), by_hand, config.spans_of(layer), question
                )
            torch.testing.assert_close(together[row, :length], by_hand, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(alone, by_hand, atol=1e-5, rtol=1e-4)


def test_unlimited_spans_change_nothing_and_limited_ones_need_the_questions_length() -> None:
    free = random_network(SMALL)
    token_ids, token_types, valid = random_input(SMALL.vocab_size)
    unlimited = AlbertReader(replace(SMALL, spans=((32,) * 4,) * 3)).eval()
    unlimited.load_state_dict(free.state_dict())
    limited = AlbertReader(replace(SMALL, spans=((32, 32, 32, 5),) * 3)).eval()
    limited.load_state_dict(free.state_dict())
    with torch.no_grad():
        hidden = free.embed(token_ids, token_types)
        expected = free.run(hidden, valid, 0, 3)
        assert torch.equal(unlimited.run(hidden, valid, 0, 3), expected)
        assert not torch.allclose(
            limited.run(hidden, valid, 0, 3, torch.tensor([3, 3, 3]))[valid], expected[valid]
        )
        with pytest.raises(ValueError, match="question_tokens"):
            limited.run(hidden, valid, 0, 3)
