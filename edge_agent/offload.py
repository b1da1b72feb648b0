"""The way to the cloud: seals requests, publishes them, follows their leases, takes the answers.

Inputs: readings that the device could not settle (`submit`, on the inference thread); deliveries,
connection changes and acknowledgements of the one MQTT session. Outputs: for every submitted
reading exactly one call, `on_answer` or `on_give_up`, from this file's thread. Neighbours: `lease`
decides the next step of a request, `worker_words` what a worker's word does to it, `cloud_view`
knows who is away, `packing` and `cloud_messages` build what crosses the broker, `in_flight` has the
requests, `intake` brings what other threads leave for this one, `link` the deliveries.

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
from collections.abc import Callable
from typing import Any, TypeVar

from broker.errors import PayloadTooLarge, PublishError
from broker.exchange import Delivery, Outcome
from broker.log import SafeLog
from broker.tracing import Span, Value, begin, finish, note
from edge_agent.cloud_messages import RequestSealer, presence_of
from edge_agent.cloud_view import CloudView
from edge_agent.ending import describe_fault
from edge_agent.in_flight import InFlight, OnAnswer, OnGiveUp, Request
from edge_agent.intake import Intake
from edge_agent.lease import Action, Lease, Reason
from edge_agent.link import Link, Listener
from edge_agent.local_reading import Reading
from edge_agent.metrics import EdgeMetrics
from edge_agent.packing import PackedRequest, Packer
from edge_agent.settings import OffloadSettings
from edge_agent.worker_words import WorkerWords
from protocol.errors import ProtocolError
from protocol.messages import MAX_WINDOWS
from reader.errors import StateError

_LONGEST_WAIT_SECONDS = 1.0
_RECEIPT_SECONDS = 0.02
"""How often an outstanding acknowledgement is looked at; it is due within milliseconds."""

_Item = TypeVar("_Item")
_log = SafeLog(__name__)


class Offloader:
    """Drives all requests of one agent over one link; `start` and `stop` once each.

    `backlog_seconds` says how long the device is busy finishing others. `clock` is monotonic,
    `wall_clock` gives unix seconds for what crosses the wire.
    """

    def __init__(
        self,
        link: Link,
        sealer: RequestSealer,
        settings: OffloadSettings,
        metrics: EdgeMetrics,
        *,
        on_answer: OnAnswer,
        on_give_up: OnGiveUp,
        backlog_seconds: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        random_number: Callable[[], float] = random.random,
    ) -> None:
        self._session, self._sealer, self._settings = link.session, sealer, settings
        self._metrics, self._backlog_seconds = metrics, backlog_seconds
        self._clock, self._wall_clock, self._random = clock, wall_clock, random_number
        self._cloud = CloudView(clock())
        self._packer = Packer(sealer, settings, lambda: self._session.maximum_packet_bytes)
        self._in_flight = InFlight(on_answer, on_give_up)
        self._words = WorkerWords(
            self._in_flight, sealer, self._packer, self._cloud, metrics, self._give_up
        )
        self._is_stopping = False
        self._intake: Intake[Request] = Intake()
        link.add(Listener(self._intake.keep, self._intake.note_connection))
        self._driver = threading.Thread(target=self._drive, name="elma-offload", daemon=True)

    @property
    def in_flight_count(self) -> int:
        """Requests that wait for the cloud."""
        return self._in_flight.count

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._driver.is_alive()

    @property
    def is_connected(self) -> bool:
        """Whether the session is up."""
        return bool(self._session.is_connected)

    def health(self) -> dict[str, Any]:
        """The state of the cloud as the device knows it, for `GET /healthz`."""
        return {
            "connected": self.is_connected,
            "workers": "away" if self._cloud.workers_away_since is not None else "unknown or there",
            "in_flight": self.in_flight_count,
        }

    def start(self) -> None:
        """Begin to drive."""
        self._driver.start()

    def stop(self) -> None:
        """Stop driving; requests under way are dropped without a call."""
        self._is_stopping = True
        self._intake.close()
        if self._driver.ident is not None:
            self._driver.join(timeout=5.0)

    def refusal(self, reading: Reading) -> Reason | None:
        """Why a reading cannot go to the cloud, or None; cheap, nothing is packed yet."""
        if self._cloud.is_hopeless(self._clock(), self._settings.cloud_wait_seconds):
            away = self._cloud.broker_away_since is not None
            return Reason.BROKER_AWAY if away else Reason.NO_WORKER
        state_bytes = self._packer.least_bytes(reading)
        if state_bytes is None or len(reading.unresolved) > MAX_WINDOWS:
            return Reason.TOO_MANY_BYTES
        if self._in_flight.count >= self._settings.max_in_flight:
            return Reason.TOO_MANY_IN_FLIGHT
        if self._in_flight.held_bytes + state_bytes > self._settings.max_in_flight_bytes:
            return Reason.TOO_MANY_IN_FLIGHT
        return None

    def submit(self, reading: Reading) -> Reason | None:
        """Seal a reading and take it over; a reason instead when it cannot be. Inference thread."""
        now = self._clock()
        question = reading.question
        lease = Lease(
            self._settings.rules,
            deadline=now + (question.deadline - self._wall_clock()),
            finishing_seconds=reading.local.finishing_seconds(reading),
            random=self._random,
        )
        span = begin(reading.span, "offload", windows=len(reading.unresolved))
        reason = self._seal_and_hand_over(reading, lease, now, span)
        if reason is not None:
            finish(span, reason.value)
        return reason

    def _seal_and_hand_over(
        self, reading: Reading, lease: Lease, now: float, span: Span | None
    ) -> Reason | None:
        if lease.finish_by <= now:
            return Reason.DEADLINE
        try:
            packed = self._packer.pack(reading, lease.finish_by - now, span)
        except (ProtocolError, StateError) as error:
            _log.error(
                "request_not_sealed",
                request_id=reading.question.request_id,
                error=str(error),
            )
            return Reason.REFUSED
        if packed is None or len(packed.sealed.payload) > self._settings.max_request_bytes:
            return Reason.TOO_MANY_BYTES
        self._in_flight.reserve(packed)
        self._metrics.packed.labels(packed.codec).inc()
        note(span, "packed", **_described(packed))
        self._intake.submit(Request(reading, packed, lease, span=span))
        return None

    def _drive(self) -> None:
        """Offload thread: everything that happened, then every request's next step."""
        wait_seconds = 0.0
        while not self._is_stopping:
            taken = self._intake.collect(wait_seconds)
            for is_connected in taken.connection_changes:
                self._guarded(self._connection_changed, is_connected)
            for request in taken.submissions:
                self._guarded(self._in_flight.add, request)
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

    def _connection_changed(self, is_connected: bool) -> None:
        now = self._clock()
        if not is_connected:
            self._cloud.disconnected(now)
            return
        self._cloud.connected()
        self._packer.ask_again()
        for request in self._in_flight.all():
            request.receipt = None
            request.lease.connection_renewed(now)

    def _step_all(self) -> float:
        """Every request's next step; returns for how many seconds nothing more is due."""
        for request in self._in_flight.all():
            if not self._guarded(self._step, request):
                self._guarded(self._give_up_broken, request)
        now = self._clock()
        due = (request.again_at for request in self._in_flight.all())
        return min(max(min(due, default=math.inf) - now, 0.0), _LONGEST_WAIT_SECONDS)

    def _step(self, request: Request) -> None:
        now = self._clock()
        self._look_at_receipt(request, now)
        failures = request.lease.failures
        step = request.lease.next(now, self._cloud, self._backlog_seconds())
        request.again_at = step.again_at
        if request.lease.failures > failures:
            self._metrics.lease_expiries.inc()
            if request.receipt is not None:
                self._words.note_transfer(request, now)  # not even the broker has it all
        if step.action is Action.FINISH and step.reason is not None:
            self._give_up(request, step.reason)
        elif step.action is Action.SEND:
            self._publish(request, now)
        if request.receipt is not None:
            request.again_at = min(request.again_at, now + _RECEIPT_SECONDS)

    def _give_up_broken(self, request: Request) -> None:
        if self._in_flight.find(request.sealed.wire_id) is request:
            self._give_up(request, Reason.REFUSED)

    def _publish(self, request: Request, now: float) -> None:
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
        if request.span is not None:
            finish(request.publishing, "no word of it")
            request.publishing = begin(
                request.span,
                "publish",
                "producer",
                attempt=request.lease.publications + 1,
                bytes=len(request.sealed.payload),
                wire_id=request.sealed.wire_id,
            )
        self._metrics.request_bytes.observe(len(request.sealed.payload))
        request.bytes_sent += len(request.sealed.payload)
        if request.first_published is None:
            request.first_published = now
        request.last_published = now
        transfer_seconds = self._packer.link.seconds(len(request.sealed.payload))
        request.lease.published(now, transfer_seconds)

    def _look_at_receipt(self, request: Request, now: float) -> None:
        """What the broker said of a publication: a bad word is acted on, a good one proves nothing.

        A publication that was lost with its connection is sent again when the next one stands.
        """
        if request.receipt is None or request.receipt.outcome is Outcome.PENDING:
            return
        outcome, request.receipt = request.receipt.outcome, None
        finish(request.publishing, outcome=outcome.value)
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
                self._words.take(delivery, self._clock())
        except ProtocolError as error:
            self._metrics.ignored.labels("malformed").inc()
            _log.warning("message_ignored", error_type=type(error).__name__)
        finally:
            self._session.acknowledge(delivery)

    def _give_up(self, request: Request, reason: Reason) -> None:
        finish(request.publishing)
        finish(request.span, reason.value, publications=request.lease.publications)
        self._in_flight.given_up(request, reason)
        if request.lease.publications:
            self._sealer.cancel(self._session, request.sealed)


def _described(packed: PackedRequest) -> dict[str, Value]:
    """What a trace says of a sealed request."""
    sealed = packed.sealed
    return {"codec": packed.codec, "bytes": len(sealed.payload), "wire_id": sealed.wire_id}
