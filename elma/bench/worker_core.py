"""A worker's queue, scheduler and computing thread under load, without a broker between.

In: arrivals and the batch limits of one way to work. Out: when each request was answered. Also the
ceiling: the same windows run offline in full batches. Neighbours: `worker_load` makes the arrivals,
`worker` compares.

What runs is the worker's own code from the queue to the sealed answer. Left out are the broker, the
unsealing and the decoding of states, which other threads of a worker do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cloud_worker.agreement import AgreementCounter
from cloud_worker.held import Asker, HeldRequest
from cloud_worker.metrics import WorkerMetrics
from cloud_worker.releases import LoadedRelease, Releases
from cloud_worker.request_queue import RequestQueue, waiting_window
from cloud_worker.resume import Resumer
from cloud_worker.scheduler import BatchLimits
from elma.bench.results import percentile
from elma.bench.worker_load import Arrival, LeftRequest, LeftWindow
from protocol.duplicates import DuplicateGuard
from protocol.messages import MAX_SPANS
from protocol.sealing import RequestHeader, RequestKey
from protocol.topics import new_request_id
from protocol.wire import WIRE_VERSION
from reader.model import Reader
from reader.states import StateBatch

ALLOWED_SECONDS = 60.0
STOP_SECONDS = 10.0
CEILING_TOKENS = (256, 512, 1_024, 2_048, 4_096)
WARM_SHARE = 0.25
"""At saturation the first part of a run only fills the queue."""


@dataclass(frozen=True)
class Served:
    """How a run went: latencies from the scheduled arrival, in seconds.

    `answered_qps` is the work done a second over the mean work of a question: at saturation a count
    of answers would favour whoever answers the small ones first.
    """

    offered_qps: float
    answered_qps: float
    seconds: tuple[float, ...]
    passage_seconds: float | None
    refused: int
    unanswered: int
    batch_tokens: float
    batch_windows: float

    def milliseconds(self, percent: float) -> float | None:
        """A percentile of the latencies; None when nothing was answered."""
        return percentile(self.seconds, percent) * 1000 if self.seconds else None


class _Listener:
    """What the computing thread speaks to instead of a broker: notes the time of every answer."""

    def __init__(self) -> None:
        self.answered: dict[str, float] = {}

    def accepted(self, asker: Asker, lease_seconds: float) -> None:
        """A lease was renewed: nothing to measure."""

    def error(self, asker: Asker, code: str, detail: str) -> None:
        """Never answered: it shows in the counts."""

    def answer(self, asker: Asker, payload: bytes, keep_until: float) -> None:  # noqa: ARG002
        """An answer is ready for the broker."""
        self.answered[asker.header.request] = time.monotonic()


def serve(
    releases: Releases,
    reader: Reader,
    arrivals: Sequence[Arrival],
    limits: BatchLimits,
    *,
    seconds: float,
    held: int,
    mean_work: float,
    drain_seconds: float = 0.0,
) -> Served:
    """Let a worker that holds at most `held` requests have the arrivals of so many seconds.

    After the last one it gets `drain_seconds` to finish. `mean_work` is that of a question, in
    tokens times layers.
    """
    listener, metrics = _Listener(), WorkerMetrics()
    queue = RequestQueue(limits, releases.pace, bound=held, bound_bytes=2**40, clock=time.monotonic)
    resumer = Resumer(
        queue,
        listener,
        DuplicateGuard(clock=time.time),
        metrics,
        AgreementCounter(metrics.agreement),
        name="bench",
        lease_seconds=ALLOWED_SECONDS,
        clock=time.monotonic,
    )
    resumer.start()
    with ThreadPoolExecutor(1) as door:
        try:
            start = time.monotonic()
            loaded = releases.find(reader.digest)
            handing_over = door.submit(_hand_over, arrivals, loaded, queue, start)
            time.sleep(WARM_SHARE * seconds)
            first, tokens = time.monotonic(), _total(metrics, "tokens_total")
            time.sleep(max(0.0, start + seconds - first))
            qps = (
                (_total(metrics, "tokens_total") - tokens) / (time.monotonic() - first) / mean_work
            )
            taken = handing_over.result()
            queue.wait_empty(drain_seconds)
        finally:
            resumer.stop(STOP_SECONDS)
    return _served(arrivals, taken, listener.answered, metrics, start, qps, seconds)


def ceiling_qps(reader: Reader, requests: Sequence[LeftRequest], repeats: int) -> float:
    """Requests a second when all are there at once and nobody waits: the best of some runs.

    Layer by layer, everything that is at that layer, in batches of about as many tokens as
    CEILING_TOKENS says: the largest batch is not the fastest everywhere.
    """
    windows = sorted(
        (window for request in requests for window in request), key=lambda window: window.layer
    )
    best = math.inf
    for full in CEILING_TOKENS * repeats:
        start = time.perf_counter()
        _run_offline(reader, windows, full)
        best = min(best, time.perf_counter() - start)
    return len(requests) / best


def _run_offline(reader: Reader, windows: Sequence[LeftWindow], full: int) -> None:
    engine, last = reader.engine, reader.config.layers
    waiting = list(windows)
    batches: list[StateBatch] = []
    for layer in range(last):
        while waiting and waiting[0].layer == layer:
            chunk, tokens = [waiting.pop(0)], 0
            tokens = len(chunk[0].state)
            while waiting and waiting[0].layer == layer and tokens < full:
                chunk.append(waiting.pop(0))
                tokens += len(chunk[-1].state)
            batches.append(
                engine.pack([one.state for one in chunk], [one.question_tokens for one in chunk])
            )
        batches = [reader.run(batch, layer, layer + 1) for batch in _filled(reader, batches, full)]
    for batch in batches:
        reader.spans(batch, last, range(len(batch)))


def _filled(reader: Reader, batches: Sequence[StateBatch], full: int) -> list[StateBatch]:
    """Small batches joined until each has about `full` tokens."""
    filled: list[StateBatch] = []
    group: list[StateBatch] = []
    for batch in batches:
        group.append(batch)
        if sum(one.token_count for one in group) >= full:
            filled.append(reader.engine.join(group) if len(group) > 1 else group[0])
            group = []
    if group:
        filled.append(reader.engine.join(group) if len(group) > 1 else group[0])
    return filled


def _hand_over(
    arrivals: Sequence[Arrival], loaded: LoadedRelease, queue: RequestQueue, start: float
) -> dict[str, Arrival]:
    """Every arrival at its time; returns those that found a place, by their request id."""
    taken: dict[str, Arrival] = {}
    for arrival in arrivals:
        wait_seconds = start + arrival.at - time.monotonic()
        if wait_seconds > 0:
            time.sleep(wait_seconds)
        request = _held_request(arrival.request, loaded)
        if queue.reserve(request):
            taken[request.asker.header.request] = arrival
            queue.enter(
                [
                    waiting_window(
                        request,
                        loaded.reader.config,
                        index=index,
                        layer=window.layer,
                        question_tokens=window.question_tokens,
                        state=window.state,
                    )
                    for index, window in enumerate(arrival.request)
                ]
            )
    return taken


def _held_request(windows: LeftRequest, loaded: LoadedRelease) -> HeldRequest:
    now, wall = time.monotonic(), time.time()
    header = RequestHeader(
        WIRE_VERSION,
        "bench",
        "bench",
        new_request_id(),
        wall,
        wall + ALLOWED_SECONDS,
        loaded.digest,
    )
    return HeldRequest(
        asker=Asker(header, RequestKey.make()),
        loaded=loaded,
        top_spans=MAX_SPANS,
        window_count=len(windows),
        state_bytes=sum(window.state.nbytes for window in windows),
        arrived=now,
        due=now + ALLOWED_SECONDS,
        lease_until=now + ALLOWED_SECONDS,
    )


def _served(
    arrivals: Sequence[Arrival],
    taken: dict[str, Arrival],
    answered: dict[str, float],
    metrics: WorkerMetrics,
    start: float,
    qps: float,
    seconds: float,
) -> Served:
    """The run in figures; the passage is kept apart from the questions."""
    short = {request: one for request, one in taken.items() if not one.is_passage}
    latencies = tuple(
        answered[request] - start - one.at for request, one in short.items() if request in answered
    )
    passage = [
        answered[request] - start - one.at
        for request, one in taken.items()
        if one.is_passage and request in answered
    ]
    questions = sum(not one.is_passage for one in arrivals)
    return Served(
        offered_qps=questions / seconds,
        answered_qps=qps,
        seconds=latencies,
        passage_seconds=passage[0] if passage else None,
        refused=questions - len(short),
        unanswered=len(short) - len(latencies),
        batch_tokens=_mean(metrics, "batch_tokens"),
        batch_windows=_mean(metrics, "batch_windows"),
    )


def _mean(metrics: WorkerMetrics, name: str) -> float:
    """The mean of a histogram over all its labels."""
    count = _total(metrics, f"{name}_count")
    return _total(metrics, f"{name}_sum") / count if count else 0.0


def _total(metrics: WorkerMetrics, name: str) -> float:
    """The sum of one kind of sample over all its labels."""
    return sum(
        sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == f"elma_worker_{name}"
    )
