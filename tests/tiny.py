"""A tiny random reader folder that tests make for themselves: real files, no network, no training.

The tokenizer is a real uncased WordPiece one whose vocabulary is every ASCII character and some
words, so that any text can be read.
"""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from reader.bottleneck import (
    BOTTLENECK_FILE,
    Bottleneck,
    BottleneckTensors,
    load_bottlenecks,
    stored_tensors,
)
from reader.codecs import save_losses
from reader.config import ReaderConfig
from reader.exits import ExitSettings
from reader.network import AlbertReader
from reader.network_files import save_network
from reader.weights import load_config

WORDS = (
    "the a of in is was who what when where how many lighthouse built year light river city king "
    "war water ship keeper tower stone north south red green old new long high first last and"
).split()


def make_tiny_tokenizer(path: Path) -> int:
    """Write `tokenizer.json`; returns the vocabulary's size."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted(set(string.ascii_lowercase + string.digits + string.punctuation))
    pieces += letters + [f"##{letter}" for letter in letters]
    pieces += [word for word in WORDS if word not in pieces]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(pieces[:5])
    tokenizer.save(str(path))
    return len(pieces)


def add_bottleneck(folder: Path, *, layer: int, bits: int = 8) -> None:
    """Give a tiny model the codec `bottleneck` after a layer: every value in so many bits."""
    config = load_config(folder)
    hidden = config.hidden_size
    one_class = (1, hidden)
    codec = Bottleneck(
        BottleneckTensors(
            mean=np.zeros(hidden, np.float32),
            down=np.eye(hidden, dtype=np.float32),
            up=np.eye(hidden, dtype=np.float32),
            bits=np.full(one_class, bits),
            steps=np.full(one_class, 8 / 2**bits, np.float32),
            offsets=np.zeros(one_class, np.float32),
            one_in=(1,),
        )
    )
    codecs = {**load_bottlenecks(folder, hidden), layer: codec}
    save_file(stored_tensors(codecs), folder / BOTTLENECK_FILE)
    save_losses(folder, layer, {"bottleneck": 0.1})


def make_tiny_model(
    folder: Path,
    *,
    layers: int = 4,
    groups: int = 2,
    hidden_size: int = 32,
    embedding_size: int | None = None,
    heads: int = 4,
    seed: int = 0,
    settings: ExitSettings | None = None,
) -> Path:
    """A random model folder whose logits spread enough that spans differ; returns `folder`.

    Without `settings` the folder never exits early.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = make_tiny_tokenizer(folder / "tokenizer.json")
    torch.manual_seed(seed)
    config = ReaderConfig(
        vocab_size=vocabulary,
        embedding_size=embedding_size or hidden_size,
        hidden_size=hidden_size,
        layers=layers,
        groups=groups,
        heads=heads,
        intermediate_size=2 * hidden_size,
        hidden_act="gelu_new",
    )
    network = AlbertReader(config)
    with torch.no_grad():
        for head in network.exits:
            head.span.weight.normal_(0, 1)
            head.certainty.weight.normal_(0, 1)
    save_network(network, folder, tokenizer_from=folder)
    (settings or ExitSettings.uncalibrated(layers)).save(folder)
    return folder
