"""The one end of a question: stored, counted, handed out, logged, and never a second time.

Input: a question and its outcome, from whichever thread got there. Outputs: the outbox's entry, the
future of whoever waits, the metrics, the end of its trace, one log line. Neighbours: `agent` calls
it and asks it first what became of a question; the outbox decides who was first.

An outcome that cannot be stored (a full disk) is kept here and is the outcome all the same: it is
what everybody gets who asks, and `store_again` tries until the outbox takes it. There are never
more of them than pending questions, because without a disk nothing new is accepted.
"""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker.log import SafeLog
from broker.tracing import begin, finish
from edge_agent.answers import AnswerBoard
from edge_agent.errors import OutboxError
from edge_agent.lease import Reason
from edge_agent.metrics import EdgeMetrics
from edge_agent.outbox import Entry, Outbox
from edge_agent.question_traces import QuestionTraces
from edge_agent.questions import FinalAnswer, OffloadRecord, Outcome, Question

_log = SafeLog(__name__)


class Ending:
    """Ends questions; `clock` gives unix seconds. Safe for any thread."""

    def __init__(
        self,
        outbox: Outbox,
        board: AnswerBoard,
        metrics: EdgeMetrics,
        clock: Callable[[], float],
        traces: QuestionTraces | None = None,
    ) -> None:
        self._traces = traces
        self._outbox, self._board, self._metrics, self._clock = outbox, board, metrics, clock
        self._lock = threading.Lock()
        self._unstored: dict[str, tuple[Outcome, float]] = {}

    @property
    def unstored_count(self) -> int:
        """Outcomes that wait for the outbox to take them."""
        return len(self._unstored)

    def conclude(
        self,
        question: Question,
        outcome: Outcome,
        *,
        record: OffloadRecord | None = None,
        windows: int = 0,
        reason: Reason | None = None,
    ) -> None:
        """End a question with `outcome`, unless it has ended already.

        `record` tells how its way to the cloud went, `reason` why the device finished it alone.
        """
        now = self._clock()
        span = None if self._traces is None else begin(self._traces.find(question), "settle")
        is_first = self._store(question.request_id, outcome, now)
        finish(span, is_first=is_first)
        seconds = max(now - question.created, 0.0)
        with contextlib.suppress(Exception):  # counts in memory: whoever has the answer sees them
            if not is_first:
                self._metrics.ignored.labels("late").inc()
            else:
                self._metrics.count_outcome(outcome, seconds)
                if reason is not None:
                    self._metrics.degraded.labels(reason.value).inc()
        if not is_first:
            return
        # Whoever waits comes before the log, which may be slow or broken.
        self._board.settle(outcome)
        with contextlib.suppress(Exception):
            self._tell(question, outcome, record or OffloadRecord(), windows, reason, seconds)

    def find(self, request_id: str) -> Entry | None:
        """What is known of an id, stored or not. Raises OutboxError."""
        # First here, then there: on its way to the outbox an outcome is in both for a moment.
        unstored = self._unstored.get(request_id)
        if unstored is not None:
            return Entry(request_id, unstored[0])
        return self._outbox.find(request_id)

    def store_again(self) -> None:
        """Try to store what could not be stored. Raises OutboxError; what is left stays here."""
        with self._lock:
            for request_id, (outcome, concluded) in list(self._unstored.items()):
                self._outbox.conclude(request_id, outcome, concluded)
                del self._unstored[request_id]

    def _store(self, request_id: str, outcome: Outcome, now: float) -> bool:
        """Whether this is the first outcome of the question; from then on it is the only one."""
        with self._lock:
            if request_id in self._unstored:
                return False
            try:
                return self._outbox.conclude(request_id, outcome, now)
            except OutboxError as error:
                self._unstored[request_id] = (outcome, now)
                fault = str(error)
        _log.error("outcome_not_stored", request_id=request_id, error=fault)
        return True

    def _tell(
        self,
        question: Question,
        outcome: Outcome,
        record: OffloadRecord,
        windows: int,
        reason: Reason | None,
        seconds: float,
    ) -> None:
        """The end of its trace and its one log line: ids, numbers and names, never text."""
        fields: dict[str, Any] = {"outcome": "failed"}
        trace_id = None
        if self._traces is not None:
            trace_id = self._traces.end(question, outcome, record, reason and reason.value)
        if isinstance(outcome, FinalAnswer):
            fields = {
                "outcome": "answered" if outcome.answer else "no_answer",
                "resolved_by": outcome.resolved_by,
                "exit_layer": outcome.exit_layer,
                "engine": outcome.engine,
                "precision": outcome.precision,
                "degraded": outcome.degraded,
                "reason": reason and reason.value,
            }
        else:
            fields["reason"] = outcome.reason
        _log.info(
            "question",
            request_id=question.request_id,
            generation=question.generation,
            **fields,
            windows=windows,
            wire_id=record.wire_id,
            worker=record.worker,
            publications=record.publications,
            bytes_sent=record.bytes_sent,
            duration_seconds=round(seconds, 4),
            **({} if trace_id is None else {"trace_id": trace_id}),
        )


def describe_fault(error: BaseException) -> str:
    """The kind and place of an unexpected error; its message stays out, it could quote a text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
