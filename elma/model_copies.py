"""Copies a model folder so that only its exit settings are written anew.

In: a model folder. Out: a new folder without `exits.json`. Neighbours: both ways of
`elma calibrate` write the settings into it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from elma.output import CommandError


def copy_model(folder: Path, out: Path) -> None:
    """A new folder with every file of the model, but its exit settings."""
    from reader.exits import SETTINGS_FILE

    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise CommandError(f"{out} is there already; name a new folder with --out", exit_status=2)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.is_file() and path.name != SETTINGS_FILE:
                shutil.copyfile(path, out / path.name)
    except OSError as error:
        raise CommandError(
            f"cannot write the new model into {out}: {error.strerror}; name another with --out"
        ) from error
