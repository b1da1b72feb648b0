"""The process's memory: one heap, what a question needed given back when there is none, and one
word, `MemoryError`, for its end.

Output: less resident memory; no result depends on it. Neighbours: `service` calls `keep_small`
before anything is loaded, `agent` calls `give_back` after the model and when it is idle, `Reader`
translates what the engines say when memory ends.

glibc keeps freed memory: for every thread that ever allocated a heap of its own, and in each the
holes that large arrays left. For a reader of some 100 MB that is as much again after a long
passage. Elsewhere (musl, macOS) both functions do nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

M_ARENA_MAX = -8
"""The parameter's number in glibc's malloc.h."""
MATRIX_SHAPES = 64
"""Of 1,024 by default. A layer has four shapes for each multiple of 16 rows; what was dropped is
compiled again in about a millisecond. Saves 10 MB with elma-small and 40 MB with elma-fast."""
HEAPS = 1
"""One thread computes; the others hardly allocate, so they do not wait for each other."""
_SHORTAGES = (
    "can't allocate memory",  # torch on a processor: DefaultCPUAllocator
    "out of memory",  # torch on an accelerator
    "failed to allocate memory",  # onnxruntime
    "bad_alloc",
    "can't start new thread",
)
"""What engines say, in errors of no type of their own, when the system gives them no memory."""
_CAUSES_READ = 8


@contextmanager
def memory_errors() -> Iterator[None]:
    """Also a decorator. Raises MemoryError for every error inside that comes of a want of memory,
    which says nothing about a model; every other error as it is."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, is the system's refusal to give memory."""
    cause: BaseException | None = error
    for _ in range(_CAUSES_READ):
        if cause is None:
            return False
        if isinstance(cause, MemoryError):
            return True
        if isinstance(cause, OSError) and cause.errno == errno.ENOMEM:
            return True
        # Only errors of the engines: a message of ours may quote anything.
        if isinstance(cause, RuntimeError) or type(cause).__module__.startswith("onnxruntime"):
            text = str(cause).lower()
            if any(shortage in text for shortage in _SHORTAGES):
                return True
        cause = cause.__cause__
    return False


def keep_small() -> bool:
    """From now on all threads share one heap; whether this C library knows how.

    torch's oneDNN, if it is loaded later, keeps the code of fewer matrix shapes.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(MATRIX_SHAPES))
    with suppress(OSError, AttributeError):
        return bool(_c_library().mallopt(M_ARENA_MAX, HEAPS))
    return False


def give_back() -> bool:
    """Return free memory to the system, which takes some milliseconds; whether any was."""
    with suppress(OSError, AttributeError):
        return bool(_c_library().malloc_trim(0))
    return False


def resident_bytes() -> int | None:
    """The resident memory of this process; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return None


def free_bytes() -> int | None:
    """What the system can still give; None where it does not tell."""
    with suppress(OSError, ValueError, IndexError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(each for each in lines if each.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    return None


def _c_library() -> Any:
    """The C library that this process already uses."""
    return ctypes.CDLL(None)
