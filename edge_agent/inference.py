"""The one thread in which the reader runs, with a bounded queue in front of it.

Inputs: jobs (functions without arguments) from the HTTP side, the offload loop and the restart.
Output: they are run one at a time. Neighbours: `agent` submits and owns the jobs' content.

Jobs that finish a question after the cloud failed it go first: their askers have waited longest.
New questions need a place, which is reserved before anything is stored, so a full queue refuses a
question while that still costs nothing. A question that waits for the cloud has no place here: any
number of those may be under way while the thread reads the next one.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import structlog

from edge_agent.errors import QueueFull

_Item = TypeVar("_Item")
Job = Callable[[], None]

_log = structlog.get_logger(__name__)


class InferenceThread:
    """Runs jobs one after another; `start` and `stop` may each be called once."""

    def __init__(self, *, queue_bound: int) -> None:
        self._queue_bound = queue_bound
        self._condition = threading.Condition()
        self._new: deque[Job] = deque()
        self._finishing: deque[tuple[Job, float]] = deque()
        self._reserved = 0
        self._is_stopping = False
        self._seconds_a_question = 0.1
        self._thread = threading.Thread(target=self._run, name="elma-inference", daemon=True)

    @property
    def waiting_count(self) -> int:
        """Places taken by questions whose reading has not begun."""
        return self._reserved

    @property
    def finishing_seconds(self) -> float:
        """How long the jobs of `finish` that are queued now will take, estimated."""
        with self._condition:
            return sum(seconds for _, seconds in self._finishing)

    def start(self) -> None:
        """Begin to run jobs."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> bool:
        """End after the job in hand; queued jobs are dropped. False when it takes longer."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def reserve(self) -> None:
        """Take a place for a new question. Raises QueueFull when there is none."""
        with self._condition:
            if self._reserved >= self._queue_bound:
                wait_seconds = math.ceil(self._queue_bound * self._seconds_a_question / 2)
                raise QueueFull(
                    f"{self._reserved} questions are waiting, which is the bound `queue_bound`; "
                    "ask again later",
                    retry_after_seconds=min(max(wait_seconds, 1), 30),
                )
            self._reserved += 1

    def release(self) -> None:
        """Give a reserved place back without using it."""
        with self._condition:
            self._reserved -= 1

    def read(self, job: Job) -> None:
        """Queue the reading of a new question, whose place is freed when it begins."""

        def begin() -> None:
            self.release()
            job()

        self._append(self._new, begin)

    def read_again(self, job: Job) -> None:
        """Queue the reading of a question that an earlier process accepted: it needs no place."""
        self._append(self._new, job)

    def finish(self, job: Job, seconds: float) -> None:
        """Queue the finishing of a question ahead of all new ones; `seconds` is an estimate."""
        self._append(self._finishing, (job, seconds))

    def note_duration(self, seconds: float) -> None:
        """How long a question took; smoothed, it becomes the Retry-After of a full queue."""
        self._seconds_a_question += 0.1 * (seconds - self._seconds_a_question)

    def _append(self, queue: deque[_Item], item: _Item) -> None:
        with self._condition:
            queue.append(item)
            self._condition.notify()

    def _run(self) -> None:
        while (job := self._next_job()) is not None:
            try:
                job()
            except Exception as error:
                # A job handles its own errors; this keeps the thread alive if it does not. The
                # message stays out of the log: it could quote a question.
                _log.error("inference_job_failed", error_type=type(error).__name__)

    def _next_job(self) -> Job | None:
        with self._condition:
            while not self._is_stopping:
                if self._finishing:
                    return self._finishing.popleft()[0]
                if self._new:
                    return self._new.popleft()
                # Woken by every append and by stop; the time limit is only a safety net.
                self._condition.wait(timeout=1.0)
        return None
