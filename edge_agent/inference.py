"""The one thread in which the reader runs, with a bounded queue in front of it.

Inputs: jobs (iterators that do one small piece of work for each `next`) from the HTTP side, the
offload loop and the restart. Output: their pieces are run one at a time. Neighbours: `agent`
submits and owns the jobs' content.

Before every piece the job with the nearest deadline is chosen, among those that have begun and
those that wait. A question with a long passage is therefore set aside as soon as one comes that has
less time, and goes on after it. New questions need a place, which is reserved before anything is
stored, so a full queue refuses a question while that still costs nothing. A question that waits
for the cloud has no place here: any number of those may be under way while the thread reads.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from broker.log import SafeLog
from edge_agent.errors import QueueFull

Job = Iterator[None]

_log = SafeLog(__name__)


@dataclass(order=True)
class _Task:
    """A job in the queue; the earliest deadline goes first, then whoever came first."""

    answer_by: float
    number: int
    job: Job = field(compare=False)
    estimated_seconds: float = field(default=0.0, compare=False)
    seconds: float = field(default=0.0, compare=False)


class InferenceThread:
    """Runs jobs piece by piece; `start` and `stop` may each be called once.

    `answer_by` of a job is a time in seconds of the caller's monotonic clock.
    """

    def __init__(self, *, queue_bound: int) -> None:
        self._queue_bound = queue_bound
        self._condition = threading.Condition()
        self._tasks: list[_Task] = []
        self._numbers = itertools.count()
        self._finishing_seconds = 0.0
        self._reserved = 0
        self._is_stopping = False
        self._is_running = False
        self._pieces_run = 0
        self._piece_began = 0.0
        self._seconds_a_question = 0.1
        self._thread = threading.Thread(target=self._run, name="elma-inference", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def pieces_run(self) -> int:
        """How many pieces of jobs were run so far."""
        return self._pieces_run

    @property
    def piece_seconds(self) -> float:
        """For how long the piece in hand has been running; 0 between pieces."""
        return time.perf_counter() - self._piece_began if self._is_running else 0.0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being run and nothing waits for it."""
        return not self._is_running and not self._tasks

    @property
    def waiting_count(self) -> int:
        """Places taken by questions whose reading has not begun."""
        return self._reserved

    @property
    def finishing_seconds(self) -> float:
        """How long the jobs of `finish` that are not done yet take together, estimated."""
        return self._finishing_seconds

    def start(self) -> None:
        """Begin to run jobs."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> bool:
        """End after the piece in hand; queued jobs are dropped. False when it takes longer."""
        self.end()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def end(self) -> None:
        """End after the piece in hand, without waiting; for a job after which none can be run."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify_all()

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

    def read(self, job: Job, answer_by: float) -> None:
        """Queue the reading of a new question, whose place is freed when it begins."""

        def begin() -> Job:
            self.release()
            yield from job

        self._put(begin(), answer_by)

    def read_again(self, job: Job, answer_by: float) -> None:
        """Queue the reading of a question that has no place, or needs none any more."""
        self._put(job, answer_by)

    def finish(self, job: Job, answer_by: float, seconds: float) -> None:
        """Queue the finishing of a question; `seconds` is an estimate of what it takes."""
        self._put(job, answer_by, seconds)

    def _put(self, job: Job, answer_by: float, estimated_seconds: float = 0.0) -> None:
        with self._condition:
            task = _Task(answer_by, next(self._numbers), job, estimated_seconds)
            self._finishing_seconds += estimated_seconds
            heapq.heappush(self._tasks, task)
            self._condition.notify()

    def _run(self) -> None:
        while (task := self._next_task()) is not None:
            begin = time.perf_counter()
            has_more = self._run_piece(task)
            task.seconds += time.perf_counter() - begin
            self._pieces_run += 1
            with self._condition:
                if has_more:
                    heapq.heappush(self._tasks, task)
                else:
                    self._note_done(task)
                self._is_running = False

    def _run_piece(self, task: _Task) -> bool:
        try:
            next(task.job)
        except StopIteration:
            return False
        except Exception as error:
            # A job handles its own errors; this keeps the thread alive if it does not. The
            # message stays out of the log: it could quote a question.
            _log.error("inference_job_failed", error_type=type(error).__name__)
            return False
        return True

    def _note_done(self, task: _Task) -> None:
        """With the lock held: the backlog shrinks, or the Retry-After of a full queue adapts."""
        if task.estimated_seconds:
            self._finishing_seconds = max(self._finishing_seconds - task.estimated_seconds, 0.0)
        else:
            self._seconds_a_question += 0.1 * (task.seconds - self._seconds_a_question)

    def _next_task(self) -> _Task | None:
        with self._condition:
            while not self._is_stopping:
                if self._tasks:
                    self._piece_began = time.perf_counter()  # first: `piece_seconds` reads both
                    self._is_running = True
                    return heapq.heappop(self._tasks)
                # Woken by every job and by stop; the time limit is only a safety net.
                self._condition.wait(timeout=1.0)
        return None
