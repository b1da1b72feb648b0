"""The reader's layers in ONNX Runtime, for devices without torch.

In: token ids or states. Out: states and exit logits, all numpy. Neighbours: `onnx_graphs` makes the
graphs, `group_weights` reads the tensors.

One session a parameter group, so that a question can stop behind any layer; one window a run, so
that a window cannot depend on its neighbours and nothing is padded. All sessions of the process
share one pool of threads.

Shapes: R rows (tokens of all windows of a batch), T tokens of one window, H hidden.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from reader.arrays import FloatArray
from reader.engines.engine import EngineChoice, ExitScores, check_layers, check_one_group
from reader.engines.group_weights import (
    Matrix,
    TokenTable,
    read_exit,
    read_group,
    read_norm,
)
from reader.engines.onnx_graphs import Arithmetic, embedding_model, layer_model, product_model
from reader.engines.silent_onnxruntime import onnxruntime
from reader.engines.visibility import visible_tokens
from reader.errors import EngineError
from reader.states import StateBatch, check_states
from reader.weights import ModelTensors

_POOL: list[int] = []  # the size of the pool, once it is made
_POOL_LOCK = threading.Lock()
HIDDEN = -1e4  # added to the score of what a head must not see


class OnnxEngine:
    """`Engine` on ONNX Runtime; see `engine.Engine` for what it promises."""

    def __init__(self, tensors: ModelTensors, choice: EngineChoice) -> None:
        """Build a session a group; raises `ModelFolderError`, `EngineError`."""
        threads = share_threads(choice.threads)
        self.config, self.choice = tensors.config, replace(choice, threads=threads)
        if choice.precision not in ("fp32", "int8"):
            raise EngineError(f"the onnx engine has fp32 and int8, not {choice.precision}")
        arithmetic = Arithmetic(choice.precision, activation_levels())
        self._tokens = TokenTable(tensors)
        project = Matrix.read(tensors, "embeddings.project")
        norm = read_norm(tensors, "embeddings.norm")
        embedding = embedding_model(norm, project, self.config, arithmetic)
        self._embedding = _session(embedding)
        self._heads: list[tuple[int, ...]] = []
        self._layers: list[Any] = []  # a session each group
        for group in range(self.config.groups):  # one at a time, so that memory stays low
            weights = read_group(tensors, group)
            self._heads.append(weights.heads)
            limited = self._is_limited(group)
            model = layer_model(weights, self.config, arithmetic, limited=limited)
            self._layers.append(_session(model))
        self._exits = [read_exit(tensors, layer + 1) for layer in range(self.config.layers)]

    def embed(
        self, token_ids: Sequence[Sequence[int]], question_tokens: Sequence[int]
    ) -> StateBatch:
        """See `Engine.embed`."""
        summed = self._tokens.sums(token_ids, question_tokens)  # [R, E]
        rows = _run(self._embedding, {"rows": summed})
        return StateBatch(rows, tuple(map(len, token_ids)), tuple(question_tokens))

    def run(self, batch: StateBatch, from_layer: int, to_layer: int) -> StateBatch:
        """See `Engine.run`."""
        check_layers(self.config, from_layer, to_layer)
        for layer in range(from_layer + 1, to_layer + 1):
            batch = self.run_mixed(batch, [layer] * len(batch))
        return batch

    def run_mixed(self, batch: StateBatch, layers: Sequence[int]) -> StateBatch:
        """See `Engine.run_mixed`."""
        group = check_one_group(self.config, layers)
        parts = [
            self._run_window(group, layers[window], batch.rows[first:last], heads)
            for window, ((first, last), heads) in enumerate(
                zip(pairwise(batch.boundaries), batch.question_tokens, strict=True)
            )
        ]
        return batch.with_rows(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def exit_scores(self, batch: StateBatch, layer: int) -> ExitScores:
        """See `Engine.exit_scores`."""
        head = self._exits[layer - 1]
        scores = batch.rows @ head.floats().T + head.bias  # [R, 3]
        return ExitScores(scores[:, :2], scores[list(batch.boundaries[:-1]), 2])

    def select(self, batch: StateBatch, windows: Sequence[int]) -> StateBatch:
        """See `Engine.select`."""
        bounds = batch.boundaries
        return StateBatch(
            np.concatenate([batch.rows[bounds[each] : bounds[each + 1]] for each in windows]),
            tuple(batch.lengths[window] for window in windows),
            tuple(batch.question_tokens[window] for window in windows),
        )

    def join(self, batches: Sequence[StateBatch]) -> StateBatch:
        """See `Engine.join`."""
        return StateBatch(
            np.concatenate([batch.rows for batch in batches]),
            tuple(length for batch in batches for length in batch.lengths),
            tuple(head for batch in batches for head in batch.question_tokens),
        )

    def pack(self, states: Sequence[FloatArray], question_tokens: Sequence[int]) -> StateBatch:
        """See `Engine.pack`."""
        check_states(states, question_tokens)
        rows = np.concatenate(states).astype(np.float32, copy=False)
        return StateBatch(rows, tuple(map(len, states)), tuple(question_tokens))

    def states(self, batch: StateBatch) -> list[FloatArray]:
        """See `Engine.states`."""
        return [batch.rows[first:last].copy() for first, last in pairwise(batch.boundaries)]

    def _run_window(
        self, group: int, layer: int, rows: FloatArray, question_tokens: int
    ) -> FloatArray:
        inputs: dict[str, FloatArray] = {"rows": rows}
        if self._is_limited(group):
            every = self.config.spans_of(layer)
            spans = [every[head] for head in self._heads[group]]
            visible = visible_tokens(spans, len(rows), question_tokens)
            shape = (len(spans), len(rows), len(rows))
            hidden = np.zeros(shape, np.bool_) if visible is None else ~visible
            inputs["bias"] = hidden * np.float32(HIDDEN)
            inputs["gain"] = np.array([[[float(span > 0)]] for span in spans], dtype=np.float32)
        return _run(self._layers[group], inputs)

    def _is_limited(self, group: int) -> bool:
        """Whether a head that is left in the group sees less than everything in some layer."""
        config = self.config
        return any(
            config.spans_of(layer)[head] < config.max_positions
            for layer in range(1, config.layers + 1)
            if config.group_of(layer) == group
            for head in self._heads[group]
        )


@cache
def activation_levels() -> int:
    """The largest code of an activation: 127, or 63 where the processor adds pairs of 8-bit
    products in 16 bits and a sum could overflow (x86 before VNNI). Call `share_threads` before."""
    codes = np.full((16, 256), 127, dtype=np.int8)
    session = _session(product_model(codes))
    product = _run(session, {"rows": np.full((4, 256), 255, np.float32)})
    return 127 if bool((product == 127 * 127 * 256).all()) else 63


def share_threads(threads: int) -> int:
    """Threads and working memory that all sessions of this process have in common; returns how
    many threads there are.

    ONNX Runtime makes both once, so the first engine of a process decides. Without an arena glibc
    returns every large buffer to the system and the page faults take as long as the products;
    one arena a session would keep every session's peak.
    """
    with _POOL_LOCK:
        if not _POOL:
            onnxruntime.set_global_thread_pool_sizes(threads, 1)
            memory = onnxruntime.OrtMemoryInfo(
                "Cpu",
                onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
                0,
                onnxruntime.OrtMemType.DEFAULT,
            )
            # One region that a window of 384 tokens fits in, then small steps: regions of the size
            # that each length of window asks for took 28 MB more.
            arena = onnxruntime.OrtArenaCfg(
                {
                    "arena_extend_strategy": 0,
                    "initial_chunk_size_bytes": 24 << 20,
                    "max_power_of_two_extend_bytes": 8 << 20,
                }
            )
            onnxruntime.create_and_register_allocator(memory, arena)
            _POOL.append(threads)
        return _POOL[0]


def _session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.enable_mem_pattern = False  # a plan for every length of window would be kept
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own types have no common ancestor
        raise EngineError(f"onnxruntime refuses the graph: {error}") from error
    # It keeps the file's bytes for a fallback to other providers; there are none, and they are as
    # many as the weights.
    session._model_bytes = None
    return session


def _run(session: Any, inputs: Mapping[str, FloatArray]) -> FloatArray:
    output: FloatArray = session.run(None, dict(inputs))[0]
    return output
