"""`elma convert`: a checkpoint in, a model folder of another shape or storage out.

Neighbours: `reader.conversion` converts, `reader.network_files` saves.
"""

from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from elma.extras import require_extra
from elma.output import JsonOption, print_json


class Storage(StrEnum):
    """How the weights lie on disk."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    PACKED = "packed"


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("convert", short_help="Make an ALBERT of a BERT, reshape one, or pack one.")(
        convert
    )


def convert(
    source: Annotated[str, typer.Argument(help="BERT or ALBERT folder, or a hub id.")],
    out: Annotated[Path, typer.Argument(help="The model folder to write.")],
    layers: Annotated[int, typer.Option(help="Number of layers; 0 keeps the source's.")] = 0,
    groups: Annotated[int, typer.Option(help="Parameter groups; 0 keeps the source's.")] = 0,
    storage: Annotated[
        Storage,
        typer.Option(help="float32 and float16 load in transformers; packed is the smallest."),
    ] = Storage.FLOAT32,
    as_json: JsonOption = False,
) -> None:
    """Make an ALBERT of a BERT (exactly), reshape an ALBERT, or pack one for shipping.

    Without --layers and --groups the network computes what the source did; with them it is a warm
    start that wants training.
    """
    require_extra("torch", "elma convert")

    from reader.conversion import load_any_checkpoint, reshape_network
    from reader.exits import SETTINGS_FILE
    from reader.network_files import save_network
    from reader.storage import FLOAT16, FLOAT32, PACKED
    from reader.weights import resolve_model_folder

    folder = resolve_model_folder(source)
    network = load_any_checkpoint(folder)
    shape = (layers or network.config.layers, groups or network.config.groups)
    reshaped = shape != (network.config.layers, network.config.groups)
    if reshaped:
        network = reshape_network(network, layers=shape[0], groups=shape[1])
    save_network(
        network,
        out,
        tokenizer_from=folder,
        storage={"float32": FLOAT32, "float16": FLOAT16, "packed": PACKED}[storage.value],
    )
    if not reshaped and (folder / SETTINGS_FILE).is_file() and folder.resolve() != out.resolve():
        shutil.copyfile(folder / SETTINGS_FILE, out / SETTINGS_FILE)
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    summary = {
        "model": str(out),
        "layers": network.config.layers,
        "groups": network.config.groups,
        "storage": storage.value,
        "bytes": size,
    }
    if as_json:
        print_json(summary)
    else:
        typer.echo(
            f"{out}: {summary['layers']} layers in {summary['groups']} groups, "
            f"{storage.value}, {size / 1e6:.1f} MB"
        )
