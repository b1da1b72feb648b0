"""A collector of OpenTelemetry on this machine: a real OTLP/HTTP receiver that keeps what came."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

SAFETY_SECONDS = 120.0


@dataclass(frozen=True)
class Received:
    """A span as it came; ids in hexadecimal digits, `parent` is "" for the first of a trace."""

    service: str
    instance: str
    name: str
    trace: str
    id: str
    parent: str
    kind: int
    attributes: dict[str, Any]
    events: tuple[str, ...]
    start: int
    end: int


class Collector:
    """What came so far. `answers` cleared: the collector takes requests and says nothing;
    `is_endless` set: what it says has no end.
    """

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.asked_count = 0
        self.answers = threading.Event()
        self.answers.set()
        self.is_endless = threading.Event()
        self.url = ""

    def spans(self) -> list[Received]:
        """Every span of every request."""
        found = []
        for body in list(self.bodies):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = _values(resource.resource.attributes)
                found += [
                    Received(
                        about["service.name"],
                        about["service.instance.id"],
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.kind,
                        _values(span.attributes),
                        tuple(event.name for event in span.events),
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                    )
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]
        return found

    def of_question(self, request_id: str) -> list[Received]:
        """Every span of the trace in which a question has this id."""
        spans = self.spans()
        ids = {one.trace for one in spans if one.attributes.get("elma.request_id") == request_id}
        return [one for one in spans if one.trace in ids]


@contextmanager
def run_collector() -> Iterator[Collector]:
    """One on a free port of 127.0.0.1."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.asked_count += 1
            if not collector.answers.wait(SAFETY_SECONDS):
                return
            collector.bodies.append(body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            if collector.is_endless.is_set():
                self.end_headers()
                while collector.is_endless.is_set():
                    self.wfile.write(bytes(65_536))
            else:
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A sender that went away meanwhile."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        collector.url = f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
        try:
            yield collector
        finally:
            collector.answers.set()
            collector.is_endless.clear()
            server.shutdown()
            thread.join(5.0)


def _values(attributes: Any) -> dict[str, Any]:
    """Attributes by name."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
