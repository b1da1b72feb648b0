"""A converted BERT computes what the BERT did; a grown network starts close to its source."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AlbertForQuestionAnswering, BertConfig, BertForQuestionAnswering

from reader.conversion import bert_to_albert, reshape_network
from reader.errors import ModelFolderError
from reader.network_files import load_network, save_network
from tests.tiny import make_tiny_model, make_tiny_tokenizer


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    folder = tmp_path / "bert"
    folder.mkdir()
    config = BertConfig(
        vocab_size=make_tiny_tokenizer(folder / "tokenizer.json"),
        hidden_size=48,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    bert = BertForQuestionAnswering(config).eval()
    with torch.no_grad():
        for value in bert.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    bert.save_pretrained(folder)
    return folder


def test_the_converted_bert_is_the_bert_at_every_layer(bert_folder: Path) -> None:
    bert = BertForQuestionAnswering.from_pretrained(bert_folder).eval()
    ours = bert_to_albert(bert_folder)
    token_ids = torch.randint(5, bert.config.vocab_size, (2, 17))
    types = (torch.arange(17) > 6).long().expand(2, 17)
    with torch.no_grad():
        expected = bert(token_ids, token_type_ids=types, output_hidden_states=True)
        hidden = ours.embed(token_ids, types)
        for layer in range(7):
            if layer:
                hidden = ours.run_layer(layer, hidden, None)
            torch.testing.assert_close(hidden, expected.hidden_states[layer], atol=2e-5, rtol=1e-4)
        logits = ours.exit_logits(6, hidden)
    torch.testing.assert_close(logits[..., 0], expected.start_logits, atol=1e-4, rtol=1e-4)


def test_transformers_loads_the_converted_bert_as_an_albert(
    bert_folder: Path, tmp_path: Path
) -> None:
    bert = BertForQuestionAnswering.from_pretrained(bert_folder).eval()
    save_network(bert_to_albert(bert_folder), tmp_path / "albert", tokenizer_from=bert_folder)
    albert = AlbertForQuestionAnswering.from_pretrained(tmp_path / "albert").eval()
    token_ids = torch.randint(5, bert.config.vocab_size, (2, 17))
    with torch.no_grad():
        torch.testing.assert_close(
            albert(token_ids).start_logits, bert(token_ids).start_logits, atol=1e-4, rtol=1e-4
        )


def test_the_same_shape_changes_nothing(tmp_path: Path) -> None:
    network = load_network(make_tiny_model(tmp_path, layers=4, groups=2))
    same = reshape_network(network, layers=4, groups=2)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], value, atol=0, rtol=0, msg=name)


def test_new_groups_on_top_leave_the_old_layers_alone_and_start_near_the_identity(
    bert_folder: Path,
) -> None:
    source = bert_to_albert(bert_folder)
    grown = reshape_network(source, layers=12, groups=12, damping=0.05)
    token_ids = torch.randint(5, source.config.vocab_size, (2, 17))
    types = torch.zeros_like(token_ids)
    with torch.no_grad():
        before = source.run(source.embed(token_ids, types), None, 0, 6)
        at_six = grown.run(grown.embed(token_ids, types), None, 0, 6)
        at_twelve = grown.run(at_six, None, 6, 12)
    torch.testing.assert_close(at_six, before, atol=0, rtol=0)
    alike = torch.nn.functional.cosine_similarity(at_twelve, before, dim=-1)
    assert float(alike.min()) > 0.9
    assert float((at_twelve - before).norm() / before.norm()) < 0.35
    torch.testing.assert_close(grown.exits[11].span.weight, source.exits[5].span.weight)


def test_fewer_groups_take_source_groups(bert_folder: Path) -> None:
    source = bert_to_albert(bert_folder)
    shared = reshape_network(source, layers=12, groups=3)
    names = {id(group) for group in shared.groups}
    assert len(names) == 3
    for group in shared.groups:
        weight = group.up.weight
        assert any(torch.equal(weight, other.up.weight) for other in source.groups)


def test_another_model_type_is_refused(tmp_path: Path) -> None:
    make_tiny_model(tmp_path)
    with pytest.raises(ModelFolderError, match="only BERT"):
        bert_to_albert(tmp_path)
