"""What a worker's word does to a request: accepted, busy, answer, error.

Inputs: deliveries on the answer topics. Outputs: changed leases, ended requests, the pace of the
link. Neighbours: `offload` hands the deliveries over, on its thread; `in_flight` has the requests;
`cloud_messages` opens and checks what came.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.exchange import Delivery
from broker.log import SafeLog
from broker.tracing import finish, note
from edge_agent.cloud_messages import RequestSealer, check_answer, request_of
from edge_agent.cloud_view import CloudView
from edge_agent.in_flight import CloudAnswer, InFlight, Request
from edge_agent.lease import Reason
from edge_agent.metrics import EdgeMetrics
from edge_agent.packing import Packer
from protocol.errors import ProtocolError
from protocol.messages import Accepted, AnswerMessage, Busy, ErrorMessage
from reader.errors import StateError

UNSUITED_ERRORS = frozenset({"unknown_release", "unknown_codec"})
"""What one worker is not made for though another one is: asked again until one of those gets it."""
RETRYABLE_ERRORS = UNSUITED_ERRORS | {"internal"}
"""What the next attempt may bring: an `internal` one counts as an attempt."""

_NAMES = {Accepted: "accepted", Busy: "busy", ErrorMessage: "error", AnswerMessage: "answer"}
"""Of workers' words, in traces."""
_log = SafeLog(__name__)


class WorkerWords:
    """Handles what workers say; `give_up` ends a request and takes it back from them."""

    def __init__(
        self,
        in_flight: InFlight,
        sealer: RequestSealer,
        packer: Packer,
        cloud: CloudView,
        metrics: EdgeMetrics,
        give_up: Callable[[Request, Reason], None],
    ) -> None:
        self._in_flight, self._sealer, self._packer = in_flight, sealer, packer
        self._cloud, self._metrics, self._give_up = cloud, metrics, give_up

    def take(self, delivery: Delivery, now: float) -> None:
        """One message. Raises ProtocolError for what no worker of ours said."""
        request = self._in_flight.find(request_of(delivery))
        if request is None:
            self._metrics.ignored.labels("late").inc()
            return
        body = self._sealer.open(delivery.payload, request.sealed)
        self._cloud.worker_spoke(now)
        request.worker = body.worker
        note(request.span, _NAMES[type(body)], worker=body.worker)
        if isinstance(body, Accepted | Busy) and request.lease.is_unanswered:
            self.note_transfer(request, now)
        if isinstance(body, Accepted):
            request.lease.accepted(now, body.lease_seconds, body.worker)
        elif isinstance(body, Busy):
            self._metrics.busy.inc()
            request.lease.busy(now, body.retry_after_seconds)
        elif isinstance(body, ErrorMessage):
            self._take_error(request, body, now)
        else:
            self._take_answer(request, body, now)

    def note_transfer(self, request: Request, now: float) -> None:
        """How long a request took to arrive; of a repeated one nobody knows which it was."""
        if request.lease.publications == 1:
            self._packer.link.note(len(request.sealed.payload), now - request.last_published)

    def _take_error(self, request: Request, body: ErrorMessage, now: float) -> None:
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
        note(request.span, "worker_error", worker=body.worker, code=known)
        _log.warning(
            "worker_error",
            request_id=request.reading.question.request_id,
            wire_id=request.sealed.wire_id,
            code=body.code,
        )

    def _pack_anew(self, request: Request, now: float) -> bool:
        """Take another codec, after a worker lacked this one; False where there is none to take."""
        seconds_left = request.lease.finish_by - now
        try:
            packed = self._packer.pack_anew(
                request.reading, request.packed.codec, seconds_left, request.span
            )
        except (ProtocolError, StateError) as error:
            request_id = request.reading.question.request_id
            _log.error("request_not_sealed", request_id=request_id, error=str(error))
            return False
        if packed is None:
            return False
        note(request.span, "packed", codec=packed.codec, bytes=len(packed.sealed.payload))
        self._in_flight.replace(request, packed)
        self._metrics.packed.labels(packed.codec).inc()
        request.lease.packed_anew(now)
        return True

    def _take_answer(self, request: Request, body: AnswerMessage, now: float) -> None:
        results = check_answer(body, request.reading)
        if request.first_published is not None:
            self._metrics.offload_seconds.observe(now - request.first_published)
        finish(request.publishing)
        finish(
            request.span,
            worker=body.worker,
            publications=request.lease.publications,
            queue_seconds=body.queue_seconds,
            compute_seconds=body.compute_seconds,
        )
        self._in_flight.answered(
            request, CloudAnswer(results, body.queue_seconds, body.compute_seconds)
        )
