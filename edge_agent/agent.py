"""The edge agent itself: it owns the parts, decides what happens to a question, and ends it once.

    ask -> outbox (durable) -> inference: the device's layers
        every window certain  -> the answer, resolved by the edge
        no cloud configured   -> the device's layers are all layers, so this does not happen
        cloud out of reach    -> inference: the remaining layers, degraded
        otherwise             -> offload -> the cloud's answer, or given up: the remaining layers

Inputs: questions (`ask`), and those an earlier process left in the outbox. Outputs: one `Outcome`
for each, in the outbox and to whoever waits. Neighbours: `app` above; `outbox`, `inference`,
`local_reading`, `offload`, `answers`, `ending`, `metrics` below.

Threads: HTTP threads call `ask`; the inference thread runs `_read` and `_finish_here`; the offload
thread calls `_answered_by_cloud` and `_given_up`. Whoever gets to `ending` first wins: the outbox
says yes only once for each question.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import structlog

from edge_agent.answers import AnswerBoard
from edge_agent.ending import Ending, describe_fault
from edge_agent.errors import InvalidQuestion, NotAccepting, OutboxError, UnknownRequest
from edge_agent.inference import InferenceThread
from edge_agent.lease import Reason
from edge_agent.local_reading import LocalReading, Reading
from edge_agent.metrics import EdgeMetrics
from edge_agent.offload import CloudAnswer, Offloader
from edge_agent.outbox import Entry, Outbox
from edge_agent.questions import Failure, FinalAnswer, OffloadRecord, Outcome, Question
from edge_agent.settings import EdgeSettings
from reader.errors import InputError
from reader.model import Reader
from reader.spans import WindowSpans

MAX_GENERATIONS = 3
"""Restarts after which a question is given up: it may be what kills the process."""

_log = structlog.get_logger(__name__)

OffloaderFactory = Callable[["OffloadParts"], Offloader]


@dataclass(frozen=True)
class OffloadParts:
    """What an offloader is built from besides its session and keys."""

    settings: EdgeSettings
    local: LocalReading
    metrics: EdgeMetrics
    on_answer: Callable[[Reading, CloudAnswer, OffloadRecord], None]
    on_give_up: Callable[[Reading, Reason, OffloadRecord], None]
    backlog_seconds: Callable[[], float]


class EdgeAgent:
    """One agent: `start`, `ask` from any thread, `stop`. Raises OutboxError when it is made.

    `make_offloader` is None where no cloud is configured; `clock` gives unix seconds.
    """

    def __init__(
        self,
        settings: EdgeSettings,
        reader: Reader,
        *,
        make_offloader: OffloaderFactory | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.reader = reader
        self._clock = clock
        layers = reader.config.layers
        wanted = settings.max_edge_layers or reader.settings.default_edge_layers
        edge_layers = min(wanted, layers) if make_offloader is not None else layers
        self.local = LocalReading(reader, edge_layers=edge_layers, codec=settings.offload.codec)
        self.metrics = EdgeMetrics(layers)
        self.outbox = Outbox(settings.outbox)
        self._board = AnswerBoard()
        self._ending = Ending(self.outbox, self._board, self.metrics, clock)
        self._inference = InferenceThread(queue_bound=settings.queue_bound)
        self._offloader = make_offloader and make_offloader(
            OffloadParts(
                settings,
                self.local,
                self.metrics,
                self._answered_by_cloud,
                self._given_up,
                lambda: self._inference.finishing_seconds,
            )
        )
        self._is_stopping = threading.Event()
        self._housekeeping = threading.Thread(
            target=self._keep_house, name="elma-housekeeping", daemon=True
        )
        self._watch_gauges()

    def start(self) -> None:
        """Begin to work, first on what an earlier process left; returns at once."""
        self._inference.start()
        self._inference.read_again(self.local.warm_up)
        if self._offloader is not None:
            self._offloader.start()
        self._take_up_pending()
        self._housekeeping.start()

    def begin_stop(self) -> None:
        """Accept no more questions; safe to call from a signal handler."""
        self._is_stopping.set()

    def stop(self) -> None:
        """Stop; the questions in hand get `shutdown_seconds`, the rest wait in the outbox."""
        self.begin_stop()
        give_up_at = time.monotonic() + self.settings.shutdown_seconds
        while self.outbox.pending_count and time.monotonic() < give_up_at:
            time.sleep(0.02)
        if self._offloader is not None:
            self._offloader.stop()
        is_idle = self._inference.stop(timeout_seconds=self.settings.shutdown_seconds)
        left = self.outbox.pending_count
        self._board.abandon(
            NotAccepting("the agent was stopped; the question is kept and answered after a restart")
        )
        if is_idle:
            self.outbox.close()
        _log.info("edge_stopped", pending=left)

    def ask(self, question: Question) -> Future[Outcome]:
        """Accept a question, durably, and return the future of its outcome.

        The same question under the same id again is not asked twice. Raises a QuestionRefused.
        """
        if self._is_stopping.is_set():
            raise NotAccepting("the agent is stopping; ask again when it is back")
        try:
            if self.outbox.find(question.request_id) is None:
                self._accept_new(question)
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
        entry = self.outbox.find(request_id)
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
        entry = self.outbox.find(request_id)
        if entry is None:
            raise UnknownRequest(f"request {request_id}: not accepted here, or past its retention")
        return entry, self._board.provisional(request_id)

    def health(self) -> dict[str, Any]:
        """The state of the agent, for `GET /healthz`."""
        cloud = None if self._offloader is None else self._offloader.health()
        return {
            "status": "stopping" if self._is_stopping.is_set() else "ok",
            "name": self.settings.name,
            "model": {"name": self.reader.name, "digest": self.reader.digest},
            "layers": self.reader.config.layers,
            "edge_layers": self.local.edge_layers,
            "cloud": cloud,
            "queues": {
                "waiting": self._inference.waiting_count,
                "in_flight": 0 if self._offloader is None else self._offloader.in_flight_count,
                "pending": self.outbox.pending_count,
            },
        }

    def _accept_new(self, question: Question) -> None:
        self._inference.reserve()
        try:
            self.reader.split(question.question, question.passage)
            is_new = self.outbox.accept(question)
        except InputError as error:
            self._inference.release()
            raise InvalidQuestion(str(error)) from error
        except BaseException:
            self._inference.release()
            raise
        if is_new:
            self._inference.read(functools.partial(self._read, question.request_id))
        else:  # the same id came in twice at once
            self._inference.release()

    def _take_up_pending(self) -> None:
        for request_id, generation in self.outbox.take_up_pending():
            if generation > MAX_GENERATIONS:
                question = self.outbox.pending_question(request_id)
                if question is not None:
                    self._fail(question, f"given up after {MAX_GENERATIONS} restarts of the agent")
                continue
            self._inference.read_again(functools.partial(self._read, request_id))

    def _read(self, request_id: str) -> None:
        """Inference thread: the device's layers, and what follows from them."""
        question = self.outbox.pending_question(request_id)
        if question is None:
            return
        begin = time.perf_counter()
        try:
            reading = self.local.read(question)
            if reading.is_settled:
                self._conclude_locally(reading, reading.resolved, degraded=False)
            elif self._offloader is not None:
                self._hand_over(self._offloader, reading)
        except Exception as error:
            self._fail(question, describe_fault(error))
        finally:
            self._inference.note_duration(time.perf_counter() - begin)

    def _hand_over(self, offloader: Offloader, reading: Reading) -> None:
        """Inference thread: to the cloud, or, where that is hopeless, on with the next layers."""
        reason = offloader.refusal(reading)
        if reason is None:
            self._board.note_provisional(
                self._answer(reading, reading.provisional, degraded=True, record=OffloadRecord())
            )
            reason = offloader.submit(reading)
        if reason is not None:
            self._finish_here(reading, reason, OffloadRecord())

    def _answered_by_cloud(
        self, reading: Reading, answer: CloudAnswer, record: OffloadRecord
    ) -> None:
        """Offload thread: spans of the cloud become the final answer."""
        results = {**reading.resolved, **answer.results}
        try:
            final = self.local.answer(
                reading,
                results,
                resolved_by="cloud",
                degraded=False,
                latency_seconds=self._clock() - reading.question.created,
                bytes_sent=record.bytes_sent,
            )
        except Exception as error:
            _log.error("cloud_answer_unusable", error=describe_fault(error))
            self._given_up(reading, Reason.REFUSED, record)
            return
        self._ending.conclude(reading.question, final, record=record, windows=len(reading.windows))

    def _given_up(self, reading: Reading, reason: Reason, record: OffloadRecord) -> None:
        """Offload thread: the cloud did not answer; the remaining layers run here."""
        seconds = self.local.finishing_seconds(reading)
        self._inference.finish(lambda: self._finish_here(reading, reason, record), seconds)

    def _finish_here(self, reading: Reading, reason: Reason, record: OffloadRecord) -> None:
        """Inference thread: the remaining layers; the provisional answer if even that fails."""
        try:
            results = self.local.finish(reading)
        except Exception as error:
            _log.error("local_finish_failed", error=describe_fault(error))
            results = reading.provisional
        self._conclude_locally(reading, results, degraded=True, reason=reason, record=record)

    def _conclude_locally(
        self,
        reading: Reading,
        results: Mapping[int, WindowSpans],
        *,
        degraded: bool,
        reason: Reason | None = None,
        record: OffloadRecord | None = None,
    ) -> None:
        record = record or OffloadRecord()
        try:
            final = self._answer(reading, results, degraded=degraded, record=record)
        except Exception as error:
            self._fail(reading.question, describe_fault(error))
            return
        self._ending.conclude(
            reading.question, final, record=record, windows=len(reading.windows), reason=reason
        )

    def _answer(
        self,
        reading: Reading,
        results: Mapping[int, WindowSpans],
        *,
        degraded: bool,
        record: OffloadRecord,
    ) -> FinalAnswer:
        return self.local.answer(
            reading,
            results,
            resolved_by="edge",
            degraded=degraded,
            latency_seconds=self._clock() - reading.question.created,
            bytes_sent=record.bytes_sent,
        )

    def _fail(self, question: Question, reason: str) -> None:
        self._ending.conclude(question, Failure(question.request_id, reason))

    def _keep_house(self) -> None:
        """Delete what is past its retention, until the agent stops."""
        interval_seconds = min(max(self.settings.retention_seconds / 4, 0.1), 60.0)
        while not self._is_stopping.wait(interval_seconds):
            try:
                self.outbox.purge(self._clock() - self.settings.retention_seconds)
            except OutboxError as error:
                _log.error("outbox_not_purged", error=str(error))

    def _watch_gauges(self) -> None:
        metrics = self.metrics
        metrics.outbox_pending.set_function(lambda: self.outbox.pending_count)
        metrics.waiting.set_function(lambda: self._inference.waiting_count)
        offloader = self._offloader
        if offloader is not None:
            metrics.in_flight.set_function(lambda: offloader.in_flight_count)
            metrics.broker_connected.set_function(lambda: float(offloader.is_connected))
