"""Audits: were the device's answers those of full depth? Compared, counted, kept as numbers.

    an offloaded question, answered   -> its exits are traced when the device is idle -> the file
    a sampled confident answer        -> traced -> its states go to a worker -> compared -> the file

Inputs: readings that came to their end (`answered_here`, `answered_by_cloud`), deliveries. Outputs:
rows of the audit file, metrics. Neighbours: `path` tells of readings, `inference` traces when it
has nothing else to do, `audit_asking` asks a worker, `audit_store` keeps.

What it promises. No answer waits for an audit or is changed by one: it begins when the answer is
given, traces one layer of one window at a time behind every question, and publishes only while no
question needs the way to the cloud. When there is more than it can do, it is the audits that are
dropped. Offline, nothing is sampled. Only states leave the device, never text or tokens. A file
that cannot be written stops the audits and nothing else.

Which confident answers are sampled follows from a hash of the request id, so the same id is always
sampled or never.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from broker.exchange import Delivery
from broker.log import LineLimit, SafeLog
from edge_agent.audit_asking import SILENCE_SECONDS, AuditAsker, AuditLost
from edge_agent.audit_settings import AuditSettings
from edge_agent.audit_store import AuditStore, AuditStoreError, AuditText
from edge_agent.audit_tracing import Candidate, Tracer
from edge_agent.audit_windows import audit_bytes, audit_codec, audit_record
from edge_agent.cloud_messages import CloudSession, RequestSealer, check_results
from edge_agent.ending import describe_fault
from edge_agent.inference import Job
from edge_agent.local_reading import Reading
from edge_agent.settings import OffloadSettings
from protocol.errors import ProtocolError
from protocol.messages import MAX_WINDOWS, ResumeRequest
from reader.exit_traces import AuditKind
from reader.spans import WindowSpans

WAITING_BOUND = 32
REST_SECONDS = 60.0
"""After the file could not be used: how long nothing is compared."""
BESIDE_STATES_BYTES = 2_048
_PAUSE_SECONDS = 0.5

_log = SafeLog(__name__)


def is_sampled(request_id: str, rate: float) -> bool:
    """Whether the confident answer of this request is checked; of many ids, the share `rate` is."""
    digest = hashlib.sha256(b"elma audit " + request_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") < rate * 2**64


class AuditMetrics:
    """What became of comparisons; no label holds an id."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.compared = Counter(
            "elma_edge_audits_total",
            "Questions whose answer on the device was compared with that of full depth.",
            ["kind", "agrees"],
            registry=registry,
        )
        self.lost = Counter(
            "elma_edge_audits_lost_total",
            "Comparisons that did not come about, by why.",
            ["kind", "reason"],
            registry=registry,
        )
        self.sent_bytes = Counter(
            "elma_edge_audit_sent_bytes_total",
            "Sealed requests of audits, repeats included.",
            registry=registry,
        )


