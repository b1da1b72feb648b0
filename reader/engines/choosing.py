"""Which engine computes on this machine, in which precision, and why.

In: what was asked for ("auto" or a name) and a model folder. Out: a loaded engine. Neighbours:
`Reader.load` calls this; `elma doctor` shows the reason.

"auto" takes torch where it is installed, else onnx; and the precision that is fastest there without
losing answers (docs/decisions/0013-engines.md has the figures):

    torch on a GPU                                     bf16
    torch, int8 products at all                        int8 (7-bit activations before VNNI)
    torch, elsewhere                                   bf16 in the processor, else fp32
    onnx, int8 products are exact                      int8
    onnx, elsewhere                                    fp32

"auto" looks at what is installed, and never goes on to the other engine because the first one fails
to compute: the answers, the pace and the memory would be others than those that were measured and
watched, and nobody would know. A service whose engine fails ends, and says so (`cannot_compute`).
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from reader.engines.engine import Engine, EngineChoice
from reader.engines.names import ENGINES, PRECISIONS
from reader.errors import EngineError
from reader.weights import ModelTensors

_NEEDED = {"torch": ("torch",), "onnx": ("onnx", "onnxruntime")}
_PRECISIONS_OF = {"torch": ("fp32", "bf16", "int8"), "onnx": ("fp32", "int8")}


def load_engine(
    folder: Path, *, engine: str = "auto", precision: str = "auto", threads: int | None = None
) -> Engine:
    """The engine for a model folder; raises `EngineError` and `ModelFolderError`."""
    choice = choose_engine(engine, precision, threads)
    tensors = ModelTensors.open(folder)
    if choice.name == "torch":
        from reader.engines.torch_engine import TorchEngine  # torch is heavy, and optional

        return TorchEngine(tensors, choice)
    from reader.engines.onnx_engine import OnnxEngine  # optional, and torch may be missing

    return OnnxEngine(tensors, choice)


def choose_engine(engine: str, precision: str, threads: int | None = None) -> EngineChoice:
    """What to compute with; raises `EngineError` for what is unknown, not installed, or not
    possible on this machine."""
    if engine not in ("auto", *ENGINES):
        raise EngineError(f"unknown engine {engine!r}; use auto, {' or '.join(ENGINES)}")
    if precision not in ("auto", *PRECISIONS):
        raise EngineError(f"unknown precision {precision!r}; use auto, {', '.join(PRECISIONS)}")
    threads = threads or default_threads()
    name = engine if engine != "auto" else _installed_engine()
    missing = _missing(name)
    if missing:
        raise EngineError(f"{missing} is not installed; pip install 'elma-qa[{name}]'")
    if precision not in ("auto", *_PRECISIONS_OF[name]):
        raise EngineError(
            f"the {name} engine has no {precision}; use {' or '.join(_PRECISIONS_OF[name])}"
        )
    if name == "onnx":
        return _choose_onnx(precision, threads)
    return _choose_torch(precision, threads)


def cannot_compute(choice: EngineChoice, fault: str) -> str:
    """What to tell a person whose engine was loaded and fails; `fault` is its kind and place."""
    other = "onnx" if choice.name == "torch" else "torch"
    missing = f" (pip install 'elma-qa[{other}]')" if _missing(other) else ""
    return (
        f"the engine {choice.name} in {choice.precision} cannot compute on this machine: {fault}; "
        f'set engine = "{other}"{missing}, or lift what forbids it, such as '
        "MemoryDenyWriteExecute=yes for torch; `elma doctor` tries the engine that is set"
    )


def default_threads() -> int:
    """OMP_NUM_THREADS where it is set, as other programs honour it; else all processors."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdecimal() and int(named) else os.cpu_count() or 1


def _choose_torch(precision: str, threads: int) -> EngineChoice:
    import torch

    from reader.engines import torch_linear

    has_int8 = torch_linear.can_multiply_int8()
    if precision == "int8" and not has_int8:
        raise EngineError("torch has no int8 products on this processor; use fp32 or onnx")
    if precision != "int8" and torch.cuda.is_available():
        chosen = "bf16" if precision == "auto" else precision
        return EngineChoice("torch", chosen, threads, "torch finds a GPU", "cuda")
    if precision != "auto":
        return EngineChoice("torch", precision, threads, f"{precision} was asked for")
    if has_int8:
        bits = 8 if torch_linear.activation_levels() == 127 else 7
        reason = f"int8 products are the fastest here, with activations of {bits} bits"
        return EngineChoice("torch", "int8", threads, reason)
    if torch_linear.can_prepack(torch.bfloat16):
        reason = "this processor multiplies bfloat16, and torch has no int8 products for it"
        return EngineChoice("torch", "bf16", threads, reason)
    reason = "torch has neither int8 nor bfloat16 products for this processor"
    return EngineChoice("torch", "fp32", threads, reason)


def _choose_onnx(precision: str, threads: int) -> EngineChoice:
    if precision != "auto":
        return EngineChoice("onnx", precision, threads, f"{precision} was asked for")
    from reader.engines.onnx_engine import activation_levels, share_threads

    share_threads(threads)
    if activation_levels() == 127:
        reason = "this processor sums int8 products exactly, the fastest that onnxruntime has here"
        return EngineChoice("onnx", "int8", threads, reason)
    return EngineChoice("onnx", "fp32", threads, "int8 products overflow on this processor")


def _installed_engine() -> str:
    for name in _NEEDED:
        if not _missing(name):
            return name
    raise EngineError(
        "no engine is installed; pip install 'elma-qa[torch]', "
        "or 'elma-qa[edge]' on a device with little memory"
    )


def _missing(name: str) -> str:
    """The first package that an engine lacks, or ""."""
    absent = (each for each in _NEEDED[name] if importlib.util.find_spec(each) is None)
    return next(absent, "")
