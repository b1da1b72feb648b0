"""Ended spans on their way to a collector: a bounded queue, one thread, a count of what is lost.

Inputs: spans that ended, from any thread. Output: batches to an exporter. Neighbour: `tracing`
imports this file when traces are on, and only then.

OpenTelemetry's own BatchSpanProcessor does the same without saying how many spans it dropped, and
waits up to 30 seconds for a hanging collector when it is stopped. What its exporter logs with each
attempt becomes one line when sending begins to fail, and one when it works again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from broker.log import SafeLog

BATCH_SPANS = 512
_EXPORTERS = logging.getLogger("opentelemetry.exporter")
_log = SafeLog("elma.traces")


class SpanQueue(SpanProcessor):
    """Sends every `pause_seconds`, or when a whole batch waits; holds at most `bound` spans.

    `count_dropped` is called with a cause and a number.
    """

    def __init__(self, exporter: SpanExporter, *, bound: int, pause_seconds: float) -> None:
        self._exporter, self._bound, self._pause_seconds = exporter, bound, pause_seconds
        self._spans: deque[ReadableSpan] = deque()
        self._changed = threading.Condition()
        self._is_closing = self._is_closed = self._is_failing = False
        self._words = _LastWord()
        _EXPORTERS.addHandler(self._words)
        _EXPORTERS.propagate = False
        self.count_dropped: Callable[[str, int], None] = lambda _cause, _count: None
        # A daemon: one that hangs in a collector must not keep the process.
        self._thread = threading.Thread(target=self._send_all, name="elma-traces", daemon=True)
        self._thread.start()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing: a span is of interest when it ends."""

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span, or count it where there is no room; returns at once."""
        if not span.context.trace_flags.sampled:
            return
        with self._changed:
            has_room = len(self._spans) < self._bound and not self._is_closing
            if has_room:
                self._spans.append(span)
                if len(self._spans) >= min(BATCH_SPANS, self._bound):
                    self._changed.notify_all()
        if not has_room:
            self.count_dropped("queue_full", 1)

    def close(self, wait_seconds: float) -> None:
        """Send what waits and end, within `wait_seconds`; the rest is dropped."""
        give_up_at = time.monotonic() + wait_seconds
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(wait_seconds)
        with self._changed:
            self._is_closed = True
            left = len(self._spans)
            self._spans.clear()
        if left:
            self.count_dropped("not_sent", left)
        if time.monotonic() < give_up_at:
            self._exporter.shutdown()
        _EXPORTERS.removeHandler(self._words)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Whether nothing waits; the thread sends by itself."""
        with self._changed:
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._spans, timeout_millis / 1000)

    def _send_all(self) -> None:
        """The sending thread."""
        while True:
            with self._changed:
                if not self._is_closing:
                    self._changed.wait(self._pause_seconds)
                count = min(len(self._spans), BATCH_SPANS)
                batch = [self._spans.popleft() for _ in range(count)]
                is_last = self._is_closing and not self._spans
            if batch:
                self._send(batch)
            if is_last or self._is_closed:
                return

    def _send(self, batch: list[ReadableSpan]) -> None:
        try:
            is_sent = self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception:  # of the library, which has logged what it has to say
            is_sent = False
        if not is_sent:
            self.count_dropped("not_sent", len(batch))
        if is_sent is self._is_failing:  # it was the other way so far
            self._is_failing = not is_sent
            if is_sent:
                _log.info("spans_sent_again")
            else:
                _log.warning("spans_not_sent", reason=self._words.text)


class _LastWord(logging.Handler):
    """Keeps what the exporter had to say last."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        with suppress(Exception):
            self.text = record.getMessage()
