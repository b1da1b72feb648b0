"""The one end of a question: stored, counted, logged, handed out, and never a second time.

Input: a question and its outcome, from whichever thread got there. Outputs: the outbox's entry, the
metrics, one log line, the future of whoever waits. Neighbours: `agent` calls it; the outbox decides
who was first.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import structlog

from edge_agent.answers import AnswerBoard
from edge_agent.errors import OutboxError
from edge_agent.lease import Reason
from edge_agent.metrics import EdgeMetrics
from edge_agent.outbox import Outbox
from edge_agent.questions import FinalAnswer, OffloadRecord, Outcome, Question

_log = structlog.get_logger(__name__)


class Ending:
    """Ends questions; `clock` gives unix seconds. Safe for any thread."""

    def __init__(
        self, outbox: Outbox, board: AnswerBoard, metrics: EdgeMetrics, clock: Callable[[], float]
    ) -> None:
        self._outbox, self._board, self._metrics, self._clock = outbox, board, metrics, clock

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
        try:
            if not self._outbox.conclude(question.request_id, outcome, now):
                self._metrics.ignored.labels("late").inc()
                return
        except OutboxError as error:
            # Whoever waits still gets it; after a restart the question is answered once more.
            _log.error("outcome_not_stored", request_id=question.request_id, error=str(error))
        seconds = max(now - question.created, 0.0)
        if reason is not None:
            self._metrics.degraded.labels(reason.value).inc()
        self._metrics.count_outcome(outcome, seconds)
        self._write_line(question, outcome, record or OffloadRecord(), windows, reason, seconds)
        self._board.settle(outcome)

    def _write_line(
        self,
        question: Question,
        outcome: Outcome,
        record: OffloadRecord,
        windows: int,
        reason: Reason | None,
        seconds: float,
    ) -> None:
        """The one log line of a question: ids, numbers and names, never text."""
        log = _log.bind(request_id=question.request_id, generation=question.generation)
        if isinstance(outcome, FinalAnswer):
            log = log.bind(
                outcome="answered" if outcome.answer else "no_answer",
                resolved_by=outcome.resolved_by,
                exit_layer=outcome.exit_layer,
                degraded=outcome.degraded,
                reason=reason and reason.value,
            )
        else:
            log = log.bind(outcome="failed", reason=outcome.reason)
        log.info(
            "question",
            windows=windows,
            wire_id=record.wire_id,
            worker=record.worker,
            publications=record.publications,
            bytes_sent=record.bytes_sent,
            duration_seconds=round(seconds, 4),
        )


def describe_fault(error: BaseException) -> str:
    """The kind and place of an unexpected error; its message stays out, it could quote a text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
