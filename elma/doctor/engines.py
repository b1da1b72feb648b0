"""Checks of what computes: the engine and precision that would be chosen, and what else there is.

Output: findings. Neighbour: `reader.engines.choosing` decides; the reason is its own sentence.
"""

from __future__ import annotations

from dataclasses import asdict

from elma.doctor.finding import Finding, State
from elma.extras import install_command, missing_modules
from reader.engines.choosing import choose_engine
from reader.engines.names import ENGINES, PRECISIONS
from reader.errors import EngineError


def check_choice(engine: str, precision: str, threads: int | None) -> Finding:
    """What a reader would compute with, and why."""
    try:
        choice = choose_engine(engine, precision, threads)
    except EngineError as error:
        return Finding("engine", State.FAILED, str(error), _advice_for(engine))
    text = f"{choice.name}, {choice.precision}, {_count(choice.threads)}: {choice.reason}"
    return Finding("engine", State.OK, text, figures=asdict(choice))


def check_alternatives(threads: int | None) -> list[Finding]:
    """For each engine, the precisions that it offers here, or what is missing."""
    findings = []
    for engine in ENGINES:
        offered, refusals = [], {}
        for precision in PRECISIONS:
            try:
                choose_engine(engine, precision, threads)
                offered.append(precision)
            except EngineError as error:
                refusals[precision] = str(error)
        figures = {"precisions": offered, "refused": refusals}
        name = f"engine {engine}"
        if offered:
            findings.append(Finding(name, State.OK, f"offers {', '.join(offered)}", "", figures))
        else:
            text = f"not available: {next(iter(refusals.values()))}"
            # Not a warning: a device has room for one engine, and that is enough.
            findings.append(Finding(name, State.OK, text, _advice_for(engine), figures))
    return findings


def _advice_for(engine: str) -> str:
    """How to get an engine; for "auto" the smaller one."""
    extra = "edge" if engine == "auto" else engine
    if engine != "auto" and not missing_modules(engine):
        return "choose another engine or precision, or auto"
    return install_command(extra)


def _count(threads: int) -> str:
    return f"{threads} thread{'' if threads == 1 else 's'}"
