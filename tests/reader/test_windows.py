"""Windows cover the passage, and offsets point at its characters, whatever they are."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from reader.errors import EmptyPassage, EmptyQuestion, PassageTooLong, QuestionTooLong
from reader.windows import MAX_PASSAGE_CHARACTERS, WindowSplitter
from tests.tiny import make_tiny_tokenizer


@pytest.fixture(scope="module")
def splitter(tmp_path_factory: pytest.TempPathFactory) -> WindowSplitter:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make_tiny_tokenizer(path)
    return WindowSplitter(path)


def test_a_short_passage_is_one_window(splitter: WindowSplitter) -> None:
    (window,) = splitter.split("who was the keeper?", "the keeper was the king")
    assert window.token_ids[0] == 2
    assert window.token_ids[window.question_tokens - 1] == 3
    assert window.token_ids[-1] == 3
    assert window.offsets[0] == (0, 0)
    assert len(window.offsets) == len(window)


def test_a_long_passage_is_covered_with_the_stride_in_common(splitter: WindowSplitter) -> None:
    passage = " ".join(f"tower {number}" for number in range(700))
    windows = splitter.split("who?", passage)
    assert len(windows) > 3
    assert all(len(window) <= 384 for window in windows)
    covered: set[int] = set()
    for window in windows:
        for start, end in window.offsets[window.question_tokens : -1]:
            covered.update(range(start, end))
    assert covered == {place for place, letter in enumerate(passage) if letter != " "}
    for left, right in itertools.pairwise(windows):
        shared = set(left.offsets[left.question_tokens : -1]) & set(
            right.offsets[right.question_tokens : -1]
        )
        assert len(shared) == 128


def test_passage_tokens_that_fill_a_window_exactly_make_one(splitter: WindowSplitter) -> None:
    room = 384 - len(splitter.split("who?", "x")[0].token_ids) + 1
    assert len(splitter.split("who?", "the " * room)) == 1
    assert len(splitter.split("who?", "the " * (room + 1))) == 2


@settings(max_examples=150, deadline=None)
@given(passage=st.text(min_size=1, max_size=120))
def test_offsets_stay_inside_any_unicode_passage(splitter: WindowSplitter, passage: str) -> None:
    try:
        windows = splitter.split("who?", passage)
    except EmptyPassage:
        return
    for window in windows:
        before = 0
        for start, end in window.offsets[window.question_tokens : -1]:
            assert 0 <= start < end <= len(passage)
            assert start >= before
            before = start


@pytest.mark.parametrize(
    ("passage", "answer"),
    [
        ("Der König wohnt in Zürich.", "Zürich"),
        ("the café 🗼 was built 1771", "1771"),
        ("naïve Ångström ﬁne 東京 tower", "東京"),
    ],
)
def test_offsets_give_back_the_original_letters(
    splitter: WindowSplitter, passage: str, answer: str
) -> None:
    (window,) = splitter.split("what?", passage)
    first = passage.index(answer)
    offsets = window.offsets[window.question_tokens : -1]
    assert first in {start for start, _ in offsets}
    assert first + len(answer) in {end for _, end in offsets}


def test_bad_input_is_named(splitter: WindowSplitter) -> None:
    with pytest.raises(EmptyQuestion):
        splitter.split("  \n", "text")
    with pytest.raises(EmptyPassage):
        splitter.split("who?", " ")
    with pytest.raises(PassageTooLong, match=str(MAX_PASSAGE_CHARACTERS)):
        splitter.split("who?", "a" * 200_000)
    with pytest.raises(QuestionTooLong, match="shorten"):
        splitter.split("who " * 70, "text")


def test_sentence_piece_tokens_do_not_count_the_space_before_them(tmp_path: Path) -> None:
    pieces = ["<unk>", "[CLS]", "[SEP]", "▁the", "▁tower", "▁fell", "▁"]  # as ALBERT's own
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    passage = "the tower fell"
    (window,) = WindowSplitter(tmp_path / "tokenizer.json").split("the tower", passage)
    words = [passage[first:last] for first, last in window.offsets[window.question_tokens : -1]]
    assert words == ["the", "tower", "fell"]
