"""The way to the cloud: seals requests, publishes them, follows their leases, takes the answers.

Inputs: readings that the device could not settle (`submit`, on the inference thread); deliveries,
connection changes and acknowledgements of the one MQTT session. Outputs: for every submitted
reading exactly one call, `on_answer` or `on_give_up`, from this file's thread. Neighbours: `lease`
decides the next step of a request, `cloud_view` knows who is away, `packing` and `cloud_messages`
build and check what crosses the broker, `intake` brings what other threads leave for this one.

What a person at the device may expect: an answer within their deadline, as good as possible.

- While the broker is away, or no worker is there, a question waits for what is left of
  `cloud_wait_seconds` since that began: long enough to live through a restart, and nothing at all
  in a long outage. Nothing is ever published without a connection.
- A worker that says nothing within `accept_seconds`, or lets its lease run out, is not asked what
  happened: the same bytes go out again, to whichever worker gets them.
- When only the time that the remaining layers need is left before the deadline, or after
  `max_attempts`, the device finishes by itself and takes the request back (cancel).
- A worker of another release is no failure: the request goes out again, with growing pauses, until
  one gets it that is made for it, or the deadline comes.
- After a renewed connection everything under way is sent again: a broker that was killed has lost
  what it had acknowledged, and a worker answers a repeated request from its memory.
"""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from broker.errors import PayloadTooLarge, PublishError
from broker.exchange import Delivery, Outcome, Receipt
from broker.log import SafeLog
from edge_agent.cloud_messages import (
    CloudSession,
    RequestSealer,
    SealedRequest,
    check_answer,
    presence_of,
    request_of,
)
from edge_agent.cloud_view import CloudView
from edge_agent.ending import describe_fault
from edge_agent.intake import Intake
from edge_agent.lease import Action, Lease, Reason
from edge_agent.local_reading import LocalReading, Reading
from edge_agent.metrics import EdgeMetrics
from edge_agent.packing import PackedRequest, Packer
from edge_agent.questions import OffloadRecord
from edge_agent.settings import OffloadSettings
from protocol.errors import ProtocolError
from protocol.messages import MAX_WINDOWS, Accepted, AnswerMessage, Busy, ErrorMessage
from reader.errors import StateError
from reader.spans import WindowSpans

UNSUITED_ERRORS = frozenset({"unknown_release", "unknown_codec"})
"""What one worker is not made for though another one is: asked again until one of those gets it."""
RETRYABLE_ERRORS = UNSUITED_ERRORS | {"internal"}
"""What the next attempt may bring: an `internal` one counts as an attempt."""
_LONGEST_WAIT_SECONDS = 1.0
_RECEIPT_SECONDS = 0.02
"""How often an outstanding acknowledgement is looked at; it is due within milliseconds."""

_Item = TypeVar("_Item")
_log = SafeLog(__name__)


@dataclass(frozen=True)
class CloudAnswer:
    """What a worker found: a result for each window of the request."""

    results: Mapping[int, WindowSpans]
    queue_seconds: float
    compute_seconds: float


@dataclass
class _Request:
    """One request under way; touched by the offload thread only."""

    reading: Reading
    packed: PackedRequest
    lease: Lease
    first_published: float | None = None
    last_published: float = 0.0
    receipt: Receipt | None = None
    worker: str | None = None
    bytes_sent: int = 0
    again_at: float = 0.0

    @property
    def sealed(self) -> SealedRequest:
        return self.packed.sealed

    @property
    def record(self) -> OffloadRecord:
        return OffloadRecord(
            self.sealed.wire_id, self.lease.publications, self.bytes_sent, self.worker
        )


