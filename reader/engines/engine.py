"""The interface between the reader and whatever computes its layers.

In: token ids or states. Out: states after later layers, and exits' logits. Neighbours: `Reader`
owns an engine and asks it; `torch_engine` and `onnx_engine` implement this; `choosing` picks one.

What every engine promises, and `tests/reader/engines` holds against the reference network:

    - rows are float32 between layers; a lower precision acts inside matrix products only;
    - a window's result does not depend on what else is in its batch (beyond rounding);
    - running to layer k, `states`, `pack` and the rest equals running through, for every k.

Shapes: B windows, T_i tokens of window i, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from reader.arrays import FloatArray
from reader.config import ReaderConfig
from reader.states import StateBatch


@dataclass(frozen=True)
class EngineChoice:
    """Which engine computes, how, and the sentence that says why (`elma doctor` shows it)."""

    name: str  # "torch" or "onnx"
    precision: str  # "fp32", "bf16" or "int8": of matrix products
    threads: int
    reason: str = ""
    device: str = "cpu"  # "cuda" where torch computes on a GPU


@dataclass(frozen=True)
class ExitScores:
    """What the exit behind a layer says of a batch."""

    logits: FloatArray  # [sum of T_i, 2], start and end of every token, unmasked
    certainty: FloatArray  # [B], the learned head's logit that this exit is right


class Engine(Protocol):
    """Runs a reader's layers. Layers are numbered 1..layers; layer 0 is the embedding."""

    @property
    def config(self) -> ReaderConfig:
        """Sizes of the network."""
        ...

    @property
    def choice(self) -> EngineChoice:
        """What it is."""
        ...

    def embed(
        self, token_ids: Sequence[Sequence[int]], question_tokens: Sequence[int]
    ) -> StateBatch:
        """The state after layer 0 of B windows."""
        ...

    def run(self, batch: StateBatch, from_layer: int, to_layer: int) -> StateBatch:
        """Layers `from_layer + 1 .. to_layer`."""
        ...

    def run_mixed(self, batch: StateBatch, layers: Sequence[int]) -> StateBatch:
        """One layer of each window: window i runs layer `layers[i]`.

        All of these layers share one parameter group; their attention spans may differ.
        """
        ...

    def exit_scores(self, batch: StateBatch, layer: int) -> ExitScores:
        """The exit behind `layer`."""
        ...

    def select(self, batch: StateBatch, windows: Sequence[int]) -> StateBatch:
        """Some windows, in the given order, in memory of their own."""
        ...

    def join(self, batches: Sequence[StateBatch]) -> StateBatch:
        """The windows of several batches, one after another."""
        ...

    def pack(self, states: Sequence[FloatArray], question_tokens: Sequence[int]) -> StateBatch:
        """Windows' states `[T_i, H]` as a batch; raises `StateShapeError`."""
        ...

    def states(self, batch: StateBatch) -> list[FloatArray]:
        """Each window's state `[T_i, H]`, in memory of its own."""
        ...


def check_one_group(config: ReaderConfig, layers: Sequence[int]) -> int:
    """The parameter group that all of `layers` share; raises `ValueError` when they do not."""
    groups = {config.group_of(layer) for layer in layers}
    if len(groups) != 1:
        raise ValueError(f"layers {sorted(set(layers))} do not share one parameter group")
    return groups.pop()


def check_layers(config: ReaderConfig, from_layer: int, to_layer: int) -> None:
    """Raise `ValueError` unless the reader can run `from_layer + 1 .. to_layer`."""
    if not 0 <= from_layer <= to_layer <= config.layers:
        raise ValueError(
            f"cannot run from layer {from_layer} to {to_layer}; "
            f"this reader has layers 0..{config.layers}"
        )
