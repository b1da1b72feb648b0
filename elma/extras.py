"""Optional parts of the installation: which verb needs which, and what to say when one is missing.

Input: the name of an extra of `elma-qa`. Output: nothing, or `ExtraMissing` with the command that
installs it, before anything heavy is loaded. Neighbours: `pyproject.toml` defines the extras, a
test holds the two together; `reader.engines.choosing` says the same for engines.
"""

from __future__ import annotations

from importlib.util import find_spec

from elma.output import CommandError

# The modules without which an extra is not there. The rest of it comes along with them.
MODULES_OF = {
    "bench": ("torch", "onnx", "onnxruntime", "matplotlib", "transformers"),
    "broker": ("cryptography",),
    "onnx": ("onnx", "onnxruntime"),
    "plot": ("matplotlib",),
    "torch": ("torch",),
    "train": ("torch", "matplotlib"),
}


class ExtraMissing(CommandError):
    """A verb needs libraries that are not installed."""


def require_extra(extra: str, purpose: str) -> None:
    """Raise `ExtraMissing` unless the extra's modules are there.

    `purpose` begins the message: "elma train", "a picture".
    """
    missing = missing_modules(extra)
    if missing:
        raise ExtraMissing(
            f"{purpose} needs {' and '.join(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not installed; {install_command(extra)}"
        )


def missing_modules(extra: str) -> list[str]:
    """The modules of an extra that cannot be imported; they are looked for, not loaded."""
    return [module for module in MODULES_OF[extra] if not is_installed(module)]


def is_installed(module: str) -> bool:
    """Whether a top-level module can be found."""
    return find_spec(module) is not None


def install_command(extra: str) -> str:
    """What a person types to get an extra."""
    return f"pip install 'elma-qa[{extra}]'"
