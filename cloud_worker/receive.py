"""What comes from the broker: checked, opened, and taken into the queue, or refused with a reason.

Inputs: deliveries of the session. Outputs: accepted requests in the `RequestQueue`; what the worker
says to them, through `Replies`; dead letters; what concerns releases, to its listeners. Neighbours:
`protocol` opens, `unpacking` decodes the states, `resume` computes.

The way of a request, the cheapest check first:

    topic, sizes, header, deadline, key    not ours or not proved: counted, a dead letter
    seen before                            the cached answer, accepted once more, or a refusal
    release, codec, depth, states          not to be computed here: a sealed error; busy where the
                                           release is on its way to this worker
    place in the queue                     accepted with a lease, or busy

The MQTT message is acknowledged after the reply is published, and dropped messages at once: nothing
is left for the broker to deliver again. Nothing of a message but its names and sizes is logged.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from broker.exchange import Delivery
from broker.log import LineLimit, SafeLog
from broker.tracing import Span, Tracing, begin, finish
from cloud_worker.dead_letters import dead_letter_of
from cloud_worker.errors import RequestRefused, describe_fault
from cloud_worker.held import Asker, HeldRequest
from cloud_worker.metrics import WorkerMetrics
from cloud_worker.releases import Releases
from cloud_worker.reply import Replies
from cloud_worker.request_queue import RequestQueue, Window
from cloud_worker.unpacking import waiting_windows
from protocol.duplicates import DuplicateGuard, Seen
from protocol.errors import (
    ConflictingDuplicate,
    ExpiredRequest,
    MalformedMessage,
    ProtocolError,
    UnknownEdge,
)
from protocol.keys import EdgeDirectory, PoolKeys
from protocol.requests import request_id_of
from protocol.sealing import OpenedRequest, open_cancel, open_request, peek_header
from protocol.topics import CancelTopic, DeadLetterTopic, RequestTopic, parse_topic

RECEIVE_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 5.0
SHORTEST_RETRY_SECONDS = 0.1
PAUSE_SECONDS = 0.1
FLOAT_BYTES = 4

_log = SafeLog("elma.worker")


class DeliverySession(Protocol):
    """What the intake needs of `broker.session.Session`."""

    def receive(self, timeout_seconds: float) -> Delivery | None:
        """The next delivery, or None."""

    def acknowledge(self, delivery: Delivery) -> bool:
        """Tell the broker that a delivery took effect."""


class Intake:
    """Takes deliveries for one worker, on a thread of its own; `start` and `stop` once each.

    While `is_draining`, every request is answered with busy. `priorities` are in the order in which
    they go first. `clock` is monotonic, `wall_clock` gives unix seconds; `pool_keys` gives the keys
    of now, and `pace` says how many seconds a request has taken lately. What is neither a request
    nor a cancellation goes to the first of `listeners` that takes it, quickly, and acknowledges it.
    `is_coming` says of a release that is not loaded that it may be soon: then edges are told busy.
    """

    def __init__(
        self,
        session: DeliverySession,
        queue: RequestQueue,
        replies: Replies,
        releases: Releases,
        guard: DuplicateGuard,
        metrics: WorkerMetrics,
        *,
        pool_keys: Callable[[], PoolKeys],
        edges: EdgeDirectory,
        priorities: Sequence[str],
        lease_seconds: float,
        state_bytes_bound: int,
        pace: Callable[[], float],
        listeners: Sequence[Callable[[Delivery], bool]] = (),
        is_coming: Callable[[str], bool] = lambda _release: False,
        tracing: Tracing | None = None,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._session, self._queue, self._replies = session, queue, replies
        self._releases, self._guard, self._metrics = releases, guard, metrics
        self._pool_keys, self._edges = pool_keys, edges
        self._ranks = {priority: rank for rank, priority in enumerate(priorities)}
        self._lease_seconds, self._state_bytes_bound = lease_seconds, state_bytes_bound
        self._pace, self._clock, self._wall_clock = pace, clock, wall_clock
        self._listeners, self._is_coming, self._tracing = listeners, is_coming, tracing
        self._unproved_lines = LineLimit()
        self.is_draining = False
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="elma-intake", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether the receiving thread lives."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to receive."""
        self._thread.start()

    def stop(self) -> None:
        """Receive no more."""
        self._is_stopping.set()
        if self._thread.ident is not None:
            self._thread.join(4 * RECEIVE_SECONDS)

    def take(self, delivery: Delivery) -> None:
        """Deal with one delivery; raises nothing."""
        try:
            topic = parse_topic(delivery.topic)
            if isinstance(topic, RequestTopic):
                self._take_request(delivery, topic)
                return
            if isinstance(topic, CancelTopic):
                self._take_cancel(delivery, topic)
            elif any(listener(delivery) for listener in self._listeners):
                return
        except ProtocolError as error:
            self._metrics.requests.labels("malformed").inc()
            _log.limited_warning(
                self._unproved_lines, "message_ignored", error_type=type(error).__name__
            )
        except Exception as error:
            self._metrics.failures.labels("receive").inc()
            _log.limited_warning(
                self._unproved_lines, "receive_failed", error=describe_fault(error)
            )
        self._session.acknowledge(delivery)

    def _receive(self) -> None:
        while not self._is_stopping.is_set():
            try:
                delivery = self._session.receive(RECEIVE_SECONDS)
                if delivery is not None:
                    self.take(delivery)
            except Exception as error:
                self._metrics.failures.labels("receive").inc()
                _log.limited_warning(
                    self._unproved_lines, "receive_failed", error=describe_fault(error)
                )
                self._is_stopping.wait(PAUSE_SECONDS)

    def _take_request(self, delivery: Delivery, topic: RequestTopic) -> None:
        """One request; every way through acknowledges the delivery."""
        self._metrics.request_bytes.observe(len(delivery.payload))
        opened = self._open(delivery, topic)
        if opened is None:
            return
        asker = Asker(opened.header, opened.key, self._traced(opened, delivery))
        if self._is_known(delivery, asker):
            return
        try:
            rank = self._ranks.get(topic.priority, len(self._ranks))
            if opened.body.is_audit:
                rank = len(self._ranks) + 1  # behind every question
            request, windows = self._unpack(opened, asker, rank)
        except RequestRefused as error:
            self._guard.forget(topic.edge, topic.request)
            if error.code == "unknown_release" and self._is_coming(opened.header.release):
                self._send_away(delivery, asker)
            else:
                self._refuse(delivery, asker, "refused", error.code, str(error))
            return
        except Exception:
            self._guard.forget(topic.edge, topic.request)
            finish(asker.span, "receive")
            raise
        if self.is_draining or not self._queue.reserve(request):
            self._guard.forget(topic.edge, topic.request)
            self._send_away(delivery, asker)
            return
        request.phase = begin(asker.span, "queue")
        # Accepted goes into the reply thread's line before the answer can.
        self._replies.accepted(asker, self._lease_seconds, delivery)
        self._queue.enter(windows)

    def _open(self, delivery: Delivery, topic: RequestTopic) -> OpenedRequest | None:
        """The opened request; None when it was dealt with: forged, malformed or expired."""
        now = self._wall_clock()
        try:
            return open_request(delivery.payload, self._pool_keys(), self._edges, now, topic)
        except ExpiredRequest as error:
            self._refuse_expired(delivery, topic, str(error))
        except ProtocolError as error:
            outcome = "malformed" if isinstance(error, MalformedMessage) else "forged"
            if isinstance(error, UnknownEdge):  # most likely enrolled, and its key not yet here
                outcome = "unknown_edge"
            self._bury(delivery, topic, outcome, error)
        return None

    def _traced(self, opened: OpenedRequest, delivery: Delivery) -> Span | None:
        """The span of a request, below the edge's own where it has one."""
        if self._tracing is None:
            return None
        header, body = opened.header, opened.body
        return self._tracing.begin(
            "request",
            body.trace_parent,
            kind="consumer",
            request_id=request_id_of(header.request),
            wire_id=header.request,
            edge=header.edge,
            release=header.release,
            bytes=len(delivery.payload),
            windows=len(body.windows),
            codec=body.windows[0].codec,
            from_layer=body.windows[0].from_layer,
            is_audit=body.is_audit,
        )

    def _refuse_expired(self, delivery: Delivery, topic: RequestTopic, reason: str) -> None:
        """Tell the edge, if the request proves to be one: its clock may be wrong."""
        self._metrics.expired.inc()
        try:
            deadline = peek_header(delivery.payload).deadline
            opened = open_request(delivery.payload, self._pool_keys(), self._edges, deadline, topic)
        except ProtocolError as error:
            self._bury(delivery, topic, "forged", error)
            return
        asker = Asker(opened.header, opened.key)
        self._refuse(delivery, asker, "expired", "expired", reason)

    def _is_known(self, delivery: Delivery, asker: Asker) -> bool:
        """Whether the request came before; then it has been replied to."""
        header = asker.header
        try:
            verdict = self._guard.check(
                header.edge, header.request, delivery.payload, header.deadline
            )
        except ConflictingDuplicate as error:
            self._refuse(delivery, asker, "conflicting", "duplicate", str(error))
            return True
        if verdict.seen is Seen.NEW:
            return False
        self._metrics.duplicates.inc()
        if verdict.answer is not None:
            keep_until = self._clock() + header.deadline - self._wall_clock()
            self._replies.answer(asker, verdict.answer, keep_until, delivery)
        else:
            held = self._queue.find(header.edge, header.request)
            if held is not None:
                held.lease_until = self._clock() + self._lease_seconds
            self._replies.accepted(asker, self._lease_seconds, delivery)
        self._note(asker, "repeated", seen=verdict.seen.value)
        return True

    def _unpack(
        self, opened: OpenedRequest, asker: Asker, rank: int
    ) -> tuple[HeldRequest, list[Window]]:
        """The request as it is held, and its windows. Raises RequestRefused."""
        loaded = self._releases.find(opened.header.release)
        reader, windows = loaded.reader, opened.body.windows
        tokens = sum(window.length_tokens for window in windows)
        state_bytes = FLOAT_BYTES * reader.config.hidden_size * tokens
        if state_bytes > self._state_bytes_bound:
            raise RequestRefused(
                "too_large",
                f"states of {state_bytes} bytes; this worker holds {self._state_bytes_bound}",
            )
        now = self._clock()
        request = HeldRequest(
            asker=asker,
            loaded=loaded,
            top_spans=opened.body.top_spans,
            window_count=len(windows),
            state_bytes=state_bytes,
            arrived=now,
            due=now + opened.header.deadline - self._wall_clock(),
            lease_until=now + self._lease_seconds,
            rank=rank,
            provisional={
                window.index: window.provisional
                for window in windows
                if window.provisional is not None
            },
            is_audit=opened.body.is_audit,
        )
        return request, waiting_windows(request, windows, reader)

    def _take_cancel(self, delivery: Delivery, topic: CancelTopic) -> None:
        """Drop a held request, if the cancellation proves to come from its edge."""
        request = self._queue.find(topic.edge, topic.request)
        if request is None:
            return
        open_cancel(delivery.payload, request.asker.header, request.asker.key)
        if self._queue.remove(request):
            self._guard.forget(topic.edge, topic.request)
            self._metrics.dropped_windows.labels("cancelled").inc(request.dropped_windows)
            finish(request.phase)
            self._note(request.asker, "cancelled")

    def _send_away(self, delivery: Delivery, asker: Asker) -> None:
        """Busy: with a time after which a place should be free, or, when draining, at once."""
        retry_seconds = SHORTEST_RETRY_SECONDS
        if not self.is_draining:
            retry_seconds = min(max(self._pace() / 2, retry_seconds), LONGEST_RETRY_SECONDS)
        self._metrics.busy.inc()
        self._replies.busy(asker, retry_seconds, delivery)
        self._note(asker, "busy", draining=self.is_draining)

    def _refuse(
        self, delivery: Delivery, asker: Asker, outcome: str, code: str, detail: str
    ) -> None:
        self._replies.error(asker, code, detail, delivery)
        self._note(asker, outcome, code=code)

    def _bury(
        self, delivery: Delivery, topic: RequestTopic, outcome: str, error: ProtocolError
    ) -> None:
        """Count and log a message that proves nothing, and set it aside for a person."""
        self._metrics.requests.labels(outcome).inc()
        sha256 = hashlib.sha256(delivery.payload).hexdigest()
        _log.limited_warning(
            self._unproved_lines,
            "request",
            outcome=outcome,
            request_id=request_id_of(topic.request),
            wire_id=topic.request,
            edge=topic.edge,
            payload_bytes=len(delivery.payload),
            payload_sha256=sha256,
            error_type=type(error).__name__,
            reason=str(error),
        )
        dead = DeadLetterTopic(_reason(error), topic.edge, topic.request)
        self._replies.dead_letter(dead, dead_letter_of(delivery.payload, sha256))
        self._session.acknowledge(delivery)

    def _note(self, asker: Asker, outcome: str, **more: str | bool) -> None:
        """Count a request that is not held, and write its one log line."""
        self._metrics.requests.labels(outcome).inc()
        finish(asker.span, outcome=outcome, **more)
        _log.info("request", outcome=outcome, **asker.log_fields, **more)


def _reason(error: ProtocolError) -> str:
    """The kind of an error as one word: `TruncatedMessage` is `truncated_message`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).lower()
