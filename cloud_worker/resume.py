"""The computing thread: batches of windows, one layer further each time, until they are spans.

Inputs: batches from the `RequestQueue`. Outputs: windows that go back there, or, once a request's
last window has passed the last layer, its sealed answer. Neighbours: `scheduler` chose the batch,
`reader` does the mathematics, `reply` publishes.

Windows of one batch may stand at different depths: they need layers of one parameter group, and a
layer is its group's parameters and nothing else. Each row is computed as if it were alone.

This thread also renews leases, between two steps and nowhere else, so that a thread that is stuck
promises nothing: its leases run out and the edges go to another worker.

Shapes: B windows, T tokens, H hidden.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from broker.log import SafeLog
from cloud_worker.errors import describe_fault
from cloud_worker.held import HeldRequest
from cloud_worker.metrics import WorkerMetrics
from cloud_worker.releases import Releases
from cloud_worker.reply import Replies
from cloud_worker.request_queue import RequestQueue, Window
from protocol.duplicates import DuplicateGuard
from protocol.errors import ProtocolError
from protocol.messages import AnswerMessage, SpanScore, WindowResult
from protocol.sealing import CLOCK_SKEW_SECONDS, seal_answer
from reader.model import Reader
from reader.spans import WindowSpans
from reader.states import StateBatch

IDLE_SECONDS = 0.1
ANSWER_GRACE_SECONDS = 5.0
"""How long past its deadline an answer is still worth publishing."""
_PACE_MEMORY = 0.2

_log = SafeLog("elma.worker")


@dataclass(frozen=True)
class Moved:
    """What a step made of a window: its next state, or its spans after the last layer."""

    state: Tensor | None
    spans: WindowSpans | None


def run_one_layer(reader: Reader, batch: Sequence[Window]) -> list[Moved]:
    """One layer of windows whose next layers share their parameters, at whatever depths.

    In the order of `batch`. Raises `reader.errors.ReaderError`.
    """
    states = StateBatch.of(
        [window.state for window in batch], [window.question_tokens for window in batch]
    )
    layer = batch[0].layer
    after = reader.run(states, layer, layer + 1)  # [B, T, H]
    last = reader.config.layers
    finished = [row for row, window in enumerate(batch) if window.layer + 1 == last]
    spans: dict[int, WindowSpans] = {}
    if finished:
        indexes = [batch[row].index for row in finished]
        found = reader.spans(after.select(finished), last, indexes)
        spans = dict(zip(finished, found, strict=True))
    # Cloned: a row of a batch would keep the whole batch in memory.
    return [
        Moved(None, spans[row]) if row in spans else Moved(after.state(row).clone(), None)
        for row in range(len(batch))
    ]


class Resumer:
    """Computes for one worker; `start` and `stop` once each. `clock` is monotonic."""

    def __init__(
        self,
        queue: RequestQueue,
        releases: Releases,
        replies: Replies,
        guard: DuplicateGuard,
        metrics: WorkerMetrics,
        *,
        name: str,
        lease_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._queue, self._releases, self._replies = queue, releases, replies
        self._guard, self._metrics = guard, metrics
        self._name, self._lease_seconds, self._clock = name, lease_seconds, clock
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="elma-compute", daemon=True)
        self._step_began: float | None = None
        self.seconds_a_request = 0.0

    @property
    def is_alive(self) -> bool:
        """Whether the computing thread lives."""
        return self._thread.is_alive()

    @property
    def step_seconds(self) -> float:
        """How long the present step has taken so far; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else self._clock() - began

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def stop(self, wait_seconds: float) -> bool:
        """Stop after the present step; whether it ended within `wait_seconds`."""
        self._is_stopping.set()
        if self._thread.ident is not None:
            self._thread.join(wait_seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while not self._is_stopping.is_set():
            try:
                self._drop_expired()
                self._renew_leases()
                batch = self._queue.take_batch(IDLE_SECONDS)
                if batch:
                    self._step(batch)
            except Exception as error:
                self._metrics.failures.labels("compute").inc()
                _log.error("compute_failed", error=describe_fault(error))
                self._is_stopping.wait(IDLE_SECONDS)

    def _drop_expired(self) -> None:
        """Nobody waits for these any more."""
        for request in self._queue.past_due(CLOCK_SKEW_SECONDS):
            if self._queue.remove(request):
                self._guard.forget(*request.key)
                self._metrics.expired.inc()
                self._note_end(request, "expired")

    def _renew_leases(self) -> None:
        for request in self._queue.leases_to_renew(self._lease_seconds / 2):
            request.lease_until = self._clock() + self._lease_seconds
            self._metrics.lease_renewals.inc()
            self._replies.accepted(request.asker, self._lease_seconds)

    def _step(self, batch: list[Window]) -> None:
        """Run a batch; one that fails as a whole is run window by window."""
        self._step_began = began = self._clock()
        try:
            moved = self._run(batch)
        finally:
            self._step_began = None
        elapsed = self._clock() - began
        self._count(batch, elapsed)
        for request in {window.request for window in batch}:
            request.compute_seconds += elapsed
        going_on = []
        for window, result in zip(batch, moved, strict=True):
            if result is None:
                self._fail(window.request, "internal", "the window could not be computed")
            elif result.spans is not None:
                window.request.results[window.index] = result.spans
                if window.request.is_complete:
                    self._answer(window.request)
            elif result.state is not None:
                going_on.append(self._moved_on(window, result.state))
        self._queue.enter(going_on)

    def _run(self, batch: list[Window]) -> list[Moved | None]:
        reader = self._releases.find(batch[0].release)
        try:
            return list(run_one_layer(reader, batch))
        except Exception as error:
            self._metrics.failures.labels("batch").inc()
            _log.error("batch_failed", windows=len(batch), error=describe_fault(error))
        if len(batch) == 1:
            return [None]
        return [result for window in batch for result in self._run([window])]

    def _moved_on(self, window: Window, state: Tensor) -> Window:
        reader = self._releases.find(window.release)
        group = reader.config.group_of(window.layer + 2)
        return window.moved_on(state, group)

    def _answer(self, request: HeldRequest) -> None:
        """Seal and publish the answer of a complete request, unless it was cancelled meanwhile."""
        now = self._clock()
        try:
            body = AnswerMessage(
                results=tuple(
                    _window_result(spans, request.top_spans) for spans in request.results.values()
                ),
                worker=self._name,
                queue_seconds=request.wait_seconds(now),
                compute_seconds=request.compute_seconds,
            )
            payload = seal_answer(request.asker.header, request.asker.key, body)
        except ProtocolError:  # logits that are no numbers: the states were out of all range
            self._fail(request, "bad_state", "the states lead to no finite logits")
            return
        if not self._queue.remove(request):
            return
        self._guard.remember(*request.key, payload)
        self._replies.answer(request.asker, payload, request.due + ANSWER_GRACE_SECONDS)
        held_seconds = now - request.arrived
        self.seconds_a_request += _PACE_MEMORY * (held_seconds - self.seconds_a_request)
        self._metrics.queue_seconds.observe(body.queue_seconds)
        self._metrics.compute_seconds.observe(body.compute_seconds)
        self._note_end(request, "answered")

    def _fail(self, request: HeldRequest, code: str, detail: str) -> None:
        if self._queue.remove(request):
            self._guard.forget(*request.key)
            self._replies.error(request.asker, code, detail)
            self._note_end(request, "failed", code=code)

    def _count(self, batch: Sequence[Window], elapsed: float) -> None:
        metrics = self._metrics
        metrics.step_seconds.observe(elapsed)
        metrics.batch_windows.observe(len(batch))
        for window in batch:
            metrics.windows.labels(str(window.layer + 1)).inc()
        lengths = [window.length_tokens for window in batch]
        metrics.padding.inc(max(lengths) * len(lengths) - sum(lengths))

    def _note_end(self, request: HeldRequest, outcome: str, **more: str) -> None:
        """Count a held request's end, and write its one log line."""
        self._metrics.requests.labels(outcome).inc()
        now = self._clock()
        _log.info(
            "request",
            outcome=outcome,
            edge=request.key[0],
            request=request.key[1],
            windows=request.window_count,
            queue_seconds=round(request.wait_seconds(now), 6),
            compute_seconds=round(request.compute_seconds, 6),
            **more,
        )


def _window_result(found: WindowSpans, top_spans: int) -> WindowResult:
    """Spans in the wire's words, no more than were asked for. Raises MalformedMessage."""
    spans = tuple(
        SpanScore(span.start_token, span.end_token, span.start_logit, span.end_logit)
        for span in found.spans[:top_spans]
    )
    return WindowResult(found.window_index, found.layer, found.null_score, spans)
