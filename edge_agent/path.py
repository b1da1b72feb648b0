"""The path of one question through the device: read, hand over, finish here, conclude.

    ask -> outbox (durable) -> inference: the device's layers
        the reader fails      -> read again where the release is on probation, else a failure
        deadline reached      -> the best of what is read so far, degraded
        every window certain  -> the answer, resolved by the edge
        no cloud configured   -> the device's layers are all layers, so this does not happen
        cloud out of reach    -> inference: the remaining layers, degraded
        otherwise             -> offload -> the cloud's answer, or given up: the remaining layers

Inputs: the id of an accepted question (on the inference thread), a worker's spans or a refusal (on
the offload thread). Output: exactly one `Ending.conclude` for each question. Neighbours: `agent`
accepts questions and starts their path, `inference` runs its steps by deadline, `offload` carries
it to the cloud, `generations` has the release that a reading begins with, `local_reading` does the
reading.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping

from broker.log import SafeLog
from edge_agent.answers import AnswerBoard
from edge_agent.audit import Auditor
from edge_agent.ending import Ending, describe_fault
from edge_agent.errors import OutboxError
from edge_agent.generations import Generations
from edge_agent.in_flight import CloudAnswer
from edge_agent.inference import InferenceThread, Job
from edge_agent.lease import Reason
from edge_agent.local_reading import LocalReading, Reading
from edge_agent.offload import Offloader
from edge_agent.outbox import Outbox
from edge_agent.question_traces import QuestionTraces
from edge_agent.questions import Failure, FinalAnswer, OffloadRecord, Question
from reader.errors import InputError
from reader.spans import WindowSpans

MAX_GENERATIONS = 3
"""Restarts that died while they read a question, after which it is given up: it may be the cause.

