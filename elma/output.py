"""How every verb speaks: results on stdout (a table, or JSON with `--json`), the rest on stderr.

Inputs: the results of a verb. Outputs: text on stdout or stderr. Neighbours: `elma.cli` turns
`CommandError` into one line and an exit status; the verbs in `elma.commands` print through here;
`elma.log_form` says how a log line looks, `elma.log_writer` brings it out, whatever becomes of
stderr.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elma.log_form import LogForm
from elma.log_writer import LineHandler, LineLogger, make_put

if TYPE_CHECKING:
    from rich.console import Console

OUR_PACKAGES = frozenset(
    {"broker", "cloud_worker", "edge_agent", "elma", "protocol", "publisher", "reader", "releases"}
)

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
    """Tell the person at the terminal what is going on: one line on stderr, if it takes one."""
    with contextlib.suppress(OSError):
        typer.echo(text, err=True)


def configure_logging(level: str, form: LogForm, *, in_background: bool = False) -> None:
    """Send all logs, ours (structlog) and those of libraries, to stderr from `level` upwards.

    `level` is one of debug, info, warning, error. Logging never raises; with `in_background`, for
    services, it never waits for stderr's reader either.
    """
    import structlog

    number = logging.getLevelNamesMapping()[level.upper()]
    put = make_put(sys.stderr, in_background=in_background, describe_dropped=form.describe_dropped)
    logger = LineLogger(put)
    handler = LineHandler(put)
    handler.setFormatter(form.library_formatter())
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler])
    structlog.configure(
        processors=form.processors(),
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_names: logger,
        cache_logger_on_first_use=False,
    )


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    # Without a terminal (a pipe, a log of CI) rich would cut lines at 80 characters.
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if is_terminal else 132)
