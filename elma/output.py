"""How every verb speaks: results on stdout (a table, or JSON with `--json`), the rest on stderr.

Inputs: the results of a verb. Outputs: text on stdout or stderr. Neighbours: `elma.cli` turns
`CommandError` into one line and an exit status; the verbs in `elma.commands` print through here.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

OUR_PACKAGES = frozenset({"broker", "cloud_worker", "edge_agent", "elma", "protocol", "reader"})

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON document on stdout.")
]


class CommandError(Exception):
    """A verb cannot do what it was asked to.

    `exit_status` is 2 when another call or other input mends it, and 1 otherwise.
    """

    def __init__(self, message: str, *, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def print_json(document: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print one JSON document on stdout. Raises ValueError for a number that JSON cannot hold."""
    typer.echo(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print a table on stdout; numbers stand on the right, `None` is an empty cell."""
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    table = Table(title=title or None, title_justify="left")
    for position, column in enumerate(columns):
        is_number = any(isinstance(row[position], int | float) for row in rows)
        table.add_column(column, justify="right" if is_number else "left")
    for row in rows:
        # Text, not str: an answer such as "[sic]" must not be read as markup.
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    _console(stderr=False).print(table)


def print_status(text: str) -> None:
    """Tell the person at the terminal what is going on: one line on stderr."""
    typer.echo(text, err=True)


def configure_logging(level: str, *, json_lines: bool) -> None:
    """Send all logs, ours (structlog) and those of libraries, to stderr from `level` upwards.

    `level` is one of debug, info, warning, error.
    """
    import structlog

    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(
        level=max(number, logging.WARNING), stream=sys.stderr, format="%(levelname)s %(message)s"
    )
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if json_lines
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    # Without a terminal (a pipe, a log of CI) rich would cut lines at 80 characters.
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if is_terminal else 132)
