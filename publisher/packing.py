"""A trained model as devices are sent it: matrices in int8, word embeddings in int4.

In: a model folder as `elma train` leaves it, in plain floats. Out: a packed copy in the publisher's
store, the same for the same folder, so that an interrupted publish finds it again. Neighbours:
`reader.storage` has the encodings; a folder that is packed already goes out as it is.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from publisher.errors import PublisherStoreError
from reader.bottleneck import BOTTLENECK_FILE
from reader.codecs import LOSSES_FILE
from reader.exits import SETTINGS_FILE
from reader.model_writer import write_model
from reader.storage import PACKED
from reader.weights import PACKED_FILE, ModelTensors, folder_digest

PACKED_FOLDER = "packed"
"""Of the publisher's store."""
COPIED_FILES = (SETTINGS_FILE, LOSSES_FILE, BOTTLENECK_FILE)


def is_packed(folder: Path) -> bool:
    """Whether a model folder goes to devices as it is."""
    return (folder / PACKED_FILE).is_file()


def pack(folder: Path, packed: Path) -> Path:
    """A packed copy of `folder` below `packed`, made once. Raises ModelFolderError,
    PublisherStoreError."""
    target = packed / folder_digest(folder)[:16] / folder.resolve().name
    if is_packed(target):
        _copy_settings(folder, target)
        with suppress(OSError):
            os.utime(target)  # it is in use: not old, whatever prunes beside us
        return target
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        tensors = ModelTensors.open(folder)
        write_model(
            partial,
            tensors.config,
            {name: tensors.read(name) for name in tensors.shapes},
            tokenizer_from=folder,
            storage=PACKED,
        )
        _copy_settings(folder, partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except OSError as error:
        raise PublisherStoreError(f"{folder} cannot be packed into {target}: {error}") from error
    return target


def _copy_settings(folder: Path, target: Path) -> None:
    """Make the files beside the weights those of `folder`; its digest does not cover all."""
    try:
        for name in COPIED_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
            else:
                (target / name).unlink(missing_ok=True)
    except OSError as error:
        raise PublisherStoreError(f"{name} cannot be copied into {target}: {error}") from error
