"""Options that several verbs share, so that they are spelt and explained alike everywhere.

Neighbours: the verbs in `elma.commands`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from reader.engines.names import EngineName, PrecisionName

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
