"""An audit's way to a worker and back: sealed, published, heard, and given up at the first trouble.

Inputs: the windows of an audit; deliveries, handed on by whoever takes them from the session.
Output: a worker's answer, or `AuditLost` with a reason. Neighbours: `audit` calls `ask` from its
own thread, one at a time; `cloud_messages` seals and opens.

Nothing waits for an audit, so nothing is done for it that a question would have to share: it is in
no outbox and in no lease, it is published only while no question waits for the cloud, a busy worker
is not asked again, and silence only once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from broker.errors import BrokerError
from broker.exchange import Delivery, Outcome, Receipt
from edge_agent.cloud_messages import CloudSession, RequestSealer, SealedRequest, request_of
from edge_agent.questions import Question
from edge_agent.settings import OffloadSettings
from protocol.errors import ProtocolError
from protocol.messages import AnswerMessage, Busy, ErrorMessage, ResumeRequest, WorkerMessage

ANSWER_SECONDS = 30.0
"""How long the answer of an audit is worth waiting for."""
SILENCE_SECONDS = 5.0
"""How long a published audit may stay without a word before it is published once more."""
PUBLICATIONS = 2
_REMEMBERED_IDS = 64
_WORDS_BOUND = 8
_RECEIPT_SECONDS = 0.2


class AuditLost(Exception):
    """A comparison that does not come about; `reason` is a label of the metric."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the audit was given up: {reason}")
        self.reason = reason


class AuditAsker:
    """Asks one worker at a time over the session of the agent.

    `is_busy` says whether a question needs the way to the cloud; `clock` gives unix seconds.
    """

    def __init__(
        self,
        session: CloudSession,
        sealer: RequestSealer,
        settings: OffloadSettings,
        *,
        is_busy: Callable[[], bool],
        clock: Callable[[], float],
        silence_seconds: float,
    ) -> None:
        self._session, self._sealer, self._settings = session, sealer, settings
        self._is_busy, self._clock, self._silence_seconds = is_busy, clock, silence_seconds
        self._happened = threading.Condition()
        self._current: SealedRequest | None = None
        self._words: deque[bytes] = deque(maxlen=_WORDS_BOUND)
        self._ids: deque[str] = deque(maxlen=_REMEMBERED_IDS)
        self._is_closed = False
        self.bytes_sent = 0

    @property
    def is_connected(self) -> bool:
        """Whether the session is up."""
        return bool(self._session.is_connected)

    @property
    def largest_bytes(self) -> int:
        """The largest request that may be sent, by our own bound and the broker's."""
        return min(self._settings.max_request_bytes, self._session.maximum_packet_bytes)

    def close(self) -> None:
        """Wake whoever asks; there will be no answer any more."""
        with self._happened:
            self._is_closed = True
            self._happened.notify_all()

    def take(self, delivery: Delivery) -> bool:
        """Whether a delivery belongs to an audit; then it is acknowledged here. Any thread."""
        try:
            wire_id = request_of(delivery)
        except ProtocolError:
            return False
        with self._happened:
            if wire_id not in self._ids:
                return False
            if self._current is not None and self._current.wire_id == wire_id:
                self._words.append(delivery.payload)
                self._happened.notify_all()
        self._session.acknowledge(delivery)
        return True

    def ask(self, request_id: str, release: str, body: ResumeRequest) -> AnswerMessage:
        """What a worker that has the release makes of the windows. Raises AuditLost."""
        now = self._clock()
        question = Question(request_id, "", "", 1, ANSWER_SECONDS, now)
        try:
            sealed = self._sealer.seal(question, body, release)
        except ProtocolError as error:
            raise AuditLost("not_sealed") from error
        if len(sealed.payload) > self.largest_bytes:
            raise AuditLost("too_large")
        with self._happened:
            self._ids.append(sealed.wire_id)
            self._current = sealed
            self._words.clear()
        try:
            return self._ask(sealed, time.monotonic() + ANSWER_SECONDS)
        except AuditLost as lost:
            if lost.reason in ("late", "stopping"):
                self._sealer.cancel(self._session, sealed)
            raise
        finally:
            with self._happened:
                self._current = None

    def _ask(self, sealed: SealedRequest, give_up_at: float) -> AnswerMessage:
        for _ in range(PUBLICATIONS):
            receipt = self._publish(sealed, give_up_at)
            word = self._hear(sealed, time.monotonic() + self._silence_seconds, receipt)
            if word is None:
                continue
            while word is not None:  # accepted, perhaps more than once, and then the answer
                if isinstance(word, AnswerMessage):
                    return word
                if isinstance(word, Busy):
                    raise AuditLost("workers_busy")
                if isinstance(word, ErrorMessage):
                    raise AuditLost("refused")
                word = self._hear(sealed, give_up_at, None)
            raise AuditLost("late")
        raise AuditLost("silence")

    def _publish(self, sealed: SealedRequest, give_up_at: float) -> Receipt:
        if self._is_busy():
            raise AuditLost("questions_first")
        if not self.is_connected:
            raise AuditLost("offline")
        seconds = max(give_up_at - time.monotonic(), 1.0)
        try:
            receipt = self._sealer.publish(self._session, sealed, seconds, self._settings.priority)
        except BrokerError as error:
            raise AuditLost("offline") from error
        self.bytes_sent += len(sealed.payload)
        return receipt

    def _hear(
        self, sealed: SealedRequest, until: float, receipt: Receipt | None
    ) -> WorkerMessage | None:
        """The next word of a worker that proves to be one, None when the time is over."""
        while True:
            payload = self._next_word(until, receipt)
            if payload is None:
                return None
            try:
                return self._sealer.open(payload, sealed)
            except ProtocolError:
                continue  # forged, or malformed: as if nothing had come

    def _next_word(self, until: float, receipt: Receipt | None) -> bytes | None:
        with self._happened:
            while not self._words:
                if self._is_closed:
                    raise AuditLost("stopping")
                if receipt is not None and receipt.outcome in (
                    Outcome.NO_SUBSCRIBER,
                    Outcome.REFUSED,
                ):
                    raise AuditLost("no_worker")
                left_seconds = until - time.monotonic()
                if left_seconds <= 0:
                    return None
                # A receipt says nothing when it changes, so it is looked at now and then.
                pause_seconds = left_seconds if receipt is None else _RECEIPT_SECONDS
                self._happened.wait(min(left_seconds, pause_seconds))
            return self._words.popleft()
