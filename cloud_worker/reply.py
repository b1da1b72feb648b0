"""What a worker says: sealed to the edge that asked, published in order by one thread.

Inputs: what became of a request. Outputs: publications on the session, and, where a reply settles a
delivery, its acknowledgement after the publication. Neighbours: `receive` and `resume` speak
through it; `protocol` seals, `broker` carries.

A queue stands between the others and the network, because the broker allows only few unacknowledged
publications. An answer survives a lost connection: it waits here for the next one, and one whose
acknowledgement never came is published again (the edge takes the first and drops the second).
Everything else is dropped without a connection: the edge asks again anyway. Dead letters, which
anybody can cause, get `DEAD_LETTERS_PER_SECOND` and a small share of the queue.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from broker.errors import BrokerError, NotConnected, TooManyInFlight
from broker.exchange import Delivery, Outcome, Publication, Receipt
from broker.log import LineLimit, SafeLog
from broker.tracing import Span, begin, finish
from cloud_worker.errors import describe_fault
from cloud_worker.held import Asker
from cloud_worker.metrics import WorkerMetrics
from protocol.messages import Accepted, Busy, ErrorMessage, WorkerMessage
from protocol.sealing import seal_answer
from protocol.topics import AnswerTopic, DeadLetterTopic

ANSWER_EXPIRY_SECONDS = 600
DEAD_LETTER_EXPIRY_SECONDS = 7 * 24 * 3600
DEAD_LETTERS_PER_SECOND = 8
DEAD_LETTER_SHARE = 16
"""One place in so many of the queue, and at least one."""
PACKET_ALLOWANCE_BYTES = 1024
"""What topic and properties add to a payload at most."""
_PAUSE_SECONDS = 0.05
_CLOSING_SECONDS = 5.0

_log = SafeLog("elma.worker")


class ReplySession(Protocol):
    """What replies need of `broker.session.Session`."""

    @property
    def is_connected(self) -> bool:
        """Whether there is a live connection."""

    @property
    def maximum_packet_bytes(self) -> int:
        """The largest packet that the broker takes."""

    def publish(self, publication: Publication) -> Receipt:
        """Hand a publication to the broker."""

    def acknowledge(self, delivery: Delivery) -> bool:
        """Tell the broker that a delivery took effect."""

    def wait_connected(self, timeout_seconds: float) -> bool:
        """Whether there is a connection, or there is one in time."""


@dataclass(frozen=True)
class _Reply:
    """One publication; `keep_until` (monotonic seconds) says how long it outlives connections.

    The spans, of a traced answer and of its request, end when it is published or given up.
    """

    publication: Publication
    keep_until: float | None = None
    settles: Delivery | None = field(default=None, repr=False)
    is_dead_letter: bool = False
    span: Span | None = field(default=None, repr=False)
    request_span: Span | None = field(default=None, repr=False)


class Replies:
    """Speaks for the worker called `name`; `start` and `stop` once each. Thread-safe.

    At most `bound` replies wait; past that accepted, busy and dead letters are dropped, and an
    answer waits for its place. `clock` is monotonic.
    """

    def __init__(
        self,
        session: ReplySession,
        metrics: WorkerMetrics,
        *,
        name: str,
        bound: int,
        clock: Callable[[], float],
    ) -> None:
        self._session, self._metrics = session, metrics
        self._name, self._bound, self._clock = name, bound, clock
        self._waiting: deque[_Reply] = deque()
        self._unconfirmed: deque[tuple[Receipt, _Reply]] = deque()
        self._dead_letter_budget = LineLimit(DEAD_LETTERS_PER_SECOND, clock=clock)
        self._waiting_dead_letters = 0
        self._changed = threading.Condition()
        self._is_publishing = False
        self._is_stopping = False
        self._thread = threading.Thread(target=self._publish_all, name="elma-reply", daemon=True)

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the publishing thread lives."""
        return self._thread.is_alive()

    def accepted(self, asker: Asker, lease_seconds: float, settles: Delivery | None = None) -> None:
        """Promise an answer within `lease_seconds`, for the first time or once more."""
        body = Accepted(lease_seconds, self._name)
        self._say(asker, body, expiry_seconds=lease_seconds, settles=settles)

    def busy(self, asker: Asker, retry_after_seconds: float, settles: Delivery) -> None:
        """Send a request away for now."""
        body = Busy(retry_after_seconds, self._name)
        self._say(asker, body, expiry_seconds=retry_after_seconds + 1, settles=settles)

    def error(self, asker: Asker, code: str, detail: str, settles: Delivery | None = None) -> None:
        """Refuse a request, or end an accepted one without an answer."""
        body = ErrorMessage(code, detail, self._name)
        self._say(asker, body, expiry_seconds=ANSWER_EXPIRY_SECONDS, settles=settles)

    def answer(
        self, asker: Asker, payload: bytes, keep_until: float, settles: Delivery | None = None
    ) -> None:
        """Publish a sealed answer, for the first time or again.

        Kept over lost connections until `keep_until`. An answer that the broker would not take
        becomes an error, so that the edge need not wait for its deadline.
        """
        if len(payload) + PACKET_ALLOWANCE_BYTES > self._session.maximum_packet_bytes:
            self._metrics.replies.labels("too_large").inc()
            detail = f"the answer has {len(payload)} bytes, more than the broker takes"
            self.error(asker, "too_large", detail, settles)
            return
        publication = self._publication(asker, payload, ANSWER_EXPIRY_SECONDS)
        span = begin(asker.span, "reply", bytes=len(payload))
        self._put(_Reply(publication, keep_until, settles, span=span, request_span=asker.span))

    def dead_letter(self, topic: DeadLetterTopic, payload: bytes) -> None:
        """Set a message aside for a person to look at, within the budget; counted always."""
        self._metrics.dead_letters.labels(topic.reason).inc()
        publication = Publication(str(topic), payload, expiry_seconds=DEAD_LETTER_EXPIRY_SECONDS)
        with self._changed:
            share = max(1, self._bound // DEAD_LETTER_SHARE)
            if self._waiting_dead_letters < share and self._dead_letter_budget.admit() is not None:
                self._waiting_dead_letters += 1
                self._waiting.append(_Reply(publication, is_dead_letter=True))
                self._changed.notify_all()
                return
        self._metrics.replies.labels("dropped").inc()

    def flush(self, wait_seconds: float) -> bool:
        """Whether everything said is with the broker, or is so within `wait_seconds`."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not (self._waiting or self._is_publishing or self._unconfirmed),
                wait_seconds,
            )

    def stop(self) -> None:
        """Stop publishing; what still waits is dropped."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(_CLOSING_SECONDS)

    def _say(
        self, asker: Asker, body: WorkerMessage, *, expiry_seconds: float, settles: Delivery | None
    ) -> None:
        payload = seal_answer(asker.header, asker.key, body)
        self._put(_Reply(self._publication(asker, payload, expiry_seconds), settles=settles))

    def _publication(self, asker: Asker, payload: bytes, expiry_seconds: float) -> Publication:
        """To the edge that the request's sealed header names, whatever the delivery said."""
        header = asker.header
        return Publication(
            str(AnswerTopic(header.edge, header.request)),
            payload,
            expiry_seconds=max(1, math.ceil(expiry_seconds)),
            correlation=header.request.encode(),
        )

    def _put(self, reply: _Reply) -> None:
        with self._changed:
            if reply.keep_until is not None:
                wait_seconds = max(0.0, reply.keep_until - self._clock())
                self._changed.wait_for(self._has_room, wait_seconds)
            has_room = self._has_room()
            if has_room:
                self._waiting.append(reply)
                self._changed.notify_all()
        if not has_room:
            self._metrics.replies.labels("dropped").inc()
            self._settle(reply)

    def _has_room(self) -> bool:
        return len(self._waiting) < self._bound or self._is_stopping

    def _publish_all(self) -> None:
        """The publishing thread."""
        while True:
            reply = self._next()
            if self._is_stopping:
                return
            try:
                self._look_at_receipts()
                if reply is not None:
                    self._publish(reply)
            except Exception as error:
                self._metrics.failures.labels("reply").inc()
                _log.error("reply_failed", error=describe_fault(error))
            finally:
                with self._changed:
                    self._is_publishing = False
                    self._changed.notify_all()

    def _next(self) -> _Reply | None:
        """The next reply, or None after a pause, when only receipts are left to look at."""
        with self._changed:
            pause = _PAUSE_SECONDS if self._unconfirmed else None
            self._changed.wait_for(lambda: self._waiting or self._is_stopping, pause)
            if not self._waiting or self._is_stopping:
                return None
            self._is_publishing = True
            reply = self._waiting.popleft()
            self._waiting_dead_letters -= reply.is_dead_letter
            return reply

    def _publish(self, reply: _Reply) -> None:
        """Publish one reply, waiting for its turn, and acknowledge the delivery that it settles."""
        receipt = None
        while receipt is None and not self._is_stopping:
            try:
                receipt = self._session.publish(reply.publication)
            except TooManyInFlight:
                self._wait_for_a_receipt()
            except NotConnected:
                if not self._is_kept(reply):
                    self._metrics.replies.labels("not_connected").inc()
                    break
                self._session.wait_connected(4 * _PAUSE_SECONDS)
            except BrokerError as error:
                self._metrics.replies.labels("failed").inc()
                _log.error("reply_not_published", error_type=type(error).__name__)
                break
        if receipt is not None:
            self._metrics.replies.labels("published").inc()
            finish(reply.span)
            finish(reply.request_span, outcome="answered")
            with self._changed:
                self._unconfirmed.append((receipt, reply))
        self._settle(reply)

    def _is_kept(self, reply: _Reply) -> bool:
        """Whether a reply outlives the loss of a connection, now."""
        return reply.keep_until is not None and self._clock() < reply.keep_until

    def _settle(self, reply: _Reply) -> None:
        """Acknowledge, published or not: an edge that hears nothing sends its request again,
        while a delivery that is never acknowledged would hold a place for ever."""
        if reply.settles is not None:
            self._session.acknowledge(reply.settles)
        if reply.span is not None:  # ended before, if it was published
            finish(reply.span, "not published")
            finish(reply.request_span, "not published")

    def _wait_for_a_receipt(self) -> None:
        """As many publications as allowed are under way: wait until the oldest has arrived."""
        if self._unconfirmed:
            self._unconfirmed[0][0].wait(_PAUSE_SECONDS)
        self._look_at_receipts()

    def _look_at_receipts(self) -> None:
        """Forget what has arrived; an answer whose connection ended first goes out again."""
        with self._changed:
            under_way = deque[tuple[Receipt, _Reply]]()
            for receipt, reply in self._unconfirmed:
                if receipt.outcome is Outcome.PENDING:
                    under_way.append((receipt, reply))
                elif receipt.outcome is Outcome.LOST and self._is_kept(reply):
                    self._metrics.replies.labels("repeated").inc()
                    self._waiting.append(reply)
                elif receipt.outcome is not Outcome.ACKNOWLEDGED:
                    self._metrics.replies.labels(receipt.outcome.value).inc()
            self._unconfirmed = under_way
            self._changed.notify_all()
