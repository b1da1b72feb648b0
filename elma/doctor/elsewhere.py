"""The findings of another ELMA on this machine: the one that a service is started with.

Input: its program, and what to examine. Output: its findings, as if they were ours. A machine of
several roles has an environment for each, and only the service's own knows its engines. Neighbours:
`here` finds the program, `elma.commands.doctor` shows what it says.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from elma.doctor.finding import Finding, State

ANSWER_SECONDS = 180.0


def is_ours(program: Path) -> bool:
    """Whether a program is of the environment that runs this."""
    return program.parent == Path(sys.executable).parent


def ask_program(program: Path, arguments: Sequence[str]) -> Iterator[Finding]:
    """What `program doctor` finds, called with `arguments`; none raises."""
    command = [str(program), "doctor", *arguments, "--json"]
    try:
        done = subprocess.run(  # noqa: S603 - what systemd runs, too
            command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
        findings = [_finding(one) for one in json.loads(done.stdout)["findings"]]
    except (OSError, subprocess.TimeoutExpired) as error:
        yield _failed(program, str(error))
    except (ValueError, KeyError, TypeError):
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        yield _failed(program, f"exit status {done.returncode}, it said: {said}")
    else:
        yield Finding("program", State.OK, f"{program}, which systemd starts, finds:")
        yield from findings


def _finding(document: dict[str, object]) -> Finding:
    """A finding of `--json`. Raises KeyError, TypeError, ValueError."""
    name, state, text = (str(document[key]) for key in ("name", "state", "text"))
    figures = document.get("figures")
    return Finding(
        name,
        State(state),
        text,
        str(document.get("advice", "")),
        figures if isinstance(figures, dict) else {},
    )


def _failed(program: Path, why: str) -> Finding:
    return Finding(
        "program",
        State.FAILED,
        f"{program}, which systemd starts, cannot say how it is: {why}",
        f"install ELMA so that `{program} --version` works, or name another program: elma install "
        "... --program",
    )
