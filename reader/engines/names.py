"""The names by which an engine and a precision are asked for, in settings, options and code.

Nothing is loaded here, so that settings can be checked before anything heavy is. Neighbours:
`choosing` turns "auto" into one of the others.
"""

from __future__ import annotations

from typing import Literal, get_args

EngineName = Literal["auto", "torch", "onnx"]
PrecisionName = Literal["auto", "fp32", "bf16", "int8"]

ENGINES: tuple[str, ...] = get_args(EngineName)[1:]
PRECISIONS: tuple[str, ...] = get_args(PrecisionName)[1:]
