"""What a check found: the form that every check of `elma doctor` answers in.

Neighbours: the checks make findings, `examination` puts them in order, `elma.commands.doctor` shows
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """How it is. Only what has failed makes `elma doctor` fail."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    `name` is a stable short name, `text` says what was seen, `advice` what to do about it (always
    there when it has failed), `figures` the same for a program, units in the names.
    """

    name: str
    state: State
    text: str
    advice: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        return {**asdict(self), "state": self.state.value, "figures": dict(self.figures)}


def in_mb(size_bytes: float) -> str:
    """Bytes for a person, in units of a million."""
    return f"{size_bytes / 1e6:,.0f} MB"
