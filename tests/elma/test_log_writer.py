"""Log lines leave without hurting the process: closed, blocked and full outputs."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import pytest

from elma.log_writer import LineHandler, LineLogger, LineWriter, make_put, put_directly

WAIT_SECONDS = 10.0


def describe(count: int) -> str:
    return f"dropped {count}"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Reading and writing end."""
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            assert end in ends  # the test closed it


def read_until(descriptor: int, ending: bytes) -> bytes:
    """Everything up to `ending`, which must come."""
    content = b""
    while not content.endswith(ending):
        content += os.read(descriptor, 65_536)
    return content


def test_lines_come_out_in_their_order(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], describe)
    for number in range(100):
        writer.put(f"line {number}")
    assert writer.flush(WAIT_SECONDS)
    expected = "".join(f"line {number}\n" for number in range(100))
    assert read_until(pipe[0], b"line 99\n") == expected.encode()


def test_with_nobody_reading_a_line_neither_waits_nor_raises_and_the_lost_are_counted(
    pipe: tuple[int, int],
) -> None:
    writer = LineWriter(pipe[1], describe, bound=10)
    line = "x" * 200_000  # more than a pipe holds: the writing thread hangs
    writer.put(line)
    while len(writer._lines):  # until it has taken the first
        time.sleep(0.001)
    for _ in range(15):
        writer.put(line)
    assert not writer.flush(0.01)
    reader = threading.Thread(
        target=lambda: content.append(read_until(pipe[0], b"the end\n")), daemon=True
    )
    content: list[bytes] = []
    reader.start()
    assert writer.flush(WAIT_SECONDS)
    writer.put("the end")
    reader.join(WAIT_SECONDS)
    lines = content[0].decode().splitlines()
    assert [text for text in lines if text != line] == ["dropped 5", "the end"]
    assert len(lines) == 13


def test_after_the_reader_went_away_lines_are_lost_and_nothing_else(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], describe)
    os.close(pipe[0])
    for _ in range(3):
        writer.put("lost")
    assert writer.flush(WAIT_SECONDS)
    assert writer._dropped == 3


def test_every_level_and_the_records_of_libraries_take_the_same_way() -> None:
    lines: list[str] = []
    LineLogger(lines.append).error("ours")
    LineLogger(lines.append).exception("ours too")
    LineHandler(lines.append).emit(
        logging.LogRecord("library", logging.WARNING, "", 1, "theirs %d", (1,), None)
    )
    assert lines == ["ours", "ours too", "theirs 1"]


def test_a_library_that_logs_to_a_broken_log_goes_on() -> None:
    def fails(_line: str) -> NoReturn:
        raise BrokenPipeError

    LineHandler(fails).emit(logging.LogRecord("x", logging.WARNING, "", 1, "x", (), None))


def test_a_short_command_writes_at_once_and_survives_a_closed_stderr(
    pipe: tuple[int, int],
) -> None:
    with os.fdopen(os.dup(pipe[1]), "w") as stream:
        put = put_directly(stream)
        put("here")
        assert read_until(pipe[0], b"\n") == b"here\n"
    put("the stream is closed")
    assert make_put(stream, in_background=True, describe_dropped=describe) is not None


SERVICE = """
import structlog
from elma.log_form import LogForm, LogFormat
from elma.output import configure_logging
configure_logging("info", LogForm(LogFormat.JSON), in_background=True)
log = structlog.get_logger("test")
for number in range(2000):
    log.info("line", number=number, filling="x" * 200)
print("lived", flush=True)
"""


@pytest.mark.parametrize("reader", ["gone", "asleep"])
def test_a_service_outlives_the_reader_of_its_log(reader: str, pipe: tuple[int, int]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE], stderr=pipe[1], stdout=subprocess.PIPE, text=True
    )
    if reader == "gone":
        os.close(pipe[0])
    printed, _ = process.communicate(timeout=60)
    assert printed == "lived\n"
    assert process.returncode == 0


def test_what_was_logged_before_the_end_is_written() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVICE], capture_output=True, text=True, timeout=60, check=True
    )
    numbers = [json.loads(line)["number"] for line in done.stderr.splitlines()]
    assert numbers == list(range(2000))
