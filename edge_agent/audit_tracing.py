"""What the device's exits say of a question that is over, found out while nothing else is to do.

Inputs: a `Candidate`. Output: the trace of its exits, and, where a worker is to be asked, its
packed windows. Neighbours: `audit` calls `Tracer.trace` from its own thread; the inference thread
does the work, one layer of one window at a time, behind every question.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from broker.log import SafeLog
from edge_agent.audit_asking import AuditLost
from edge_agent.audit_store import AuditText
from edge_agent.audit_windows import audit_request
from edge_agent.ending import describe_fault
from edge_agent.inference import Job
from protocol.errors import ProtocolError
from protocol.messages import ResumeRequest
from reader.errors import ReaderError
from reader.exit_traces import AuditKind, Trace, trace_in_steps
from reader.model import Reader
from reader.spans import WindowSpans
from reader.windows import Window

LONGEST_WAIT_SECONDS = 120.0
"""How old a question may be when its trace begins; a device that is busy for longer has no time."""
_PAUSE_SECONDS = 0.5

_log = SafeLog(__name__)


@dataclass(frozen=True)
class Candidate:
    """A question to compare. `finals` are known for what was offloaded; no state is kept.

    `codec` packs the states after `edge_layers`; `ended` is in seconds of the monotonic clock.
    """

    kind: AuditKind
    request_id: str
    reader: Reader
    edge_layers: int
    codec: str
    windows: tuple[Window, ...] = field(repr=False)
    exits: Mapping[int, WindowSpans] = field(repr=False)
    finals: Mapping[int, WindowSpans] | None = field(repr=False)
    text: AuditText | None = field(repr=False)
    ended: float


@dataclass(frozen=True)
class Traced:
    """The exits of a candidate, and what a worker is asked; None where its finals are known."""

    trace: Trace
    request: ResumeRequest | None


class _Order:
    """One trace that was ordered, shared by the thread that waits and the one that works."""

    def __init__(self) -> None:
        self.is_wanted = True
        self.is_over = threading.Event()
        self.result: Traced | None = None


class Tracer:
    """Has candidates traced, one at a time. `run_when_idle` queues a job behind everything else."""

    def __init__(
        self, run_when_idle: Callable[[Job], None], is_stopping: Callable[[], bool]
    ) -> None:
        self._run_when_idle, self._is_stopping = run_when_idle, is_stopping

    def trace(self, candidate: Candidate) -> Traced:
        """Wait until it is traced. Raises AuditLost."""
        order = _Order()
        give_up_at = candidate.ended + LONGEST_WAIT_SECONDS
        self._run_when_idle(_trace_in_steps(candidate, order))
        # However late it is, the job leaves the queue before the next one enters.
        while not order.is_over.wait(_PAUSE_SECONDS):
            if self._is_stopping():
                order.is_wanted = False
                raise AuditLost("stopping")
            if time.monotonic() > give_up_at:
                order.is_wanted = False
        if order.result is None:
            raise AuditLost("failed" if order.is_wanted else "late")
        return order.result


def _trace_in_steps(candidate: Candidate, order: _Order) -> Job:
    """Inference thread: a layer of a window at a time, then the packing."""
    try:
        steps = trace_in_steps(
            candidate.reader,
            candidate.windows,
            candidate.edge_layers,
            keep_states=candidate.finals is None,
        )
        while order.is_wanted:
            try:
                next(steps)
            except StopIteration as end:
                order.result = _packed(candidate, end.value)
                return
            yield
    except (ReaderError, ProtocolError) as error:
        _log.error("audit_not_traced", error=describe_fault(error))
    finally:
        order.is_over.set()


def _packed(candidate: Candidate, trace: Trace) -> Traced:
    """The trace without its states, which are in the request from here on."""
    request = None
    if candidate.finals is None:
        request = audit_request(
            candidate.reader,
            candidate.windows,
            trace,
            candidate.exits,
            candidate.edge_layers,
            candidate.codec,
        )
    return Traced(Trace(trace.exits, {}), request)
