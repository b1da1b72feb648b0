"""Options that several verbs share, so that they are spelt and explained alike everywhere.

Neighbours: the verbs in `elma.commands`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reader.engines.names import EngineName, PrecisionName

MODEL_HELP = "A model folder, elma-small, elma-fast, or a hub id."
SQUAD_HELP = "SQuAD 1.1 or 2.0 JSON, plain or gzipped."

ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP)]
ModelOption = Annotated[str, typer.Option(help=MODEL_HELP)]
SquadOption = Annotated[Path, typer.Option(help=SQUAD_HELP)]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, envvar="ELMA_THREADS", help="CPU threads of the reader.")
]
EdgeLayersOption = Annotated[
    int | None,
    typer.Option(min=1, help="The device's last layer. Default: the model's own setting."),
]
EngineOption = Annotated[
    EngineName,
    typer.Option(envvar="ELMA_ENGINE", help="What computes; `elma doctor` says what auto takes."),
]
PrecisionOption = Annotated[
    PrecisionName,
    typer.Option(envvar="ELMA_PRECISION", help="Of its matrix products."),
]
ServiceEngineOption = Annotated[
    EngineName | None, typer.Option(help="What computes; `elma doctor` says what auto takes.")
]
ServicePrecisionOption = Annotated[
    PrecisionName | None, typer.Option(help="Of its matrix products.")
]
