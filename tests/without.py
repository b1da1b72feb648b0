"""The program `elma` as a device has it: libraries of the extras it did not install are missing.

A name that is None in `sys.modules` cannot be imported and is not found either, as if it were not
installed. `make test-device` does the same with a real environment.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

TORCH_AND_ITS_FRIENDS = ("torch", "transformers", "matplotlib", "accelerate", "datasets")
ENGINES = (*TORCH_AND_ITS_FRIENDS, "onnx", "onnxruntime")
# Never a dependency of ours; they come along with others and are slow to load.
NEVER_NEEDED = ("pandas", "scipy", "sklearn", "sympy", "pyarrow")


def hide(modules: Sequence[str]) -> str:
    """Python source that makes modules missing in the process that runs it."""
    return f"import sys\nfor name in {tuple(modules)!r}:\n    sys.modules[name] = None\n"


def elma_without(modules: Sequence[str], *arguments: str) -> list[str]:
    """The command line of `elma` in an interpreter that lacks `modules`."""
    source = hide(modules) + "from elma.cli import main\nsys.argv[0] = 'elma'\nmain()\n"
    return [sys.executable, "-c", source, *arguments]