class Auditor:
    """Compares for one agent, on a thread of its own; `start` and `stop` once each.

    `run_when_idle` queues a job behind everything else of the inference thread. `is_busy` says
    whether a question needs the way to the cloud. `wall_clock` gives unix seconds. What was
    published is published once more after `silence_seconds` without a word.
    """

    def __init__(
        self,
        settings: AuditSettings,
        session: CloudSession,
        sealer: RequestSealer,
        offload: OffloadSettings,
        *,
        run_when_idle: Callable[[Job], None],
        is_busy: Callable[[], bool],
        registry: CollectorRegistry,
        wall_clock: Callable[[], float] = time.time,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self._settings, self._codec = settings, offload.codec
        self._asker = AuditAsker(
            session,
            sealer,
            offload,
            is_busy=is_busy,
            clock=wall_clock,
            silence_seconds=silence_seconds,
        )
        self._wall_clock = wall_clock
        self._metrics = AuditMetrics(registry)
        self._store: AuditStore | None = None
        self._fault: str | None = None
        self._rest_until = 0.0
        self._happened = threading.Condition()
        self._waiting: deque[Candidate] = deque()
        self._unkept: Tally[tuple[str, AuditKind]] = Tally()  # lost since the last row of that kind
        self._recorded = self._lost = 0
        self._fault_lines = LineLimit()
        self._is_stopping = threading.Event()
        self._tracer = Tracer(run_when_idle, self._is_stopping.is_set)
        self._thread = threading.Thread(target=self._work, name="elma-audit", daemon=True)

    def health(self) -> dict[str, Any]:
        """Counts since the start and what is wrong with the file, for `GET /healthz`."""
        return {"recorded": self._recorded, "lost": self._lost, "fault": self._fault}

    def start(self) -> None:
        """Begin to compare."""
        self._thread.start()

    def stop(self) -> None:
        """End; what was not compared yet is not compared."""
        self._is_stopping.set()
        self._asker.close()
        with self._happened:
            self._happened.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout=2.0)

    def take(self, delivery: Delivery) -> bool:
        """Whether a delivery was an audit's; then it is dealt with. Any thread."""
        return self._asker.take(delivery)

    def answered_here(self, reading: Reading) -> None:
        """A confident answer was given: every window of the reading had exited. Raises nothing."""
        with contextlib.suppress(Exception):
            if is_sampled(reading.question.request_id, self._settings.rate):
                self._consider("audit", reading, reading.resolved, None)

    def answered_by_cloud(self, reading: Reading, results: Mapping[int, WindowSpans]) -> None:
        """The cloud's answer was given, made of one result for every window. Raises nothing."""
        with contextlib.suppress(Exception):
            self._consider("offload", reading, reading.provisional, results)

    def _consider(
        self,
        kind: AuditKind,
        reading: Reading,
        exits: Mapping[int, WindowSpans],
        finals: Mapping[int, WindowSpans] | None,
    ) -> None:
        now = time.monotonic()
        local, question = reading.local, reading.question
        reader, layer = local.reader, local.edge_layers
        if layer >= reader.config.layers:
            return  # all layers are the device's
        if self._is_stopping.is_set() or not self._asker.is_connected or now < self._rest_until:
            return  # what is not sampled now is no part of what the file stands for
        codec = audit_codec(self._codec)
        size = audit_bytes(reader, reading.windows, layer, codec) + BESIDE_STATES_BYTES
        if len(reading.windows) > MAX_WINDOWS or size > self._asker.largest_bytes:
            # The same bound for both kinds: else long passages would stand in one of them only.
            self._metrics.lost.labels(kind, "too_large").inc()
            return
        text = AuditText(question.question, question.passage) if self._settings.keep_text else None
        candidate = Candidate(
            kind,
            question.request_id,
            reader,
            layer,
            codec,
            reading.windows,
            exits,
            finals,
            text,
            now,
        )
        with self._happened:
            if len(self._waiting) < WAITING_BOUND:
                self._waiting.append(candidate)
                self._happened.notify_all()
                return
        self._lose(candidate, "queue_full")

    def _work(self) -> None:
        while self._work_once():
            pass
        if self._store is not None:
            self._store.close()

    def _work_once(self) -> bool:
        """The next candidate; False at the stop. None is held while the next one is awaited: it
        would keep a release in memory."""
        candidate = self._next()
        if candidate is None:
            return False
        try:
            self._compare(candidate)
        except AuditLost as lost:
            self._lose(candidate, lost.reason)
        except AuditStoreError as error:
            self._rest(str(error))
            self._lose(candidate, "not_stored")
        except Exception as error:
            _log.limited_warning(self._fault_lines, "audit_failed", error=describe_fault(error))
            self._lose(candidate, "failed")
        return True

    def _next(self) -> Candidate | None:
        with self._happened:
            while not self._waiting:
                if self._is_stopping.is_set():
                    return None
                self._happened.wait(_PAUSE_SECONDS)
            return None if self._is_stopping.is_set() else self._waiting.popleft()

    def _compare(self, candidate: Candidate) -> None:
        """Trace, ask where that is needed, keep. Raises AuditLost, AuditStoreError."""
        if self._store is None:  # before anything is sent for it
            settings = self._settings
            self._store = AuditStore(settings.store_file, max_records=settings.max_records)
        traced = self._tracer.trace(candidate)
        finals = candidate.finals or self._ask(candidate, traced.request)
        record = audit_record(
            candidate.reader,
            candidate.windows,
            traced.trace,
            candidate.exits,
            finals,
            kind=candidate.kind,
            weight=self._unit(candidate.kind),
            time=self._wall_clock(),
        )
        key = record.release, record.kind
        lost_before = self._unkept[key]
        self._store.add(record, candidate.text, stands_for=(1 + lost_before) * record.weight)
        with self._happened:
            self._unkept[key] -= lost_before
        self._recorded += 1
        self._fault = None
        self._metrics.compared.labels(record.kind, "yes" if record.agreed else "no").inc()

    def _ask(
        self, candidate: Candidate, request: ResumeRequest | None
    ) -> Mapping[int, WindowSpans]:
        """What full depth finds in every window. Raises AuditLost."""
        if request is None:
            raise AuditLost("failed")
        reader = candidate.reader
        sent_before = self._asker.bytes_sent
        try:
            body = self._asker.ask(candidate.request_id, reader.digest, request)
            return check_results(
                body,
                candidate.windows,
                range(len(candidate.windows)),
                from_layer=candidate.edge_layers,
                layers=reader.config.layers,
            )
        except ProtocolError as error:
            raise AuditLost("refused") from error
        finally:
            self._metrics.sent_bytes.inc(self._asker.bytes_sent - sent_before)

    def _lose(self, candidate: Candidate, reason: str) -> None:
        """Count it; the next row of its kind stands for it as well."""
        self._lost += 1
        self._metrics.lost.labels(candidate.kind, reason).inc()
        with self._happened:
            self._unkept[candidate.reader.digest, candidate.kind] += 1

    def _rest(self, fault: str) -> None:
        """The file cannot be used: try again in a while."""
        self._fault = fault
        self._rest_until = time.monotonic() + REST_SECONDS
        if self._store is not None:
            self._store.close()
            self._store = None
        _log.limited_warning(self._fault_lines, "audit_not_stored", error=fault)

    def _unit(self, kind: AuditKind) -> float:
        """How many questions one of this kind stands for."""
        return 1.0 / self._settings.rate if kind == "audit" else 1.0
