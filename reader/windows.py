"""A question and a passage become windows of tokens whose offsets point into the passage.

In: text. Out: `Window`s of at most 384 tokens, `[CLS] question [SEP] passage [SEP]`, a stride of
128 tokens between the starts of neighbours' overlaps. Neighbours: `model` embeds them, `spans`
turns token spans back into text by their offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from reader.errors import (
    EmptyPassage,
    EmptyQuestion,
    ModelFolderError,
    PassageTooLong,
    QuestionTooLong,
)

WINDOW_TOKENS = 384
STRIDE_TOKENS = 128
MAX_QUESTION_TOKENS = 64
MAX_QUESTION_CHARACTERS = 2_000
MAX_PASSAGE_CHARACTERS = 100_000


@dataclass(frozen=True)
class Window:
    """T tokens of one question and a part of its passage.

    `question_tokens` counts the leading `[CLS] question [SEP]`; passage tokens are
    `question_tokens .. T - 2`. `offsets` has T entries: the characters of the original passage
    that a token came from, `(0, 0)` outside the passage.
    """

    index: int
    token_ids: tuple[int, ...]
    question_tokens: int
    offsets: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.token_ids)


class WindowSplitter:
    """Splits questions and passages with a folder's `tokenizer.json`; safe to share by threads."""

    def __init__(
        self,
        tokenizer_file: Path,
        *,
        window_tokens: int = WINDOW_TOKENS,
        stride_tokens: int = STRIDE_TOKENS,
    ) -> None:
        """Raises `ModelFolderError` when the tokenizer is missing or lacks `[CLS]`/`[SEP]`."""
        if not tokenizer_file.is_file():
            raise ModelFolderError(
                f"{tokenizer_file} is missing; save the checkpoint with its fast tokenizer"
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # the Rust tokenizer raises bare Exception
            raise ModelFolderError(f"{tokenizer_file} cannot be read: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._cls, self._sep = self._special("[CLS]"), self._special("[SEP]")
        if not 0 <= stride_tokens < window_tokens - MAX_QUESTION_TOKENS - 3:
            raise ValueError(f"a stride of {stride_tokens} does not fit {window_tokens} tokens")
        self.window_tokens, self.stride_tokens = window_tokens, stride_tokens

    def split(self, question: str, passage: str) -> list[Window]:
        """All windows of one question; every passage token is in at least one.

        Raises `EmptyQuestion`, `EmptyPassage`, `QuestionTooLong`, `PassageTooLong`: text is never
        cut silently.
        """
        _check_text(question, passage)
        asked = self._tokenizer.encode(question.strip(), add_special_tokens=False)
        if len(asked.ids) > MAX_QUESTION_TOKENS:
            raise QuestionTooLong(
                f"the question has {len(asked.ids)} tokens, at most {MAX_QUESTION_TOKENS} fit; "
                "shorten it"
            )
        if not asked.ids:
            raise EmptyQuestion("the question holds nothing that can be read; ask in words")
        read = self._tokenizer.encode(passage, add_special_tokens=False)
        if not read.ids:
            raise EmptyPassage("the passage holds nothing that can be read; give some text")
        head = [self._cls, *asked.ids, self._sep]
        offsets = [_without_spaces(passage, first, last) for first, last in read.offsets]
        return self._windows(head, read.ids, offsets)

    def _windows(
        self, head: list[int], ids: list[int], offsets: list[tuple[int, int]]
    ) -> list[Window]:
        room = self.window_tokens - len(head) - 1
        step = max(1, room - self.stride_tokens)
        outside = [(0, 0)] * len(head)
        windows = []
        for index, first in enumerate(range(0, max(1, len(ids) - self.stride_tokens), step)):
            part = slice(first, first + room)
            windows.append(
                Window(
                    index=index,
                    token_ids=(*head, *ids[part], self._sep),
                    question_tokens=len(head),
                    offsets=(*outside, *offsets[part], (0, 0)),
                )
            )
            if first + room >= len(ids):
                break
        return windows

    def _special(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise ModelFolderError(f"the tokenizer has no {token}; a BERT-style one is needed")
        return int(number)


def _without_spaces(passage: str, first: int, last: int) -> tuple[int, int]:
    """A token's characters less white space around them, which SentencePiece counts in."""
    while first < last - 1 and passage[first].isspace():
        first += 1
    while first < last - 1 and passage[last - 1].isspace():
        last -= 1
    return first, last


def _check_text(question: str, passage: str) -> None:
    if not question.strip():
        raise EmptyQuestion("the question is empty; ask something")
    if not passage.strip():
        raise EmptyPassage("the passage is empty; give the text that holds the answer")
    if len(question) > MAX_QUESTION_CHARACTERS:
        raise QuestionTooLong(
            f"the question has {len(question)} characters, at most {MAX_QUESTION_CHARACTERS}; "
            "shorten it"
        )
    if len(passage) > MAX_PASSAGE_CHARACTERS:
        raise PassageTooLong(
            f"the passage has {len(passage)} characters, at most {MAX_PASSAGE_CHARACTERS}; "
            "split it and ask each part"
        )
