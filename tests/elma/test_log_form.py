"""How a log line looks, above all to systemd's journal: levels on every line, nothing it has."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from elma.log_form import LogForm, LogFormat, is_journal

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import logging, os, sys, structlog
from elma.log_form import LogForm
from elma.output import configure_logging
form = LogForm.of(sys.argv[1] if len(sys.argv) > 1 else None, sys.stderr, os.environ)
configure_logging("debug", form)
log = structlog.get_logger("test")
log.debug("looked", detail="two words")
log.info("question", request_id="q-1", answer=None)
log.warning("odd", value="a\\n<0>forged")
try:
    raise ValueError("the cause")
except ValueError:
    log.exception("failed")
logging.getLogger("library").warning("theirs\\nin two lines")
print("alive", flush=True)
"""


def lines_on_the_journal(*arguments: str, stream: str | None = "ours") -> list[str]:
    """What the program writes to a stream socket, as systemd gives one to a service.

    `stream` is the value of JOURNAL_STREAM; "ours" that of the socket.
    """
    reader, writer = socket.socketpair()
    with reader, writer:
        at = os.fstat(writer.fileno())
        value = f"{at.st_dev}:{at.st_ino}" if stream == "ours" else stream
        environment = {**os.environ, **({} if value is None else {"JOURNAL_STREAM": value})}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments],
            cwd=ROOT,
            env=environment,
            stderr=writer.fileno(),
            stdout=subprocess.PIPE,
            timeout=60,
            check=True,
        )
        assert done.stdout == b"alive\n"
        writer.shutdown(socket.SHUT_WR)
        content = b""
        while piece := reader.recv(65_536):
            content += piece
    return content.decode().splitlines()


def test_where_the_journal_reads_every_line_has_its_level_and_neither_time_nor_colour() -> None:
    lines = lines_on_the_journal()
    assert all(re.match(r"<[2-7]>", line) for line in lines), lines
    assert lines[0] == "<7>looked detail='two words'"
    assert lines[1] == "<6>question request_id=q-1 answer=None"
    assert lines[2] == r"<4>odd value='a\n<0>forged'"
    assert lines[3:5] == ["<3>failed", "<3>Traceback (most recent call last):"]
    assert "<3>ValueError: the cause" in lines
    assert lines[-2:] == ["<4>theirs", "<4>in two lines"]
    assert not any("\x1b" in line or str(2000) in line[:8] for line in lines)


def test_json_that_the_journal_reads_stays_json_behind_its_level() -> None:
    lines = lines_on_the_journal("json")
    levels = {"<7>": "debug", "<6>": "info", "<4>": "warning", "<3>": "error"}
    assert len(lines) == 5, "a record of several lines is one line, of a library too"
    for line in lines:
        assert json.loads(line[3:])["level"] == levels[line[:3]]
    assert json.loads(lines[-1][3:])["event"] == "theirs\nin two lines"


@pytest.mark.parametrize("stream", [None, "1:1", "", "nonsense"])
def test_what_the_journal_does_not_read_is_for_a_person(stream: str | None) -> None:
    lines = lines_on_the_journal(stream=stream)
    assert not any(line.startswith("<") for line in lines)
    assert re.match(r"\d{4}-\d\d-\d\dT.* \[debug *\] looked", lines[0])


def test_the_form_of_the_journal_can_be_asked_for_anywhere() -> None:
    assert lines_on_the_journal("journal", stream=None)[1].startswith("<6>question ")


def test_only_the_very_stream_that_systemd_names_is_the_journal() -> None:
    with tempfile.TemporaryFile("w") as one, tempfile.TemporaryFile("w") as other:
        at = os.fstat(one.fileno())
        environment = {"JOURNAL_STREAM": f"{at.st_dev}:{at.st_ino}"}
        assert is_journal(one, environment)
        assert not is_journal(other, environment)
        assert not is_journal(one, {})
    assert not is_journal(one, environment), "a closed stream"


@pytest.mark.parametrize(
    ("form", "line"),
    [
        (LogForm(LogFormat.CONSOLE), "log_lines_dropped count=3"),
        (LogForm(LogFormat.JOURNAL, has_levels=True), "<4>log_lines_dropped count=3"),
    ],
)
def test_dropped_lines_are_told_in_the_same_form(form: LogForm, line: str) -> None:
    assert form.describe_dropped(3) == line


def test_dropped_lines_are_told_in_json() -> None:
    document = json.loads(LogForm(LogFormat.JSON).describe_dropped(3))
    assert document == {"event": "log_lines_dropped", "level": "warning", "count": 3}


def elma(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program, with stderr in a pipe."""
    known: Mapping[str, str] = {
        name: value for name, value in os.environ.items() if not name.startswith("ELMA_")
    }
    return subprocess.run(
        [sys.executable, "-m", "elma", *arguments],
        cwd=ROOT,
        env={**known, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_service_that_cannot_start_says_so_as_an_error_of_the_journal(tmp_path: Path) -> None:
    settings = tmp_path / "no.toml"
    done = elma("--log-format", "journal", "edge", "run", "--config", str(settings))
    assert done.returncode == 1
    assert done.stderr.startswith("<3>elma: settings file")
    assert elma("edge", "run", "--config", str(settings)).stderr.startswith("elma: settings file")
