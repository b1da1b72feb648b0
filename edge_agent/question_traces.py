"""The spans of pending questions, by request id: one trace from HTTP to the worker and back.

    POST /v1/answer        the request at the door, below the asker's own `traceparent`
      question             from its acceptance to its end, however long the asker waited
        tokenize, store    before it is accepted
        read               the device's layers; `layers` for each batch of windows
        offload            to the cloud and back; `publish` for each publication
          request          the worker's: `queue`, `compute`, `reply`
        finish             the remaining layers, where the device ends it alone
        settle             the outcome is stored

Inputs: a `Tracing`, questions as they are accepted, taken up and ended. Neighbours: `app` begins,
`agent`, `path` and `offload` go on, `ending` ends; `broker.tracing` has the spans. There are never
more of them here than pending questions. A question that an earlier process had accepted gets a
trace of its own, which the same request id tells.
"""

from __future__ import annotations

from broker.tracing import Span, Tracing, finish
from edge_agent.questions import FinalAnswer, OffloadRecord, Outcome, Question


class QuestionTraces:
    """Safe for any thread."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._spans: dict[str, Span] = {}

    def begin_request(self, trace_parent: str | None, route: str) -> Span | None:
        """A request came in at the door."""
        return self._tracing.begin(
            f"POST {route}", trace_parent, kind="server", http_method="POST", http_route=route
        )

    def begin(self, question: Question, above: Span | None) -> Span | None:
        """A question, not yet accepted."""
        parent = None if above is None else above.trace_parent
        return self._tracing.begin(
            "question",
            parent,
            request_id=question.request_id,
            deadline_seconds=question.deadline_seconds,
        )

    def keep(self, question: Question, span: Span | None) -> None:
        """It is accepted: from now on `find` knows its span."""
        if span is not None:
            self._spans[question.request_id] = span

    def find(self, question: Question) -> Span | None:
        """The span of a pending question that was accepted, or taken up, here."""
        return self._spans.get(question.request_id)

    def take_up(self, question: Question) -> Span | None:
        """The same, or a new one where an earlier process had accepted the question."""
        found = self.find(question)
        if found is None:
            found = self._tracing.begin(
                "question",
                None,
                request_id=question.request_id,
                deadline_seconds=question.deadline_seconds,
                taken_over=True,
                generation=question.generation,
            )
            self.keep(question, found)
        return found

    def end(
        self, question: Question, outcome: Outcome, record: OffloadRecord, reason: str | None
    ) -> str | None:
        """A question came to its end; its trace id, where a collector gets the trace."""
        span = self._spans.pop(question.request_id, None)
        if span is None:
            return None
        if isinstance(outcome, FinalAnswer):
            span.set(
                {
                    "outcome": "answered" if outcome.answer else "no_answer",
                    "resolved_by": outcome.resolved_by,
                    "exit_layer": outcome.exit_layer,
                    "degraded": outcome.degraded,
                    "release": outcome.release,
                    "engine": outcome.engine,
                    "precision": outcome.precision,
                }
            )
        finish(
            span,
            None if isinstance(outcome, FinalAnswer) else "failed",
            reason=reason,
            worker=record.worker,
            publications=record.publications,
            bytes_sent=record.bytes_sent,
        )
        return span.trace_id if span.is_sampled else None

    def close(self) -> None:
        """The process ends: what is pending is answered by the next one."""
        while self._spans:
            _, span = self._spans.popitem()
            finish(span, outcome="left to the next process")
