"""Linear maps in PyTorch, one class a precision, all from float32 rows to float32 rows.

In: a `Matrix` of numpy arrays. Out: a callable. Neighbours: `torch_engine` strings them together.

On x86 the weights are laid out once for oneDNN (`mkldnn`), which multiplies float32 twice as fast
as torch's own choice of MKL on an AMD processor, and an activation comes with the product.

int8 (Wu et al. 2020, section 3: symmetric, one scale an output; activations one scale a *row*, so
that a window never depends on its neighbours): `y = codes @ weight_codes.T * row_scale *
output_scale + bias`. Where the processor adds pairs of 8-bit products in 16 bits (x86 before VNNI),
such a sum can overflow; activations then get 7 bits, with which it cannot.

Shapes: R rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from reader.engines.group_weights import Matrix

_GELU_KINDS = {"gelu": "none", "gelu_new": "tanh"}  # torch's names of the two formulas
_EXAMPLE_ROWS = 128  # weights are laid out for about so many rows; others work as well


class Linear(Protocol):
    """`activate(rows @ weight.T + bias)`, `[R, I]` to `[R, O]`, float32."""

    def __call__(self, rows: Tensor) -> Tensor: ...


def make_linear(
    matrix: Matrix, precision: str, device: torch.device, activation: str = ""
) -> Linear:
    """A linear map in a precision, with an activation (`ReaderConfig.hidden_act`) behind it."""
    if 0 in matrix.shape:
        return EmptyLinear(matrix, device)
    if precision == "int8":
        return Int8Linear(matrix, activation)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cpu" and can_prepack(dtype):
        return PackedLinear(matrix, dtype, activation)
    return PlainLinear(matrix, dtype, device, activation)


class EmptyLinear:
    """A map of which pruning has left the bias alone, or nothing."""

    def __init__(self, matrix: Matrix, device: torch.device) -> None:
        self._bias = torch.from_numpy(matrix.bias).to(device)

    def __call__(self, rows: Tensor) -> Tensor:
        """See `Linear`."""
        return self._bias.expand(len(rows), -1)


class PlainLinear:
    """What every device can do."""

    def __init__(
        self, matrix: Matrix, dtype: torch.dtype, device: torch.device, activation: str
    ) -> None:
        self._weight = torch.from_numpy(matrix.floats()).to(device, dtype)
        self._bias = torch.from_numpy(matrix.bias).to(device, dtype)
        self._activate = _activation(activation)

    def __call__(self, rows: Tensor) -> Tensor:
        """See `Linear`."""
        rows = functional.linear(rows.to(self._weight.dtype), self._weight, self._bias)
        return self._activate(rows).float()


class PackedLinear:
    """float32 or bfloat16 with weights laid out for oneDNN, the activation inside the product."""

    def __init__(self, matrix: Matrix, dtype: torch.dtype, activation: str) -> None:
        weight = torch.from_numpy(matrix.floats()).to(dtype)
        self._dtype, self._bias = dtype, torch.from_numpy(matrix.bias).to(dtype)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _EXAMPLE_ROWS)
        fused = "gelu" if activation in _GELU_KINDS else activation or "none"
        self._fused: tuple[str, list[float], str] = (fused, [], _GELU_KINDS.get(activation, ""))

    def __call__(self, rows: Tensor) -> Tensor:
        """See `Linear`."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows.to(self._dtype), self._weight, self._bias, *self._fused
        )
        return product.float()


class Int8Linear:
    """int8 weights and activations, summed exactly in 32 bits."""

    def __init__(self, matrix: Matrix, activation: str) -> None:
        codes, scales = matrix.codes()
        self._levels = activation_levels()
        self._weight = torch.ops.onednn.qlinear_prepack(
            torch.from_numpy(codes), [_EXAMPLE_ROWS, codes.shape[1]]
        )
        self._scales = torch.from_numpy(scales) / self._levels
        self._zeros = torch.zeros(len(scales), dtype=torch.int32)
        self._bias = torch.from_numpy(matrix.bias)
        self._activate = _activation(activation)

    def __call__(self, rows: Tensor) -> Tensor:
        """See `Linear`."""
        largest = rows.abs().amax(dim=1, keepdim=True).clamp_(min=1e-20)  # [R, 1]
        codes = (rows * (self._levels / largest)).round_().to(torch.int8)
        unsigned = codes.view(torch.uint8).bitwise_xor_(128)  # + 128, which 8 bits wrap around
        product = _multiply(unsigned, self._weight, self._scales, self._zeros)  # [R, O]
        return self._activate(torch.addcmul(self._bias, product, largest))


@cache
def can_prepack(dtype: torch.dtype) -> bool:
    """Whether this torch on this processor multiplies with weights laid out beforehand."""
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype), 16)
        rows = torch.zeros(16, 16, dtype=dtype)
        torch.ops.mkldnn._linear_pointwise(rows, weight, rows[0], "none", [], "")
    except (AttributeError, NotImplementedError, RuntimeError):  # what torch says of a missing one
        return False
    return True


@cache
def can_multiply_int8() -> bool:
    """Whether this torch on this processor has int8 products at all."""
    try:
        return _overflows() in (True, False)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False


@cache
def activation_levels() -> int:
    """The largest code of an activation: 127, or 63 where a sum of 8-bit products overflows."""
    return 63 if _overflows() else 127


def _overflows() -> bool:
    """Whether the largest codes multiply to a wrong sum."""
    inputs = 256
    weight = torch.ops.onednn.qlinear_prepack(
        torch.full((16, inputs), 127, dtype=torch.int8), [16, inputs]
    )
    codes = torch.full((16, inputs), 255, dtype=torch.uint8)
    product = _multiply(codes, weight, torch.ones(16), torch.zeros(16, dtype=torch.int32))
    return bool((product != 127 * 127 * inputs).any())


def _multiply(codes: Tensor, weight: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, 128, weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if not name:
        return lambda rows: rows
    if name == "relu":
        return torch.relu_
    kind = _GELU_KINDS[name]
    return lambda rows: functional.gelu(rows, approximate=kind)
