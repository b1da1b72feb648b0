"""The edge agent itself: it owns the parts, accepts questions, and knows how it is.

Inputs: questions (`ask`), and those an earlier process left in the outbox. Outputs: one `Outcome`
for each, in the outbox and to whoever waits. Neighbours: `app` above; `path` decides what happens
to an accepted question, `generations` has the reader of the next one; `outbox`, `inference`,
`answers`, `ending`, `housekeeping`, `metrics` below, and `cloud_side`, if there is a cloud.

Threads: HTTP threads call `ask`; the inference thread runs `path.read`, piece by piece, and changes
releases between two pieces; the offload thread calls `path.answered_by_cloud` and `path.given_up`;
the link's thread hands deliveries over; the thread of releases fetches and tries them; the
housekeeping thread queues again what could not be looked up. Whoever gets to `ending` first wins:
it says yes once for each question.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

from broker.log import SafeLog
from broker.tracing import Span, Tracing, begin, finish
from edge_agent.answers import AnswerBoard
from edge_agent.cloud_side import CloudAccess, CloudSide, DeviceSide, Followed
from edge_agent.ending import Ending
from edge_agent.errors import InvalidQuestion, NotAccepting, OutboxError, UnknownRequest
from edge_agent.generations import Generations
from edge_agent.housekeeping import Housekeeping
from edge_agent.inference import InferenceThread
from edge_agent.local_reading import LocalReading
from edge_agent.metrics import EdgeMetrics
from edge_agent.metrics_reporter import MetricsReporter
from edge_agent.outbox import Entry, Outbox
from edge_agent.path import QuestionPath
from edge_agent.question_traces import QuestionTraces
from edge_agent.questions import FinalAnswer, Outcome, Question
from edge_agent.reader_change import ReaderChange
from edge_agent.settings import EdgeSettings
from reader.errors import InputError
from reader.memory import give_back
from reader.model import Reader

STUCK_SECONDS = 120.0
"""A piece of work is a window or two: what takes longer does not end."""

_log = SafeLog(__name__)


class EdgeAgent:
    """One agent: `start`, `ask` from any thread, `stop`.

    `reader` is None on a device that waits for its first weights, `cloud` where no cloud is
    configured, `followed` where no channel is followed; `clock` gives unix seconds. Raises
    OutboxError or SettingsError when it is made.
    """

    def __init__(
        self,
        settings: EdgeSettings,
        reader: Reader | None,
        *,
        cloud: CloudAccess | None = None,
        followed: Followed | None = None,
        tracing: Tracing | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self._clock = clock
        self.metrics = EdgeMetrics()
        self.traces = None if tracing is None else QuestionTraces(tracing)
        if tracing is not None:
            dropped = self.metrics.spans_dropped
            tracing.count_dropped_with(lambda cause, count: dropped.labels(cause).inc(count))
        self._generations = Generations(settings, self.metrics)
        if reader is not None:
            self._generations.take(self._generations.make(reader))
        self.outbox = Outbox(settings.outbox)
        self._board = AnswerBoard()
        self._ending = Ending(self.outbox, self._board, self.metrics, clock, self.traces)
        self._inference = InferenceThread(queue_bound=settings.queue_bound)
        self._change = ReaderChange(self._generations, self._inference, self._take_up_pending)
        self._path = QuestionPath(
            self._generations,
            self.outbox,
            self._ending,
            self._board,
            self._inference,
            clock,
            self.traces,
        )
        self._cloud: CloudSide | None = None
        if cloud is not None:
            device = DeviceSide(
                settings,
                self.metrics,
                self._path,
                self._inference,
                self._generations,
                self._change,
            )
            self._cloud = CloudSide(cloud, followed, device)
        self._reporter = MetricsReporter(
            settings.metrics,
            settings.name,
            self.metrics.registry,
            None if cloud is None else cloud.link.session,
        )
        self._is_stopping = threading.Event()
        self._pieces_rested = 0
        self._housekeeping = Housekeeping(
            self.outbox,
            self._ending,
            self._path.read_missed,
            self._rest,
            retention_seconds=settings.retention_seconds,
            clock=clock,
        )
        self._watch_gauges()

    @property
    def local(self) -> LocalReading:
        """What reads new questions now. Raises NoRelease."""
        return self._generations.current

    @property
    def pending_count(self) -> int:
        """Accepted questions that have not come to their end."""
        return max(self.outbox.pending_count - self._ending.unstored_count, 0)

    def start(self) -> None:
        """Begin to work, first on what an earlier process left; returns at once."""
        self._inference.start()
        self._change.begin()
        if self._cloud is not None:
            self._cloud.start()
        self._housekeeping.start()
        self._reporter.start()

    def wait_begun(self) -> None:
        """Return when the reader of the start computes, or there is none yet.

        Raises CannotCompute when it does not; what was accepted waits in the outbox.
        """
        self._change.wait_begun(STUCK_SECONDS)

    def begin_stop(self) -> None:
        """Accept no more questions; safe to call from a signal handler."""
        self._is_stopping.set()

    def stop(self) -> None:
        """Stop; the questions in hand get `shutdown_seconds`, the rest wait in the outbox."""
        self.begin_stop()
        give_up_at = time.monotonic() + self.settings.shutdown_seconds
        while self._inference.is_alive and self._generations.has_release and self.pending_count:
            if time.monotonic() >= give_up_at:
                break
            time.sleep(0.02)
        self._reporter.stop()
        if self._cloud is not None:
            self._cloud.stop()
        is_idle = self._inference.stop(timeout_seconds=self.settings.shutdown_seconds)
        self._housekeeping.stop()
        self._leave_outbox(is_idle)
        left = self.pending_count
        self._board.abandon(
            NotAccepting("the agent was stopped; the question is kept and answered after a restart")
        )
        if is_idle:
            self.outbox.close()
        if self.traces is not None:
            self.traces.close()
        unstored = self._ending.unstored_count
        _log.info("edge_stopped", pending=left, unstored=unstored)

    def ask(self, question: Question, above: Span | None = None) -> Future[Outcome]:
        """Accept a question, durably, and return the future of its outcome.

        The same question under the same id again is not asked twice. `above` is the span of who
        asks, where there are traces. Raises a QuestionRefused.
        """
        if self._is_stopping.is_set():
            raise NotAccepting("the agent is stopping; ask again when it is back")
        try:
            if self._ending.find(question.request_id) is None:
                self._accept_new(question, above)
            else:
                self.outbox.accept(question)  # raises when the content is another one
            return self.await_outcome(question.request_id)
        except OutboxError as error:
            _log.error("question_not_stored", request_id=question.request_id)
            raise NotAccepting(
                f"request {question.request_id} could not be stored, so it was not accepted; "
                "the agent's log says why"
            ) from error

    def await_outcome(self, request_id: str) -> Future[Outcome]:
        """The future of a stored question. Raises UnknownRequest."""
        # The future first, then the look: an outcome in between is seen by one of the two.
        future = self._board.expect(request_id)
        entry = self._ending.find(request_id)
        if entry is None:
            self._board.forget(request_id)
            raise UnknownRequest(f"request {request_id}: not accepted here, or past its retention")
        if entry.outcome is not None:
            self._board.settle(entry.outcome)
            if not future.done():
                future.set_result(entry.outcome)
        return future

    def find(self, request_id: str) -> tuple[Entry, FinalAnswer | None]:
        """What is stored under an id, and the provisional answer while it is pending.

        Raises UnknownRequest.
        """
        entry = self._ending.find(request_id)
        if entry is None:
            raise UnknownRequest(f"request {request_id}: not accepted here, or past its retention")
        return entry, self._board.provisional(request_id)

    @property
    def is_ready(self) -> bool:
        """Whether a new question would be read at once: warmed up, sound and not stopping."""
        return self._change.is_warm and not self._is_stopping.is_set() and not self._problems()

    @property
    def is_sound(self) -> bool:
        """Whether a restart would mend nothing: its threads live, and the reader gets on.

        An outbox that cannot be written is a problem too, but one that ends without a restart.
        """
        is_stuck = self._inference.piece_seconds >= STUCK_SECONDS
        return self._inference.is_alive and not is_stuck and not self._cloud_problems()

    def health(self) -> dict[str, Any]:
        """The state of the agent, for `GET /healthz`."""
        alone = {"cloud": None, "releases": None, "audit": None}
        local = self._generations.current if self._generations.has_release else None
        problems = self._problems()
        status = "failing" if problems else "ok"
        return {
            "status": "stopping" if self._is_stopping.is_set() else status,
            "problems": problems,
            "name": self.settings.name,
            "model": local and {"name": local.reader.name, "digest": local.reader.digest},
            "engine": local and asdict(local.reader.engine.choice),
            "layers": local and local.reader.config.layers,
            "edge_layers": local and local.edge_layers,
            **(alone if self._cloud is None else self._cloud.health()),
            "queues": {
                "waiting": self._inference.waiting_count,
                "in_flight": 0 if self._cloud is None else self._cloud.in_flight_count,
                "pending": self.pending_count,
                "unstored": self._ending.unstored_count,
            },
        }

    def _accept_new(self, question: Question, above: Span | None) -> None:
        local = self._generations.current
        self._inference.reserve()
        span = None if self.traces is None else self.traces.begin(question, above)
        try:
            splitting = begin(span, "tokenize")
            windows = local.reader.split(question.question, question.passage)
            finish(splitting, windows=len(windows))
            storing = begin(span, "store")
            is_new = self.outbox.accept(question)
            finish(storing)
        except InputError as error:
            self._inference.release()
            finish(span, "invalid")
            raise InvalidQuestion(str(error)) from error
        except BaseException:
            self._inference.release()
            finish(span, "not accepted")
            raise
        if is_new:
            if self.traces is not None:
                self.traces.keep(question, span)
            answer_by = self._moment(question.deadline)
            self._inference.read(self._path.read(question.request_id, answer_by), answer_by)
        else:  # the same id came in twice at once
            self._inference.release()
            finish(span, outcome="repeated")

    def _take_up_pending(self) -> None:
        """What an earlier process left: nobody waits at the socket any more, so it may take longer.

        Each further interrupted reading puts a question behind the others.
        """
        longest_seconds = self.settings.max_deadline_seconds
        for request_id, generation, deadline in self.outbox.pending():
            answer_by = self._moment(deadline)
            if generation or answer_by <= time.monotonic():
                answer_by = time.monotonic() + (1 + generation) * longest_seconds
            job = self._path.read(request_id, answer_by, is_taken_over=True)
            self._inference.read_again(job, answer_by)

    def _rest(self) -> None:
        """Housekeeping: the care of releases, and what questions needed once there is none."""
        if self._cloud is not None:
            self._cloud.care()
        pieces_run = self._inference.pieces_run
        is_rested = not self._inference.is_idle or pieces_run == self._pieces_rested
        if self._generations.drop_ended() or not is_rested:
            self._pieces_rested = pieces_run
            give_back()

    def _moment(self, deadline: float) -> float:
        """A deadline in unix seconds on the monotonic clock, which nobody sets back."""
        return time.monotonic() + (deadline - self._clock())

    def _problems(self) -> list[str]:
        """What keeps the agent from answering, in words for `GET /healthz`."""
        problems = []
        if not self._inference.is_alive:
            problems.append("the inference thread has ended; restart the agent")
        problems += self._cloud_problems()
        if self.outbox.fault is not None:
            problems.append(str(self.outbox.fault))
        return problems

    def _cloud_problems(self) -> list[str]:
        return [] if self._cloud is None else self._cloud.problems()

    def _leave_outbox(self, is_idle: bool) -> None:
        """At a stop: store what can be stored; what waits now is innocent of any crash."""
        try:
            self._ending.store_again()
            if is_idle:
                self.outbox.forget_generations()
            self.outbox.checkpoint()
        except OutboxError as error:
            _log.error("outbox_not_left_clean", error=str(error))

    def _watch_gauges(self) -> None:
        metrics = self.metrics
        if self.settings.broker is not None:
            metrics.certificate_expires.set_function(self.settings.broker.certificate_expires)
        metrics.readers_held.set_function(lambda: self._generations.held_count)
        metrics.outbox_pending.set_function(lambda: self.pending_count)
        metrics.waiting.set_function(lambda: self._inference.waiting_count)
