"""Options that several verbs take together: a frozen dataclass whose fields are the options.

    @dataclass(frozen=True)
    class Place:
        channel: Annotated[str | None, typer.Option(help="...")] = None

    @app.command()
    @spread
    def status(place: Place, as_json: JsonOption = False) -> None: ...

In: a command with parameters of such types. Out: the same command with a parameter for each field,
which is what Typer reads. Neighbours: `elma.release_options` has the groups.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """A command for Typer, whose groups of options are made before it is called."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if is_dataclass(kind) and isinstance(kind, type):
            groups[parameter.name] = kind
            parameters += _fields_of(kind)
        else:
            parameters.append(_by_keyword(parameter.name, kind, parameter.default))

    def spread_command(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    spread_command.__name__, spread_command.__doc__ = command.__name__, command.__doc__
    spread_command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread_command.__annotations__ = {one.name: one.annotation for one in parameters}
    return spread_command


def _fields_of(kind: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        _by_keyword(
            field.name,
            hints[field.name],
            inspect.Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(kind)
    ]


def _by_keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
