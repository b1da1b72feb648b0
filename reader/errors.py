"""Every failure of the reader, as one tree.

ReaderError
├── ModelFolderError        a model folder is missing, incomplete or does not fit together
├── EngineError             what should compute is not installed, or cannot do what was asked
├── CanaryError             canary questions that cannot be read, or are out of bounds
├── InputError              what the caller asked cannot be read
│   ├── EmptyQuestion
│   ├── EmptyPassage
│   ├── QuestionTooLong
│   └── PassageTooLong
└── StateError              a hidden state cannot be encoded, decoded or resumed
    ├── UnknownCodec
    └── StateShapeError
"""

from __future__ import annotations


class ReaderError(Exception):
    """Root of the tree; the message says what failed, where, and what to do."""


class ModelFolderError(ReaderError):
    """A model folder is missing, incomplete, or its parts do not fit together."""


class EngineError(ReaderError):
    """An engine is not installed, or this machine cannot do the precision that was asked for."""


class CanaryError(ReaderError):
    """A file of canary questions is malformed or past its bounds, or none could be made."""


class InputError(ReaderError):
    """The question or the passage cannot be read."""


class EmptyQuestion(InputError):
    """The question holds nothing but white space."""


class EmptyPassage(InputError):
    """The passage holds nothing but white space."""


class QuestionTooLong(InputError):
    """The question has more tokens than a window leaves room for."""


class PassageTooLong(InputError):
    """The passage has more characters than the reader accepts."""


class StateError(ReaderError):
    """A hidden state cannot be encoded, decoded or resumed."""


class UnknownCodec(StateError):
    """The named state codec is not one of ours."""


class StateShapeError(StateError):
    """A state's bytes do not have the shape, size or range that was promised."""
