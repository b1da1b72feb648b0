"""`elma --help` names every verb once, under what one wants to do, and cuts no sentence."""

from __future__ import annotations

from collections import Counter

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from elma.cli import app
from elma.help_sections import SECTIONS, SectionedHelp


def test_every_verb_stands_in_exactly_one_section() -> None:
    program = get_command(app)
    assert isinstance(program, SectionedHelp)
    placed = Counter(name for names in SECTIONS.values() for name in names)
    assert set(placed) == set(program.commands)
    assert set(placed.values()) == {1}


def test_help_shows_the_sections_in_order_and_no_sentence_is_cut() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    titles = [line[:-1] for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == ["Options", *SECTIONS]
    commands = shown.partition(f"{next(iter(SECTIONS))}:")[2]
    assert "..." not in commands


def test_a_verb_without_a_section_is_shown_all_the_same() -> None:
    program = get_command(app)
    assert isinstance(program, SectionedHelp)
    program.add_command(program.commands["ask"], "wonder")
    context = program.make_context("elma", [], resilient_parsing=True)
    assert program.list_commands(context)[-1] == "wonder"
    assert "More:\n  wonder" in program.get_help(context)


@pytest.mark.parametrize("group", ["bench", "broker", "compress", "errors", "keys", "rollout"])
def test_a_group_cuts_no_sentence_either(group: str) -> None:
    shown = CliRunner().invoke(app, [group, "--help"]).stdout
    commands = shown.partition("Commands:")[2]
    assert commands
    assert "..." not in commands
