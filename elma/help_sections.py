"""`elma --help`: the verbs by what one wants to do; every list of commands with whole sentences.

In: the verbs that `elma.cli` registers. Out: the list of commands in sections, in the order in
which somebody meets them. Neighbour: `elma.cli`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer.core import TyperGroup

SECTIONS = {
    "Try it": ("demo", "ask"),
    "Run it": ("edge", "worker", "broker", "monitor"),
    "Set it up": (
        "keys",
        "enroll",
        "enroll-worker",
        "enroll-publisher",
        "enroll-monitor",
        "renew",
        "revoke",
        "install",
    ),
    "Watch it": ("doctor", "top"),
    "Bring out releases": ("publish", "sign", "rollout", "releases"),
    "Make models": ("train", "calibrate", "evaluate", "compress", "convert", "errors", "bench"),
}
_WHOLE = 1000  # characters: the help text wraps instead of being cut


class WholeHelp(TyperGroup):
    """A group whose list of commands shows whole sentences."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one list."""
        self.write_list(formatter, "Commands", self.list_commands(ctx))

    def write_list(self, formatter: Any, title: str, names: Sequence[str]) -> None:
        """The commands of these names, aligned with all others of the group."""
        width = max(map(len, self.commands))
        rows = [
            (name.ljust(width), self.commands[name].get_short_help_str(_WHOLE)) for name in names
        ]
        with formatter.section(title):
            formatter.write_dl(rows)


class SectionedHelp(WholeHelp):
    """The program's group of verbs."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - Typer's signature
        """Names in the order of the sections; what stands in none comes last."""
        ordered = [name for names in SECTIONS.values() for name in names if name in self.commands]
        return ordered + [name for name in self.commands if name not in ordered]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a list for each section."""
        names = self.list_commands(ctx)
        placed = {name for section in SECTIONS.values() for name in section}
        sections = {**SECTIONS, "More": tuple(name for name in names if name not in placed)}
        for title, members in sections.items():
            if shown := [name for name in members if name in names]:
                self.write_list(formatter, title, shown)
