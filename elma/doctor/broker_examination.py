"""Everything `elma doctor --broker DIR` looks at, in the order in which one stands on another.

Inputs: the folder of `elma broker init`, the key folder, the time. Output: findings. Neighbours:
`examination` does the same for edges and workers; the checks are in `broker_files`, `certificates`,
`members` and `broker_running`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from broker.errors import EnrolmentError
from broker.secured import SecuredFolder
from elma.doctor.broker_files import (
    check_configuration,
    check_files,
    check_mosquitto,
    check_store,
)
from elma.doctor.broker_running import check_names, check_running
from elma.doctor.certificates import (
    check_authority,
    check_members,
    check_revocation_list,
    check_server_certificate,
)
from elma.doctor.clock import check_clock
from elma.doctor.finding import Finding, State
from elma.doctor.members import check_edge_keys, check_rights


def examine_broker(
    path: Path, keys: Path, now: datetime, clock: str | None = None
) -> Iterator[Finding]:
    """One finding after another, each as soon as it is there; none raises."""
    try:
        folder = SecuredFolder.load(path)
    except EnrolmentError as error:
        yield Finding("folder", State.FAILED, str(error), "name the folder of `elma broker init`")
        return
    if clock is not None:
        yield check_clock(clock)
    yield check_files(folder)
    if not _may_look(folder):
        return
    yield check_mosquitto(folder)
    yield check_configuration(folder)
    yield check_server_certificate(folder, now)
    yield check_authority(folder, now)
    yield check_members(folder, now)
    yield check_revocation_list(folder, now)
    yield check_rights(folder)
    yield check_edge_keys(folder, keys)
    yield check_store(folder)
    running = check_running(folder)
    yield running
    if running.state is not State.FAILED:
        yield check_names(folder)


def _may_look(folder: SecuredFolder) -> bool:
    """Whether this user sees into the broker's own files; what does not, `check_files` has said."""
    try:
        next(folder.broker_files.iterdir(), None)
        next((folder.path / "operator").iterdir(), None)
    except OSError:
        return False
    return True
