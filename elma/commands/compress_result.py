"""How a step of `elma compress` says what became of the model. Neighbours: its verbs call this."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from elma.output import print_json


def print_step(out: Path, record: dict[str, Any], as_json: bool) -> None:
    """The record of a step, or its bytes, heads and units before and after in words."""
    if as_json:
        print_json({"model": str(out), **record})
        return
    before, after = record["before"], record["after"]
    typer.echo(
        f"{out}: {after['model_bytes'] / 1e6:.2f} MB, was {before['model_bytes'] / 1e6:.2f} MB; "
        f"{sum(after['heads'])} heads, was {sum(before['heads'])}; "
        f"{sum(after['inner_units'])} inner units, was {sum(before['inner_units'])}; "
        f"{100 * after['zero_share']:.0f} % of what is left is 0"
    )
    typer.echo(f"exits: {record['exits']}")
