"""A want of memory is `MemoryError`, whatever an engine calls it; and nothing else is."""

from __future__ import annotations

import errno

import pytest
import torch

from reader.errors import EngineError
from reader.memory import is_out_of_memory, memory_errors

MORE_THAN_ANY_MACHINE = 1 << 50


class EngineFailure(Exception):
    """What onnxruntime raises, whose types have no common ancestor."""


EngineFailure.__module__ = "onnxruntime.capi.onnxruntime_pybind11_state"


def test_what_torch_says_when_the_system_refuses_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="allocate"), memory_errors():
        torch.empty(MORE_THAN_ANY_MACHINE)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("can't start new thread"),
        EngineFailure("Failed to allocate memory for requested buffer of size 1024"),
    ],
)
def test_every_engines_word_is_known_also_as_the_cause_of_ours(error: Exception) -> None:
    assert is_out_of_memory(error)
    ours = EngineError("onnxruntime refuses the graph")
    ours.__cause__ = error
    assert is_out_of_memory(ours)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOSPC, "No space left on device"),
        EngineError("the folder out of memory has no config.json"),
    ],
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, memory_errors():
        raise error
    assert raised.value is error
