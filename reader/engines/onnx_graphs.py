"""A parameter group as a graph that ONNX Runtime runs: one layer over one window.

In: `GroupWeights`. Out: a serialised model with the weights inside. Neighbours: `onnx_engine` makes
sessions of these; `torch_engine` is the same mathematics.

int8 is written out rather than left to `DynamicQuantizeMatMul`, which takes one scale for a whole
matrix: here every row (token) of activations has its own, as in `torch_linear`, and the sums are
exact. LayerNormalization is the plain operator: the fused SkipLayerNormalization takes ten times
as long on a CPU (275 against 25 us for 160 x 384).

Shapes: T tokens, H hidden, N heads left, D head size, I inputs and O outputs of a linear map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from reader.config import ReaderConfig
from reader.engines.group_weights import GroupWeights, Matrix, NormVectors

_MICROSOFT = "com.microsoft"
_OPSETS = {"": 20, _MICROSOFT: 1}
_IR_VERSION = 9  # that of opset 20
ZERO_POINT = 128  # codes of activations are unsigned; this one is 0
_TINY = 1e-20


@dataclass(frozen=True)
class Arithmetic:
    """How linear maps are computed."""

    precision: str  # "fp32" or "int8"
    activation_levels: int  # the largest code of an activation


@dataclass
class Graph:
    """A graph under construction: every method adds operators and returns their output's name."""

    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """A tensor that is part of the model."""
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def apply(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """One operator with one output."""
        return self.apply_many(operator, 1, *inputs, domain=domain, **attributes)[0]

    def apply_many(
        self, operator: str, outputs: int, *inputs: str, domain: str = "", **attributes: Any
    ) -> list[str]:
        """One operator with several outputs."""
        names = [f"v{len(self.nodes)}_{output}" for output in range(outputs)]
        self.nodes.append(
            helper.make_node(operator, list(inputs), names, domain=domain, **attributes)
        )
        return names

    def serialise(self, inputs: dict[str, Sequence[str | int]], output: str) -> bytes:
        """The model, with float32 inputs of the given shapes (a name is any size)."""
        graph = helper.make_graph(
            self.nodes,
            "elma",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
                for name, shape in inputs.items()
            ],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        serialised: bytes = model.SerializeToString()
        return serialised


def layer_model(
    weights: GroupWeights, config: ReaderConfig, arithmetic: Arithmetic, *, limited: bool
) -> bytes:
    """One layer: input `rows [T, H]`, output the rows after it.

    `limited` adds the inputs `bias [N, T, T]` (0 where a head sees, else very low) and
    `gain [N, 1, 1]` (0 silences a head).
    """
    graph = Graph()
    inputs: dict[str, Sequence[str | int]] = {"rows": ("T", config.hidden_size)}
    if limited:
        inputs |= {"bias": (len(weights.heads), "T", "T"), "gain": (len(weights.heads), 1, 1)}
    rows = "rows"
    mixed = _attention(graph, rows, weights, config, arithmetic, limited=limited)
    attended = _linear(graph, mixed, weights.attention_output, arithmetic)
    rows = _norm(graph, graph.apply("Add", rows, attended), weights.attention_norm, config)
    inner = None
    if 0 not in weights.up.shape:
        act = config.hidden_act
        inner = _linear(graph, rows, weights.up, arithmetic, activation=act)
    after = _linear(graph, inner, weights.down, arithmetic)
    rows = _norm(graph, graph.apply("Add", rows, after), weights.output_norm, config)
    return graph.serialise(inputs, rows)


def embedding_model(
    norm: NormVectors, project: Matrix, config: ReaderConfig, arithmetic: Arithmetic
) -> bytes:
    """Summed embeddings `rows [T, E]` to the state after layer 0."""
    graph = Graph()
    rows = _norm(graph, "rows", norm, config)
    return graph.serialise(
        {"rows": ("T", config.embedding_size)}, _linear(graph, rows, project, arithmetic)
    )


def product_model(codes: NDArray[np.int8]) -> bytes:
    """`rows [T, I]` of whole numbers 0..255 times `codes [O, I]`: shows how sums of int8 products
    come out on this processor."""
    graph = Graph()
    unsigned = graph.apply("Cast", "rows", to=TensorProto.UINT8)
    output = _multiply(graph, unsigned, codes, np.ones(len(codes), dtype=np.float32))
    return graph.serialise({"rows": ("T", codes.shape[1])}, output)


def _attention(
    graph: Graph,
    rows: str,
    weights: GroupWeights,
    config: ReaderConfig,
    arithmetic: Arithmetic,
    *,
    limited: bool,
) -> str | None:
    """Rows to the heads' outputs `[T, N * D]`; None without heads."""
    heads, size = len(weights.heads), config.head_size
    if not heads:
        return None
    fused = _linear(graph, rows, weights.query_key_value, arithmetic)
    shape = graph.constant(np.array([-1, 3, heads, size], dtype=np.int64))
    parts = graph.apply("Transpose", graph.apply("Reshape", fused, shape), perm=[1, 2, 0, 3])
    query, key, value = graph.apply_many("Split", 3, parts, axis=0, num_outputs=3)  # [1, N, T, D]
    scores = graph.apply(
        "FusedMatMul", query, key, domain=_MICROSOFT, transB=1, alpha=1 / math.sqrt(size)
    )  # [1, N, T, T]
    if limited:
        scores = graph.apply("Add", scores, "bias")
    mixed = graph.apply("MatMul", graph.apply("Softmax", scores, axis=-1), value)
    if limited:
        mixed = graph.apply("Mul", mixed, "gain")
    flat = graph.constant(np.array([-1, heads * size], dtype=np.int64))
    return graph.apply("Reshape", graph.apply("Transpose", mixed, perm=[0, 2, 1, 3]), flat)


def _linear(
    graph: Graph,
    rows: str | None,
    matrix: Matrix,
    arithmetic: Arithmetic,
    *,
    activation: str = "",
) -> str:
    """`activate(rows @ weight.T + bias)`; of an empty matrix the bias alone, broadcast by what
    follows."""
    bias = graph.constant(matrix.bias)
    if rows is None or 0 in matrix.shape:
        return bias
    if arithmetic.precision == "int8":
        product = _int8_product(graph, rows, matrix, arithmetic.activation_levels)
    else:
        weight = graph.constant(np.ascontiguousarray(matrix.floats().T))  # [I, O]
        product = graph.apply("MatMul", rows, weight)
    if activation == "gelu":
        return graph.apply("BiasGelu", product, bias, domain=_MICROSOFT)
    if activation == "gelu_new":
        return graph.apply("FastGelu", product, bias, domain=_MICROSOFT)
    summed = graph.apply("Add", product, bias)
    return graph.apply("Relu", summed) if activation == "relu" else summed


def _int8_product(graph: Graph, rows: str, matrix: Matrix, levels: int) -> str:
    """`rows @ weight.T` with one scale a row of activations, `[T, I]` to `[T, O]`."""
    axis = graph.constant(np.array([1], dtype=np.int64))
    largest = graph.apply("ReduceMax", graph.apply("Abs", rows), axis, keepdims=1)
    largest = graph.apply("Max", largest, graph.constant(np.float32(_TINY)))
    scale = graph.apply("Mul", largest, graph.constant(np.float32(1 / levels)))  # [T, 1]
    flat = graph.apply("Squeeze", scale, axis)  # [T]
    zero_points = graph.apply(
        "Expand",
        graph.constant(np.array([ZERO_POINT], dtype=np.uint8)),
        graph.apply("Shape", flat),
    )
    unsigned = graph.apply("QuantizeLinear", rows, flat, zero_points, axis=0)
    codes, scales = matrix.codes()
    return graph.apply("Mul", _multiply(graph, unsigned, codes, scales), scale)


def _multiply(graph: Graph, unsigned: str, codes: NDArray[np.int8], scales: NDArray[Any]) -> str:
    return graph.apply(
        "MatMulIntegerToFloat",
        unsigned,
        graph.constant(np.ascontiguousarray(codes.T)),  # [I, O]
        graph.constant(np.float32(1)),
        graph.constant(scales),
        graph.constant(np.uint8(ZERO_POINT)),
        domain=_MICROSOFT,
    )


def _norm(graph: Graph, rows: str, vectors: NormVectors, config: ReaderConfig) -> str:
    weight, bias = graph.constant(vectors.weight), graph.constant(vectors.bias)
    return graph.apply(
        "LayerNormalization", rows, weight, bias, axis=-1, epsilon=config.layer_norm_eps
    )
