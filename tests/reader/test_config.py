"""The configuration keeps what compression left, and refuses what does not fit together."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from reader.config import ReaderConfig
from reader.errors import ModelFolderError

CONFIG = ReaderConfig(
    hidden_size=16, embedding_size=16, layers=4, groups=2, heads=4, intermediate_size=32
)
HEADS = ((0, 3), ())
SPANS = ((5, 512), (0, 1), (), ())


def test_what_was_left_comes_back_from_a_config_file() -> None:
    config = replace(CONFIG, kept_heads=HEADS, inner_sizes=(32, 0), spans=SPANS)
    text = json.dumps(config.to_hugging_face())
    assert ReaderConfig.from_hugging_face(json.loads(text)) == config
    assert config.heads_of(0) == (0, 3)
    assert config.inner_of(1) == 0
    assert config.spans_of(2) == (0, 1)


def test_a_whole_network_says_nothing_of_compression() -> None:
    assert not [name for name in CONFIG.to_hugging_face() if name.startswith("elma")]
    assert CONFIG.heads_of(1) == (0, 1, 2, 3)
    assert CONFIG.inner_of(1) == 32
    assert CONFIG.spans_of(4) == (512,) * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kept_heads": ((0,),)}, "kept_heads has 1 entries"),
        ({"kept_heads": ((0, 0), ())}, "kept_heads of group 0"),
        ({"kept_heads": ((0,), (4,))}, "kept_heads of group 1"),
        ({"inner_sizes": (32,)}, "inner_sizes has 1 entries"),
        ({"inner_sizes": (33, 1)}, "inner_sizes of group 0"),
        ({"inner_sizes": (1, -1)}, "inner_sizes of group 1"),
        ({"spans": ((1, 1, 1, 1),)}, "spans has 1 entries"),
        ({"spans": ((1, 1, 1, 1),) * 3 + ((1,),)}, "spans of layer 4"),
        ({"spans": ((1, 1, 1, -1),) * 4}, "spans of layer 1"),
        ({"kept_heads": HEADS, "spans": ((1, 1),) * 4}, "spans of layer 3"),
    ],
)
def test_lists_that_do_not_fit_are_refused(
    changes: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ModelFolderError, match=message):
        replace(CONFIG, **changes)


@pytest.mark.parametrize(
    "values",
    [
        {"elma_heads": 3},
        {"elma_heads": [1, 2]},
        {"elma_heads": [["0"], []]},
        {"elma_inner_sizes": "32"},
        {"elma_inner_sizes": [32.0, 1]},
        {"elma_spans": [[True]]},
    ],
)
def test_malformed_lists_in_a_config_file_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ModelFolderError, match=next(iter(values))):
        ReaderConfig.from_hugging_face({**CONFIG.to_hugging_face(), **values})
