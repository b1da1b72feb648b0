"""The compact form of weights on disk: int8 per row, embeddings int4 per group of columns.

In: named float tensors. Out: named tensors for one safetensors file, and back. Neighbours:
`weights` writes and reads the file, training freezes embeddings at exactly these values.

Symmetric round-to-nearest: `value ~= code * scale`, one float16 scale a row (int8) or a group of
`GROUP_COLUMNS` columns of a row (int4, two codes a byte, low nibble first).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

GROUP_COLUMNS = 32
WORD_EMBEDDINGS = "albert.embeddings.word_embeddings.weight"
_INT8_CODE, _INT8_SCALE = ".int8", ".int8_scale"
_INT4_CODE, _INT4_SCALE = ".int4", ".int4_scale"


def pack_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every matrix as int8 rows, the word embeddings as int4 groups, the rest as float16."""
    packed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name == WORD_EMBEDDINGS and value.shape[1] % GROUP_COLUMNS == 0:
            packed[name + _INT4_CODE], packed[name + _INT4_SCALE] = encode_int4_groups(value)
        elif value.dim() == 2 and min(value.shape) > 2:
            packed[name + _INT8_CODE], packed[name + _INT8_SCALE] = encode_int8_rows(value)
        else:
            packed[name] = value.half().contiguous()
    return packed


def unpack_tensors(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The float32 tensors that `pack_tensors` stored."""
    tensors: dict[str, Tensor] = {}
    for name, value in packed.items():
        if name.endswith(_INT8_CODE):
            plain = name.removesuffix(_INT8_CODE)
            tensors[plain] = decode_int8_rows(value, packed[plain + _INT8_SCALE])
        elif name.endswith(_INT4_CODE):
            plain = name.removesuffix(_INT4_CODE)
            tensors[plain] = decode_int4_groups(value, packed[plain + _INT4_SCALE])
        elif not name.endswith((_INT8_SCALE, _INT4_SCALE)):
            tensors[name] = value.float()
    return tensors


def encode_int8_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`[rows, columns]` float to codes int8 of that shape and scales float16 `[rows, 1]`."""
    scale = _scale(matrix.float().abs().amax(dim=1, keepdim=True), 127)
    codes = (matrix.float() / scale.float()).round().clamp(-127, 127).to(torch.int8)
    return codes, scale


def decode_int8_rows(codes: Tensor, scale: Tensor) -> Tensor:
    """The float32 matrix of `encode_int8_rows`."""
    return codes.float() * scale.float()


def encode_int4_groups(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`[rows, columns]` float to codes uint8 `[rows, columns / 2]` and scales float16
    `[rows, columns / GROUP_COLUMNS]`; columns must be a multiple of `GROUP_COLUMNS`."""
    rows, columns = matrix.shape
    grouped = matrix.float().view(rows, columns // GROUP_COLUMNS, GROUP_COLUMNS)
    scale = _scale(grouped.abs().amax(dim=2, keepdim=True), 7)
    codes = (grouped / scale.float()).round().clamp(-7, 7).view(rows, columns) + 8
    pairs = codes.to(torch.uint8).view(rows, columns // 2, 2)
    return pairs[..., 0] | (pairs[..., 1] << 4), scale.squeeze(2)


def decode_int4_groups(codes: Tensor, scale: Tensor) -> Tensor:
    """The float32 matrix of `encode_int4_groups`."""
    rows = codes.shape[0]
    nibbles = torch.stack((codes & 15, codes >> 4), dim=2).view(rows, -1)
    values = (nibbles.float() - 8).view(rows, scale.shape[1], -1)
    return (values * scale.float().unsqueeze(2)).view(rows, -1)


def _scale(largest: Tensor, levels: int) -> Tensor:
    """Float16 scales; never 0, so that a row of zeros decodes to zeros without dividing by 0."""
    return (largest / levels).clamp_min(2.0**-24).half()
