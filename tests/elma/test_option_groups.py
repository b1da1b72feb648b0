"""Options in groups reach Typer one by one, and the command as what they belong to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from typer.testing import CliRunner

from elma.option_groups import spread


@dataclass(frozen=True)
class Place:
    """One group."""

    store: Annotated[Path, typer.Option(help="Where it lies.")]
    port: Annotated[int | None, typer.Option(help="Its port.")] = None


@dataclass(frozen=True)
class Tags:
    """Another."""

    tag: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None
    loud: Annotated[bool, typer.Option("--loud")] = False


app = typer.Typer(rich_markup_mode=None)


@app.command()
@spread
def show(
    name: Annotated[str, typer.Argument(help="Who.")],
    place: Place,
    tags: Tags,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Say what came."""
    document = {"store": str(place.store), "port": place.port, "tags": tags.tag, "loud": tags.loud}
    typer.echo(json.dumps({"name": name, **document, "json": as_json}))


def test_every_field_is_an_option_and_comes_back_in_its_group() -> None:
    told = CliRunner().invoke(
        app,
        ["me", "--store", "here", "--port", "7", "--tag", "a", "--tag", "b", "--loud", "--json"],
    )
    assert json.loads(told.stdout) == {
        "name": "me",
        "store": "here",
        "port": 7,
        "tags": ["a", "b"],
        "loud": True,
        "json": True,
    }


def test_defaults_are_those_of_the_fields_and_one_without_is_required() -> None:
    told = json.loads(CliRunner().invoke(app, ["me", "--store", "here"]).stdout)
    assert (told["port"], told["tags"], told["loud"], told["json"]) == (None, None, False, False)
    missing = CliRunner().invoke(app, ["me"])
    assert missing.exit_code == 2
    assert "--store" in missing.output


def test_help_and_types_are_those_of_the_fields() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert "Say what came." in shown
    for text in ("Where it lies.", "Its port.", "May be repeated.", "Who."):
        assert text in shown
    wrong = CliRunner().invoke(app, ["me", "--store", "here", "--port", "many"])
    assert wrong.exit_code == 2
