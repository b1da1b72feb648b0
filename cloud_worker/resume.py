"""The computing thread: takes batches until each request is answered, and keeps its promises.

Inputs: batches from the `RequestQueue`. Outputs: windows that go back there, or, once a request's
last window has passed the last layer, its sealed answer. Neighbours: `scheduler` chose the batch,
`layer_step` takes its windows one layer further, `reply` publishes.

This thread also renews leases, between two steps and nowhere else, so that a thread that is stuck
promises nothing: its leases run out and the edges go to another worker.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from broker.log import SafeLog
from broker.tracing import Value, begin, finish
from cloud_worker.agreement import AgreementCounter
from cloud_worker.errors import describe_fault
from cloud_worker.held import Asker, HeldRequest
from cloud_worker.layer_step import run_batch
from cloud_worker.metrics import WorkerMetrics
from cloud_worker.pieces import Placed
from cloud_worker.request_queue import RequestQueue, Window
from protocol.duplicates import DuplicateGuard
from protocol.errors import ProtocolError
from protocol.messages import AnswerMessage, SpanScore, WindowResult
from protocol.sealing import CLOCK_SKEW_SECONDS, seal_answer
from reader.spans import WindowSpans

IDLE_SECONDS = 0.1
HOUSEKEEPING_SECONDS = 0.05
"""How often leases and deadlines are looked at, at most; a step may be shorter."""
ANSWER_GRACE_SECONDS = 5.0
"""How long past its deadline an answer is still worth publishing."""
_PACE_MEMORY = 0.2

_log = SafeLog("elma.worker")


class Speaker(Protocol):
    """What the computing thread needs of `reply.Replies`."""

    def accepted(self, asker: Asker, lease_seconds: float) -> None:
        """Promise an answer within `lease_seconds` once more."""

    def error(self, asker: Asker, code: str, detail: str) -> None:
        """End an accepted request without an answer."""

    def answer(self, asker: Asker, payload: bytes, keep_until: float) -> None:
        """Publish a sealed answer."""


class Resumer:
    """Computes for one worker; `start` and `stop` once each. `clock` is monotonic."""

    def __init__(
        self,
        queue: RequestQueue,
        replies: Speaker,
        guard: DuplicateGuard,
        metrics: WorkerMetrics,
        agreement: AgreementCounter,
        *,
        name: str,
        lease_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._queue, self._replies = queue, replies
        self._guard, self._metrics, self._agreement = guard, metrics, agreement
        self._name, self._lease_seconds, self._clock = name, lease_seconds, clock
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="elma-compute", daemon=True)
        self._step_began: float | None = None
        self._house_kept = float("-inf")
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
                self._keep_house()
                batch = self._queue.take_batch(IDLE_SECONDS)
                if batch:
                    self._step(batch)
            except Exception as error:
                self._metrics.failures.labels("compute").inc()
                _log.error("compute_failed", error=describe_fault(error))
                self._is_stopping.wait(IDLE_SECONDS)

    def _keep_house(self) -> None:
        """Between two steps, but not between all of them: with a thousand requests it costs."""
        now = self._clock()
        if now - self._house_kept >= HOUSEKEEPING_SECONDS:
            self._drop_expired()
            self._renew_leases()
            self._house_kept = now

    def _drop_expired(self) -> None:
        """Nobody waits for these any more."""
        for request in self._queue.past_due(CLOCK_SKEW_SECONDS):
            if self._queue.remove(request):
                self._guard.forget(*request.key)
                self._metrics.expired.inc()
                self._metrics.dropped_windows.labels("expired").inc(request.dropped_windows)
                self._note_end(request, "expired")

    def _renew_leases(self) -> None:
        for request in self._queue.leases_to_renew(self._lease_seconds / 2):
            request.lease_until = self._clock() + self._lease_seconds
            self._metrics.lease_renewals.inc()
            self._replies.accepted(request.asker, self._lease_seconds)

    def _step(self, batch: list[Window]) -> None:
        """Run a batch, and note for each request what came of its windows."""
        requests = {window.request for window in batch}
        for request in requests:
            if not request.is_computing:
                request.is_computing = True
                finish(request.phase)
                request.phase = begin(request.asker.span, "compute")
        self._step_began = began = self._clock()
        try:
            moved = run_batch(batch, self._note_failure)
        finally:
            self._step_began = None
        elapsed = self._clock() - began
        has_results = any(result.spans is not None for result in moved)
        self._count(batch, elapsed, has_results)
        for request in requests:
            request.compute_seconds += elapsed
            if request.phase is not None:
                request.phase.note("batch", _described(request, batch, elapsed))
        going_on = []
        for result in moved:
            request = result.window.request
            if result.spans is not None:
                request.results[result.window.index] = result.spans
                if request.is_complete:
                    self._answer(request)
            elif result.place is not None:
                going_on.append(self._moved_on(result.window, result.place))
            else:
                self._fail(request, "internal", "the window could not be computed")
        self._queue.enter(going_on)

    def _note_failure(self, windows: Sequence[Window], error: Exception) -> None:
        self._metrics.failures.labels("batch").inc()
        _log.error("batch_failed", windows=len(windows), error=describe_fault(error))

    def _moved_on(self, window: Window, place: Placed) -> Window:
        config = window.request.loaded.reader.config
        return window.moved_on(place, config.group_of(window.layer + 2))

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
        finish(request.phase)
        self._guard.remember(*request.key, payload)
        self._replies.answer(request.asker, payload, request.due + ANSWER_GRACE_SECONDS)
        held_seconds = now - request.arrived
        self.seconds_a_request += _PACE_MEMORY * (held_seconds - self.seconds_a_request)
        self._metrics.queue_seconds.observe(body.queue_seconds)
        self._metrics.compute_seconds.observe(body.compute_seconds)
        self._agreement.note(
            request.loaded.reader.settings,
            request.release,
            request.provisional,
            request.results,
            is_audit=request.is_audit,
        )
        self._note_end(request, "answered")

    def _fail(self, request: HeldRequest, code: str, detail: str) -> None:
        if self._queue.remove(request):
            self._guard.forget(*request.key)
            self._metrics.dropped_windows.labels("failed").inc(request.dropped_windows)
            self._replies.error(request.asker, code, detail)
            self._note_end(request, "failed", code=code)

    def _count(self, batch: Sequence[Window], elapsed: float, has_results: bool) -> None:
        metrics, group = self._metrics, str(batch[0].group)
        tokens = sum(window.length_tokens for window in batch)
        loaded = batch[0].request.loaded
        pace = loaded.pace
        # A GPU computes on while the next step is prepared, until a result is read.
        is_on_cpu = loaded.reader.engine.choice.device == "cpu"
        pace.note(tokens, elapsed, is_finished=is_on_cpu or has_results)
        metrics.seconds_per_token.labels(batch[0].release[:12]).set(pace.seconds_per_token)
        metrics.step_seconds.observe(elapsed)
        metrics.batch_windows.labels(group).observe(len(batch))
        metrics.batch_tokens.labels(group).observe(tokens)
        metrics.tokens.labels(group).inc(tokens)
        depths = Counter(window.layer for window in batch)
        metrics.batch_depths.observe(len(depths))
        for layer, windows in depths.items():
            metrics.windows.labels(str(layer + 1)).inc(windows)

    def _note_end(self, request: HeldRequest, outcome: str, **more: str) -> None:
        """Count a held request's end, and write its one log line.

        The trace of an answered one ends when the answer is published.
        """
        self._metrics.requests.labels(outcome).inc()
        now = self._clock()
        finish(request.phase)
        if outcome != "answered":
            finish(request.asker.span, outcome=outcome, **more)
        _log.info(
            "request",
            outcome=outcome,
            **request.asker.log_fields,
            windows=request.window_count,
            queue_seconds=round(request.wait_seconds(now), 6),
            compute_seconds=round(request.compute_seconds, 6),
            **more,
        )


def _described(
    request: HeldRequest, batch: Sequence[Window], elapsed_seconds: float
) -> dict[str, Value]:
    """What a trace says of a batch, of which some windows are the request's."""
    own = [window.layer + 1 for window in batch if window.request is request]
    return {
        "layers": sorted(set(own)),
        "windows": len(own),
        "batch_windows": len(batch),
        "batch_tokens": sum(window.length_tokens for window in batch),
        "seconds": round(elapsed_seconds, 6),
    }


def _window_result(found: WindowSpans, top_spans: int) -> WindowResult:
    """Spans in the wire's words, no more than were asked for. Raises MalformedMessage."""
    spans = tuple(
        SpanScore(span.start_token, span.end_token, span.start_logit, span.end_logit)
        for span in found.spans[:top_spans]
    )
    return WindowResult(found.window_index, found.layer, found.null_score, spans)
