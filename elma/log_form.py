"""How a log line looks: for a person, for a machine, or for systemd's journal.

    console   2026-01-31T12:00:00Z [info] question  request_id=...   (colours on a terminal)
    json      {"request_id": ..., "event": "question", "level": "info", "timestamp": ...}
    journal   <6>question request_id=...

Input: what was asked for, stderr, the environment. Output: `LogForm`, whose parts `elma.output`
puts together. Lines that the journal reads begin with their level (sd-daemon(3)), each line of a
traceback too; it takes that off, and has a clock of its own. JSON lines that it reads keep their
form behind the level.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import structlog

PRIORITIES = {
    "critical": 2,
    "error": 3,
    "exception": 3,
    "warning": 4,
    "warn": 4,
    "notice": 5,
    "info": 6,
    "debug": 7,
}
"""Of syslog(3), by our names of levels."""
_DROPPED = "log_lines_dropped"


class LogFormat(StrEnum):
    """What a person may ask for."""

    CONSOLE = "console"
    JSON = "json"
    JOURNAL = "journal"


@dataclass(frozen=True)
class LogForm:
    """A form of lines; `has_levels`: each begins with its level, as the journal reads it."""

    format: LogFormat
    has_levels: bool = False
    has_colours: bool = False

    @classmethod
    def of(cls, wanted: object, stream: TextIO, environment: Mapping[str, str]) -> LogForm:
        """The form that was asked for, a name or a `LogFormat`; None: what suits `stream`."""
        is_read_by_journal = is_journal(stream, environment)
        if wanted is None:
            wanted = LogFormat.JOURNAL if is_read_by_journal else LogFormat.CONSOLE
        chosen = LogFormat(str(wanted))
        return cls(
            chosen,
            has_levels=chosen is LogFormat.JOURNAL or is_read_by_journal,
            has_colours=chosen is LogFormat.CONSOLE and stream.isatty(),
        )

    def with_level(self, text: str, level: str) -> str:
        """`text` with the level before each of its lines, where this form has them."""
        if not self.has_levels:
            return text
        mark = f"<{PRIORITIES.get(level, PRIORITIES['info'])}>"
        return "\n".join(mark + line for line in text.splitlines() or [""])

    def describe_dropped(self, count: int) -> str:
        """The line that says how many lines were dropped."""
        text = f"{_DROPPED} count={count}"
        if self.format is LogFormat.JSON:
            text = f'{{"event": "{_DROPPED}", "level": "warning", "count": {count}}}'
        return self.with_level(text, "warning")

    def library_formatter(self) -> logging.Formatter:
        """For the records of libraries, which come by `logging`."""
        return _LibraryFormatter(self)

    def processors(self) -> list[structlog.typing.Processor]:
        """structlog's way from an event to its line."""
        import structlog

        render: structlog.typing.Processor
        chain: list[structlog.typing.Processor] = [
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
        ]
        if self.format is LogFormat.JOURNAL:
            render = _render_for_journal
        else:
            chain.insert(2, structlog.processors.TimeStamper(fmt="iso", utc=True))
            render = structlog.processors.JSONRenderer()
            if self.format is LogFormat.CONSOLE:
                render = structlog.dev.ConsoleRenderer(colors=self.has_colours)

        def add_level(logger: Any, name: str, event: structlog.typing.EventDict) -> str:
            level = str(event.get("level", "info"))
            return self.with_level(str(render(logger, name, event)), level)

        return [*chain, add_level]


def is_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether systemd's journal reads what is written to `stream`.

    systemd says so in `JOURNAL_STREAM`, as device and inode, which a redirected stream does not
    have (systemd.exec(5)).
    """
    try:
        at = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return environment.get("JOURNAL_STREAM", "") == f"{at.st_dev}:{at.st_ino}"


class _LibraryFormatter(logging.Formatter):
    """A record of `logging`, with the level that it has."""

    def __init__(self, form: LogForm) -> None:
        levels = "" if form.has_levels else "%(levelname)s "
        super().__init__(f"{levels}%(message)s")
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """The line, or the lines, of a record; one line of JSON where that is the form."""
        level = record.levelname.lower()
        text = super().format(record)
        if self._form.format is LogFormat.JSON:
            said = text if self._form.has_levels else text.removeprefix(f"{record.levelname} ")
            event = {"event": said, "level": level, "logger": record.name}
            event["timestamp"] = datetime.fromtimestamp(record.created, UTC).isoformat()
            text = json.dumps(event)
        return self._form.with_level(text, level)


def _render_for_journal(_logger: Any, _name: str, event: Mapping[str, Any]) -> str:
    """`event key=value ...`, a traceback below it; no time and no level, which the journal has."""
    fields = dict(event)
    words = [str(fields.pop("event", ""))]
    traceback = fields.pop("exception", None)
    fields.pop("level", None)
    words += [f"{name}={_spell(value)}" for name, value in fields.items()]
    line = " ".join(words)
    return line if traceback is None else f"{line}\n{traceback}"


def _spell(value: Any) -> str:
    """A value as one word: quoted, with its line ends spelt out, where it is none."""
    text = value if isinstance(value, str) else repr(value)
    is_word = bool(text) and text.isprintable() and not any(mark in text for mark in ' "=')
    return text if is_word else repr(text)
