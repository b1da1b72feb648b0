"""Log lines of the agent's threads, written so that a broken log can never stop a question.

Input: a bound method of a structlog logger and what it shall write. Output: a line, or nothing.
Neighbours: every thread of the agent writes with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any


def write_line(level: Callable[..., Any], event: str, **fields: Any) -> None:
    """Write a line with `level` (`_log.error`, ...); a log that cannot be written is no fault."""
    with contextlib.suppress(Exception):
        level(event, **fields)
