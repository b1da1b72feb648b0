"""The sizes of a release's network: declared in its manifest, found in its `config.json`.

In: a reader's configuration, or what a manifest declares. Out: the declaration, or the reason why
it is refused. Neighbours: `publisher.making` declares, `installing` checks before anything is
fetched, `assembly` once the folder is complete.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from protocol.manifest import Architecture
from reader.config import ReaderConfig
from reader.errors import ReaderError
from reader.weights import load_config
from releases.errors import UnsupportedArchitecture

MODEL_TYPE = "albert"


def architecture_of(config: ReaderConfig) -> Architecture:
    """What a manifest declares of a network."""
    sizes = {name: getattr(config, name) for name in _size_names()}
    return Architecture(model_type=MODEL_TYPE, **sizes)


def check_architecture(declared: Architecture) -> None:
    """Raise UnsupportedArchitecture unless a reader of ours could run what is declared."""
    if declared.model_type != MODEL_TYPE:
        raise UnsupportedArchitecture(
            f"the release is a {declared.model_type!r}; this reader runs {MODEL_TYPE}"
        )
    try:
        ReaderConfig(**{name: getattr(declared, name) for name in _size_names()})
    except (ReaderError, ValueError, TypeError) as error:
        raise UnsupportedArchitecture(
            f"no reader has the sizes that the release declares: {error}"
        ) from error


def check_folder_is(declared: Architecture, folder: Path) -> None:
    """Raise UnsupportedArchitecture unless the model in the folder is what was declared."""
    try:
        config = load_config(folder)
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (ReaderError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedArchitecture(
            f"the release's config.json is none of ours: {error}"
        ) from error
    for field, wanted in vars(declared).items():
        found = model_type if field == "model_type" else getattr(config, field)
        if found != wanted:
            raise UnsupportedArchitecture(
                f"the manifest declares {field} {wanted}, config.json has {found}"
            )


def _size_names() -> list[str]:
    """The fields that a declaration and a configuration have in common."""
    return [field.name for field in fields(Architecture) if field.name != "model_type"]
