"""The program `elma`: puts the verbs of `elma.commands` together and turns errors into one line.

Input: the arguments of the process and the environment (`ELMA_DEBUG`, `ELMA_LOG_LEVEL`,
`ELMA_LOG_FORMAT`, `JOURNAL_STREAM`). Output: what the verb prints on stdout; everything else goes
to stderr.
Exit status: 0 done, 1 it failed, 2 the call or its input was wrong, 130 interrupted.
Neighbours: `elma.commands.*` (the verbs), `elma.output` (how they print).
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from enum import StrEnum
from typing import Annotated, NoReturn

import typer

from elma import __version__
from elma.commands import (
    ask,
    bench,
    broker,
    calibrate,
    compress,
    convert,
    demo,
    doctor,
    edge,
    enroll,
    errors,
    evaluate,
    install,
    keys,
    monitor,
    publish,
    releases,
    renew,
    revoke,
    rollout,
    rotate,
    sign,
    top,
    train,
    worker,
)
from elma.help_sections import SectionedHelp, WholeHelp
from elma.log_form import LogForm, LogFormat
from elma.output import OUR_PACKAGES, CommandError, configure_logging

EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130

# Verbs that run as a service tell what they do; the others speak up only when something is wrong.
_SERVICES = {"broker", "edge", "monitor", "worker"}


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


app = typer.Typer(
    name="elma",
    cls=SectionedHelp,
    help="Answer questions on a small device; let a worker finish what the device cannot settle.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: three times as fast, and no option's name is cut
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main() -> NoReturn:
    """Run `elma` with the process's arguments and leave with its exit status."""
    try:
        app()
    except SystemExit as leave:  # Typer turns Ctrl-C into this status without a word
        if leave.code == EXIT_INTERRUPTED:
            _print_error("interrupted")
        raise
    except KeyboardInterrupt:  # while Typer itself was at work
        _print_error("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if _state.debug:
            with contextlib.suppress(OSError):
                traceback.print_exc()
        else:
            _print_error(describe_error(error))
        sys.exit(exit_status_of(error))
    sys.exit(0)


def describe_error(error: Exception) -> str:
    """One line for a person: what failed, with its cause where the text does not name it yet."""
    text = " ".join(str(error).split())
    if _is_ours(error):
        return text or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return (
        f"unexpected {type(error).__name__}: {text} "
        "(this is a fault in elma; `elma --debug ...` shows where)"
    )


def exit_status_of(error: Exception) -> int:
    """2 when the caller can mend it by another call or other input, else 1."""
    if isinstance(error, CommandError):
        return error.exit_status
    reader_errors = sys.modules.get("reader.errors")
    if reader_errors is not None and isinstance(error, reader_errors.InputError):
        return EXIT_WRONG_INPUT
    return EXIT_WRONG_INPUT if getattr(error, "is_the_calls", False) else EXIT_FAILED


class _State:
    """What the options before the verb said."""

    debug: bool = False
    form: LogForm = LogForm(LogFormat.CONSOLE)


_state = _State()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"elma {__version__}")
        raise typer.Exit


@app.callback()
def _before_the_verb(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="ELMA_DEBUG", help="Show tracebacks of errors.")
    ] = False,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(
            envvar="ELMA_LOG_LEVEL",
            help="The least important log lines that are shown.",
            show_default="info for services, warning for other verbs",
        ),
    ] = None,
    log_format: Annotated[
        LogFormat | None,
        typer.Option(
            envvar="ELMA_LOG_FORMAT",
            help="Form of the log lines on stderr.",
            show_default="journal where systemd's journal reads them, else console",
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001 - acted on by its callback, before this function runs
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and leave."
        ),
    ] = False,
) -> None:
    _state.debug = debug
    is_service = context.invoked_subcommand in _SERVICES
    if log_level is None:
        log_level = LogLevel.INFO if is_service else LogLevel.WARNING
    _state.form = LogForm.of(log_format, sys.stderr, os.environ)
    configure_logging(log_level.value, _state.form, in_background=is_service)


def _is_ours(error: Exception) -> bool:
    """Whether the error's class, or one it derives from, is defined in one of our packages."""
    return any(cls.__module__.split(".")[0] in OUR_PACKAGES for cls in type(error).__mro__)


def _print_error(text: str) -> None:
    with contextlib.suppress(OSError):
        typer.echo(_state.form.with_level(f"elma: {text}", "error"), err=True)


for _single in (
    demo,
    ask,
    doctor,
    evaluate,
    calibrate,
    train,
    convert,
    publish,
    sign,
    releases,
    enroll,
    renew,
    revoke,
    monitor,
    top,
):
    _single.register(app)
for _name, _group in (
    ("edge", edge),
    ("worker", worker),
    ("broker", broker),
    ("keys", keys),
    ("bench", bench),
    ("compress", compress),
    ("rollout", rollout),
    ("errors", errors),
    ("install", install),
):
    app.add_typer(_group.app, name=_name, cls=WholeHelp)
rotate.register(keys.app)