class Offloader:
    """Drives all requests of one agent over one session; `start` and `stop` once each.

    `backlog_seconds` says how long the device is busy finishing others. `clock` is monotonic,
    `wall_clock` gives unix seconds for what crosses the wire.
    """

    def __init__(
        self,
        session: CloudSession,
        sealer: RequestSealer,
        settings: OffloadSettings,
        local: LocalReading,
        metrics: EdgeMetrics,
        *,
        on_answer: Callable[[Reading, CloudAnswer, OffloadRecord], None],
        on_give_up: Callable[[Reading, Reason, OffloadRecord], None],
        backlog_seconds: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        random_number: Callable[[], float] = random.random,
    ) -> None:
        self._session, self._sealer, self._settings = session, sealer, settings
        self._local, self._metrics = local, metrics
        self._on_answer, self._on_give_up = on_answer, on_give_up
        self._backlog_seconds = backlog_seconds
        self._clock, self._wall_clock, self._random = clock, wall_clock, random_number
        self._cloud = CloudView(clock())
        self._packer = Packer(local, sealer, settings, lambda: session.maximum_packet_bytes)
        self._requests: dict[str, _Request] = {}
        self._held_bytes = 0
        self._is_stopping = False
        self._intake: Intake[_Request] = Intake(session)
        self._counting = threading.Lock()
        self._in_flight = 0
        self._driver = threading.Thread(target=self._drive, name="elma-offload", daemon=True)

    @property
    def in_flight_count(self) -> int:
        """Requests that wait for the cloud."""
        return self._in_flight

    @property
    def is_alive(self) -> bool:
        """Whether its threads run."""
        return self._driver.is_alive() and self._intake.is_alive

    @property
    def is_connected(self) -> bool:
        """Whether the session is up."""
        return bool(self._session.is_connected)

    def health(self) -> dict[str, Any]:
        """The state of the cloud as the device knows it, for `GET /healthz`."""
        return {
            "connected": self.is_connected,
            "workers": "away" if self._cloud.workers_away_since is not None else "unknown or there",
            "in_flight": self._in_flight,
        }

    def start(self) -> None:
        """Connect, in the background, and begin to drive."""
        self._session.on_connection_change = self._intake.note_connection
        self._session.start()
        self._driver.start()
        self._intake.start()

    def stop(self) -> None:
        """Stop driving and disconnect; requests under way are dropped without a call."""
        self._is_stopping = True
        self._intake.close()
        if self._driver.ident is not None:
            self._driver.join(timeout=5.0)
        self._session.stop()
        self._intake.join(timeout_seconds=5.0)

    def refusal(self, reading: Reading) -> Reason | None:
        """Why a reading cannot go to the cloud, or None; cheap, nothing is packed yet."""
        if self._cloud.is_hopeless(self._clock(), self._settings.cloud_wait_seconds):
            away = self._cloud.broker_away_since is not None
            return Reason.BROKER_AWAY if away else Reason.NO_WORKER
        state_bytes = self._packer.least_bytes(reading)
        if state_bytes is None or len(reading.unresolved) > MAX_WINDOWS:
            return Reason.TOO_MANY_BYTES
        if self._in_flight >= self._settings.max_in_flight:
            return Reason.TOO_MANY_IN_FLIGHT
        if self._held_bytes + state_bytes > self._settings.max_in_flight_bytes:
            return Reason.TOO_MANY_IN_FLIGHT
        return None

    def submit(self, reading: Reading) -> Reason | None:
        """Seal a reading and take it over; a reason instead when it cannot be. Inference thread."""
        now = self._clock()
        question = reading.question
        lease = Lease(
            self._settings.rules,
            deadline=now + (question.deadline - self._wall_clock()),
            finishing_seconds=self._local.finishing_seconds(reading),
            random=self._random,
        )
        if lease.finish_by <= now:
            return Reason.DEADLINE
        try:
            packed = self._packer.pack(reading, lease.finish_by - now)
        except (ProtocolError, StateError) as error:
            _log.error(
                "request_not_sealed",
                request_id=question.request_id,
                error=str(error),
            )
            return Reason.REFUSED
        if packed is None or len(packed.sealed.payload) > self._settings.max_request_bytes:
            return Reason.TOO_MANY_BYTES
        with self._counting:
            self._in_flight += 1
            self._held_bytes += len(packed.sealed.payload)
        self._metrics.packed.labels(packed.codec).inc()
        self._intake.submit(_Request(reading, packed, lease))
        return None

    def _drive(self) -> None:
        """Offload thread: everything that happened, then every request's next step."""
        wait_seconds = 0.0
        while not self._is_stopping:
            taken = self._intake.collect(wait_seconds)
            for is_connected in taken.connection_changes:
                self._guarded(self._connection_changed, is_connected)
            for request in taken.submissions:
                self._guarded(self._take_over, request)
            for delivery in taken.deliveries:
                self._guarded(self._deliver, delivery)
            wait_seconds = _LONGEST_WAIT_SECONDS
            with contextlib.suppress(Exception):  # each request is guarded by itself already
                wait_seconds = self._step_all()

    def _guarded(self, handle: Callable[[_Item], None], item: _Item) -> bool:
        """Handle one item; a fault that nobody foresaw must not take the other items with it."""
        try:
            handle(item)
        except Exception as error:
            _log.error("offload_step_failed", error=describe_fault(error))
            return False
        return True

    def _take_over(self, request: _Request) -> None:
        wire_id = request.sealed.wire_id
        if wire_id in self._requests:
            self._drop(request)
            self._on_give_up(request.reading, Reason.REFUSED, request.record)
            return
        self._requests[wire_id] = request

    def _connection_changed(self, is_connected: bool) -> None:
        now = self._clock()
        if not is_connected:
            self._cloud.disconnected(now)
            return
        self._cloud.connected()
        self._packer.ask_again()
        for request in self._requests.values():
            request.receipt = None
            request.lease.connection_renewed(now)

    def _step_all(self) -> float:
        """Every request's next step; returns for how many seconds nothing more is due."""
        for request in list(self._requests.values()):
            if not self._guarded(self._step, request):
                self._guarded(self._give_up_broken, request)
        now = self._clock()
        due = (request.again_at for request in self._requests.values())
        return min(max(min(due, default=math.inf) - now, 0.0), _LONGEST_WAIT_SECONDS)

    def _step(self, request: _Request) -> None:
        now = self._clock()
        self._look_at_receipt(request, now)
        failures = request.lease.failures
        step = request.lease.next(now, self._cloud, self._backlog_seconds())
        request.again_at = step.again_at
        if request.lease.failures > failures and request.receipt is not None:
            self._note_transfer(request, now)  # not even the broker has it all
        if step.action is Action.FINISH and step.reason is not None:
            self._give_up(request, step.reason)
        elif step.action is Action.SEND:
            self._publish(request, now)
        if request.receipt is not None:
            request.again_at = min(request.again_at, now + _RECEIPT_SECONDS)

    def _give_up_broken(self, request: _Request) -> None:
        if request.sealed.wire_id in self._requests:
            self._give_up(request, Reason.REFUSED)

    def _publish(self, request: _Request, now: float) -> None:
        remaining_seconds = request.sealed.header.deadline - self._wall_clock()
        try:
            request.receipt = self._sealer.publish(
                self._session, request.sealed, remaining_seconds, self._settings.priority
            )
        except PayloadTooLarge:
            self._give_up(request, Reason.TOO_MANY_BYTES)
            return
        except PublishError:  # just disconnected, or the session has its hands full
            request.lease.postponed(now)
            return
        if request.lease.publications:
            self._metrics.retries.inc()
        self._metrics.publications.inc()
        self._metrics.request_bytes.observe(len(request.sealed.payload))
        request.bytes_sent += len(request.sealed.payload)
        if request.first_published is None:
            request.first_published = now
        request.last_published = now
        transfer_seconds = self._packer.link.seconds(len(request.sealed.payload))
        request.lease.published(now, transfer_seconds)

    def _look_at_receipt(self, request: _Request, now: float) -> None:
        """What the broker said of a publication: a bad word is acted on, a good one proves nothing.

        A publication that was lost with its connection is sent again when the next one stands.
        """
        if request.receipt is None or request.receipt.outcome is Outcome.PENDING:
            return
        outcome, request.receipt = request.receipt.outcome, None
        if outcome is Outcome.NO_SUBSCRIBER:
            self._cloud.nobody_listened(now)
            request.lease.nobody_listens(now)
        elif outcome is Outcome.REFUSED:
            request.lease.failed_at_one(now)

    def _deliver(self, delivery: Delivery) -> None:
        """One message from the broker; acknowledged when its effect is safe."""
        try:
            worker = presence_of(delivery)
            if worker is not None:
                name, is_online = worker
                self._cloud.worker_presence(name, is_online=is_online, now=self._clock())
            else:
                self._take_word(delivery)
        except ProtocolError as error:
            self._metrics.ignored.labels("malformed").inc()
            _log.warning("message_ignored", error_type=type(error).__name__)
        finally:
            self._session.acknowledge(delivery)

    def _take_word(self, delivery: Delivery) -> None:
        request = self._requests.get(request_of(delivery))
        if request is None:
            self._metrics.ignored.labels("late").inc()
            return
        body = self._sealer.open(delivery.payload, request.sealed)
        now = self._clock()
        self._cloud.worker_spoke(now)
        request.worker = body.worker
        if isinstance(body, Accepted | Busy) and request.lease.is_unanswered:
            self._note_transfer(request, now)
        if isinstance(body, Accepted):
            request.lease.accepted(now, body.lease_seconds, body.worker)
        elif isinstance(body, Busy):
            request.lease.busy(now, body.retry_after_seconds)
        elif isinstance(body, ErrorMessage):
            self._take_error(request, body, now)
        else:
            self._take_answer(request, body, now)

    def _note_transfer(self, request: _Request, now: float) -> None:
        """How long a request took to arrive; of a repeated one nobody knows which it was."""
        if request.lease.publications == 1:
            self._packer.link.note(len(request.sealed.payload), now - request.last_published)

    def _take_error(self, request: _Request, body: ErrorMessage, now: float) -> None:
        known = body.code if body.code in RETRYABLE_ERRORS else "final"
        self._metrics.worker_errors.labels(known).inc()
        is_held = request.lease.is_held_by_another(body.worker)
        if body.code == "unknown_codec" and not is_held and self._pack_anew(request, now):
            pass  # it is on its way in another codec
        elif body.code in UNSUITED_ERRORS:
            request.lease.unsuited(now, body.worker)
        elif is_held:
            pass  # one that has it works on it; what this one lacks is of no matter
        elif body.code in RETRYABLE_ERRORS:
            request.lease.failed_at_one(now)
        else:
            self._give_up(request, Reason.REFUSED)
        _log.warning("worker_error", request_id=request.sealed.wire_id, code=body.code)

    def _pack_anew(self, request: _Request, now: float) -> bool:
        """Take another codec, after a worker lacked this one; False where there is none to take.

        Other bytes need another wire id: a worker takes an id once.
        """
        seconds_left = request.lease.finish_by - now
        try:
            packed = self._packer.pack_anew(request.reading, request.packed.codec, seconds_left)
        except (ProtocolError, StateError) as error:
            _log.error("request_not_sealed", error=str(error))
            return False
        if packed is None:
            return False
        del self._requests[request.sealed.wire_id]
        with self._counting:
            self._held_bytes += len(packed.sealed.payload) - len(request.sealed.payload)
        request.packed, request.receipt = packed, None
        self._requests[packed.sealed.wire_id] = request
        self._metrics.packed.labels(packed.codec).inc()
        request.lease.packed_anew(now)
        return True

    def _take_answer(self, request: _Request, body: AnswerMessage, now: float) -> None:
        results = check_answer(body, request.reading, self._local.reader.config.layers)
        if request.first_published is not None:
            self._metrics.offload_seconds.observe(now - request.first_published)
        self._forget(request)
        answer = CloudAnswer(results, body.queue_seconds, body.compute_seconds)
        self._on_answer(request.reading, answer, request.record)

    def _give_up(self, request: _Request, reason: Reason) -> None:
        self._forget(request)
        self._on_give_up(request.reading, reason, request.record)
        if request.lease.publications:
            self._sealer.cancel(self._session, request.sealed)

    def _forget(self, request: _Request) -> None:
        del self._requests[request.sealed.wire_id]
        self._drop(request)

    def _drop(self, request: _Request) -> None:
        with self._counting:
            self._in_flight -= 1
            self._held_bytes -= len(request.sealed.payload)
