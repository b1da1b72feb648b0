"""How errors become one line and a status, and how results are printed."""

from __future__ import annotations

import json

import pytest

from elma.cli import describe_error, exit_status_of
from elma.output import CommandError, print_json, print_table
from protocol.errors import ProtocolError
from reader.errors import InputError, ReaderError


def test_our_errors_speak_for_themselves_in_one_line() -> None:
    assert describe_error(ReaderError("folder x\nhas no config.json")) == (
        "folder x has no config.json"
    )
    assert describe_error(ProtocolError("key pool-2 is unknown")) == "key pool-2 is unknown"


def test_a_fault_of_ours_is_told_from_an_error_of_the_caller() -> None:
    line = describe_error(KeyError("layer"))
    assert "KeyError" in line
    assert "--debug" in line


def test_a_file_that_cannot_be_read_is_named() -> None:
    error = FileNotFoundError(2, "No such file or directory", "notes.txt")
    assert describe_error(error) == "No such file or directory: notes.txt"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CommandError("no such file", exit_status=2), 2),
        (CommandError("the worker did not start"), 1),
        (InputError("the question is empty"), 2),
        (ReaderError("weights are damaged"), 1),
        (RuntimeError("?"), 1),
    ],
)
def test_the_exit_status_tells_wrong_input_from_failure(error: Exception, status: int) -> None:
    assert exit_status_of(error) == status


def test_json_keeps_every_script_and_refuses_what_json_cannot_say(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_json({"answer": "Zürich 東京"})
    printed = capsys.readouterr().out
    assert "東京" in printed
    assert json.loads(printed) == {"answer": "Zürich 東京"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"score": float("nan")})


def test_a_table_prints_cells_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["answer", "bytes"], [["[red] not markup", 12], ["", None]])
    printed = capsys.readouterr().out
    assert "[red] not markup" in printed
    assert "None" not in printed
