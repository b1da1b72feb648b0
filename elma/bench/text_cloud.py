"""The other way to use a cloud: `python -m elma.bench.text_cloud` takes question and passage over
HTTP, reads at full depth, and sends the answer back.

In, one JSON line on stdin: {"model": .., "threads": ..}. It prints its port
and serves until stdin ends. Neighbours: `frontier` compares it with sending states; it is what a
person would build who may send the text.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from elma.bench.contestants import ElmaReader, Entry

MAX_BODY_BYTES = 1 << 20


def main() -> None:
    """Load, say the port, serve until stdin ends."""
    task: dict[str, Any] = json.loads(sys.stdin.readline())
    entry = Entry("cloud", "elma", task["model"], exits=False)
    server = TextServer(("127.0.0.1", 0), ElmaReader(entry, task["threads"]))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.shutdown()
    thread.join(2.0)


class TextServer(ThreadingHTTPServer):
    """One reader; questions are read one at a time."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], reader: ElmaReader) -> None:
        super().__init__(address, _Handler)
        self._reader, self._lock = reader, threading.Lock()

    def answer(self, question: str, passage: str) -> str:
        """The text of the answer."""
        with self._lock:
            return self._reader.answer(question, passage)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # one connection for all questions
    disable_nagle_algorithm = True
    wbufsize = -1  # header and body in one packet

    def do_POST(self) -> None:
        """Question and passage in, answer out."""
        size = min(int(self.headers.get("Content-Length", 0)), MAX_BODY_BYTES)
        asked = json.loads(self.rfile.read(size))
        server = self.server
        assert isinstance(server, TextServer)  # noqa: S101  # narrows for the type checker
        text = server.answer(asked["question"], asked["context"])
        body = json.dumps({"answer": text}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        """Nothing: questions belong in no log."""


if __name__ == "__main__":
    main()
