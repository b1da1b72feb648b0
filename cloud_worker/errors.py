"""Every failure of the worker, drawn once.

WorkerError
├── WorkerSettingsError    a setting is wrong or cannot be read
├── PartDied               a thread of the worker ended; the worker leaves
├── ListenError            the address for health and metrics cannot be used
├── CannotCompute          a reader was loaded and fails with its engine on this machine
├── TooManyReleases        no place in memory for one release more
└── RequestRefused         a request that this worker will not compute, with the reason
"""

from __future__ import annotations

import traceback
from pathlib import Path


class WorkerError(Exception):
    """Base of everything that the worker raises on purpose."""


class WorkerSettingsError(WorkerError):
    """A setting is wrong, or its file cannot be read."""


class ListenError(WorkerError):
    """The HTTP address for health and metrics cannot be used."""


class CannotCompute(WorkerError):
    """A reader was loaded, and cannot compute with its engine on this machine."""


class TooManyReleases(WorkerError):
    """As many releases as may be are in memory, and none of them can go."""


class PartDied(WorkerError):
    """A part that must live as long as the worker has ended."""


class RequestRefused(WorkerError):
    """A proved request that cannot be computed here.

    `code` is one of `protocol.messages.ERROR_CODES`; the text goes to the edge, sealed.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def describe_fault(error: Exception) -> str:
    """Kind and place of an unforeseen error, for the log.

    Without its message, which may quote a state or a payload.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
