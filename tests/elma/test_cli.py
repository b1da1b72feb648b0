"""The program `elma` as its user meets it: help, versions, errors in one line, exit statuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from elma import __version__
from elma.cli import app

# Verbs without --json, each with the reason. Every other one must have it.
WITHOUT_JSON = {
    "edge run": "a service: it logs, and prints no result",
    "worker run": "a service: it logs, and prints no result",
    "rollout run": "a service: it logs, and prints no result",
    "monitor": "a service: it logs, and prints no result",
}


def elma(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the real program and wait for it."""
    return subprocess.run(
        [sys.executable, "-m", "elma", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def verbs_of(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every verb below a command group as ("keys edge", command)."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs_of(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


VERBS = dict(verbs_of(typer.main.get_command(app)))


def test_every_verb_of_the_issue_is_there() -> None:
    single = {"ask", "calibrate", "convert", "demo", "evaluate", "train"}
    assert single | {"broker run", "edge run", "worker run"} <= set(VERBS)
    assert any(verb.startswith("keys ") for verb in VERBS)


def test_help_answers_without_loading_the_network_libraries() -> None:
    code = (
        "import sys\n"
        "from elma.cli import main\n"
        "sys.argv = ['elma', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as leave:\n"
        "    assert leave.code == 0, leave.code\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'fastapi', 'paho'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    for verb in ("ask", "broker", "demo", "edge", "keys", "train", "worker"):
        assert verb in result.stdout


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(verb: str) -> None:
    result = elma(*verb.split(), "--help")
    assert result.returncode == 0, result.stderr
    assert "Usage:" in result.stdout
    assert VERBS[verb].help, f"elma {verb} has no sentence that says what it does"


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_with_a_result_prints_it_as_json_on_demand(verb: str) -> None:
    options = {option for parameter in VERBS[verb].params for option in parameter.opts}
    assert ("--json" in options) is (verb not in WITHOUT_JSON), f"elma {verb}: {sorted(options)}"


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_an_unknown_option_is_refused_with_its_name(verb: str) -> None:
    result = elma(*verb.split(), "--no-such-option")
    assert result.returncode == 2
    assert "--no-such-option" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_verb_is_refused_with_its_name() -> None:
    result = elma("predict")
    assert result.returncode == 2
    assert "predict" in result.stderr


def test_the_version_is_printed() -> None:
    result = elma("--version")
    assert (result.returncode, result.stdout.strip()) == (0, f"elma {__version__}")


def test_a_missing_model_folder_gives_one_clear_line(tmp_path: Path) -> None:
    missing = str(tmp_path / "no-model-here")
    result = elma("ask", "Who?", "--context", "Nobody.", "--local", "--model", missing)
    assert result.returncode in (1, 2)
    assert result.stdout == ""
    assert "no-model-here" in result.stderr
    assert "Traceback" not in result.stderr


def test_debug_adds_the_traceback(tmp_path: Path) -> None:
    missing = str(tmp_path / "no-model-here")
    result = elma("--debug", "ask", "Who?", "--context", "Nobody.", "--local", "--model", missing)
    assert result.returncode in (1, 2)
    assert "Traceback" in result.stderr