The reading of every question that came to such an end less often goes first.
"""
_log = SafeLog(__name__)


class QuestionPath:
    """What happens to a question once it is accepted.

    `offloader` is None without a cloud, `auditor` where no answer is compared with the cloud's.
    `is_forgiven` hears of every fault of a reader, and says whether another one will read the
    question: then it is kept until then. `clock` gives unix seconds.
    """

    def __init__(
        self,
        generations: Generations,
        outbox: Outbox,
        ending: Ending,
        board: AnswerBoard,
        inference: InferenceThread,
        clock: Callable[[], float],
        traces: QuestionTraces | None = None,
    ) -> None:
        self.offloader: Offloader | None = None
        self.auditor: Auditor | None = None
        self.is_forgiven: Callable[[LocalReading], bool] = lambda _local: False
        self._generations, self._outbox, self._ending = generations, outbox, ending
        self._board, self._inference, self._clock = board, inference, clock
        self._traces = traces
        self._missed: deque[tuple[str, float, bool]] = deque()

    def read_missed(self) -> None:
        """Housekeeping: queue again what the outbox could not give when its turn came."""
        for _ in range(len(self._missed)):
            request_id, answer_by, is_taken_over = self._missed.popleft()
            job = self.read(request_id, answer_by, is_taken_over=is_taken_over)
            self._inference.read_again(job, answer_by)

    def read(self, request_id: str, answer_by: float, *, is_taken_over: bool = False) -> Job:
        """Inference thread: the device's layers, and what follows from them."""
        try:
            question = self._look_up(request_id, is_taken_over)
        except OutboxError as error:
            self._missed.append((request_id, answer_by, is_taken_over))
            _log.error("question_not_read", request_id=request_id, error=str(error))
            return
        if question is None:
            return
        local = self._generations.current
        span = None if self._traces is None else self._traces.take_up(question)
        try:
            reading = yield from local.read_in_steps(question, answer_by, span)
            if not reading.is_complete:
                self._conclude_locally(
                    reading, reading.provisional, degraded=True, reason=Reason.DEADLINE
                )
            elif reading.is_settled:
                self._conclude_locally(reading, reading.resolved, degraded=False)
                if self.auditor is not None:
                    self.auditor.answered_here(reading)
            elif self.offloader is not None:
                yield from self._hand_over(self.offloader, reading)
        except InputError as error:  # another tokenizer than the one that accepted it
            self._fail(question, describe_fault(error))
        except Exception as error:
            if self.is_forgiven(local):
                self._missed.append((request_id, answer_by, False))
                _log.warning("question_kept", request_id=request_id, error=describe_fault(error))
            else:
                self._fail(question, describe_fault(error))

    def _look_up(self, request_id: str, is_taken_over: bool) -> Question | None:
        """The question whose reading begins now; None when it has ended. Raises OutboxError."""
        question = self._outbox.pending_question(request_id)
        if question is None or not is_taken_over:
            return question
        if question.generation >= MAX_GENERATIONS:
            self._fail(question, f"given up: {MAX_GENERATIONS} restarts ended while it was read")
            return None
        self._outbox.count_begun(request_id)
        return self._outbox.pending_question(request_id)

    def _hand_over(self, offloader: Offloader, reading: Reading) -> Job:
        """Inference thread: to the cloud, or, where that is hopeless, on with the next layers."""
        reason = offloader.refusal(reading)
        if reason is None:
            self._board.note_provisional(
                self._answer(reading, reading.provisional, degraded=True, record=OffloadRecord())
            )
            self._count(self._outbox.count_ended, reading.question)
            reason = offloader.submit(reading)
        if reason is not None:
            yield from self._finish_here(reading, reason, OffloadRecord())

    def answered_by_cloud(
        self, reading: Reading, answer: CloudAnswer, record: OffloadRecord
    ) -> None:
        """Offload thread: spans of the cloud become the final answer."""
        results = {**reading.resolved, **answer.results}
        try:
            final = reading.local.answer(
                reading,
                results,
                resolved_by="cloud",
                degraded=False,
                latency_seconds=self._clock() - reading.question.created,
                bytes_sent=record.bytes_sent,
            )
        except Exception as error:
            self.given_up(reading, Reason.REFUSED, record)
            request_id = reading.question.request_id
            _log.error("cloud_answer_unusable", request_id=request_id, error=describe_fault(error))
            return
        self._ending.conclude(reading.question, final, record=record, windows=len(reading.windows))
        if self.auditor is not None:
            self.auditor.answered_by_cloud(reading, results)

    def given_up(self, reading: Reading, reason: Reason, record: OffloadRecord) -> None:
        """Offload thread: the cloud did not answer; the remaining layers run here."""
        seconds = reading.local.finishing_seconds(reading)
        job = self._finish_here(reading, reason, record, is_begun_again=True)
        self._inference.finish(job, reading.answer_by, seconds)

    def _finish_here(
        self,
        reading: Reading,
        reason: Reason,
        record: OffloadRecord,
        *,
        is_begun_again: bool = False,
    ) -> Job:
        """Inference thread: the remaining layers; the provisional answer if even that fails."""
        try:
            if is_begun_again:
                self._count(self._outbox.count_begun, reading.question)
            results = yield from reading.local.finish_in_steps(reading, reading.answer_by)
        except Exception as error:
            self.is_forgiven(reading.local)  # the provisional answer stands, whoever reads next
            request_id = reading.question.request_id
            _log.error("local_finish_failed", request_id=request_id, error=describe_fault(error))
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
        return reading.local.answer(
            reading,
            results,
            resolved_by="edge",
            degraded=degraded,
            latency_seconds=self._clock() - reading.question.created,
            bytes_sent=record.bytes_sent,
        )

    def _fail(self, question: Question, reason: str) -> None:
        self._ending.conclude(question, Failure(question.request_id, reason))

    def _count(self, count: Callable[[str], None], question: Question) -> None:
        """Keep the generation of a question of an earlier process, where the disk allows it."""
        if question.generation:
            with contextlib.suppress(OutboxError):
                count(question.request_id)
