"""The HTTP server's patience with its clients: headers have to come soon, connections are bounded.

Input: the connections that uvicorn accepts. Output: the same connections, but one whose headers are
not complete within `HEADER_SECONDS` is closed, and when there are too many the one that has been
idle longest makes room. Neighbour: `service` gives this class to the server.

A client that opens connections and says nothing, or one letter at a time, can therefore hold some
of them for some seconds and lock nobody out. How many questions are under way is bounded by `app`.
"""

from __future__ import annotations

import asyncio
import resource

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 5.0
_SPARE_FILES = 128
"""Files that the agent needs for itself, of those that the process may open."""


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 connection with a time limit for headers."""

    header_seconds = HEADER_SECONDS
    max_connections = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_FILES, 64)
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection: its first headers are awaited from now on."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._make_room()
        self._watch_headers()

    def data_received(self, data: bytes) -> None:
        """Bytes came; a piece of a header does not buy more time."""
        super().data_received(data)
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, and so is its timer."""
        self._forget_timer()
        super().connection_lost(exc)

    @property
    def _is_between_requests(self) -> bool:
        return self.conn.their_state is h11.IDLE

    def _watch_headers(self) -> None:
        if not self._is_between_requests or self.transport.is_closing():
            self._forget_timer()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_seconds, self._close_idle)

    def _forget_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _close_idle(self) -> None:
        self._header_timer = None
        if self._is_between_requests:
            self.transport.close()

    def _make_room(self) -> None:
        """Close the connection that has waited for headers longest; this one, if none does."""
        idle = [
            other
            for other in self.connections
            if isinstance(other, PatientProtocol)
            and other is not self
            and other._header_timer is not None
        ]
        oldest = min(idle, key=lambda other: other._waits_until, default=self)
        oldest.transport.abort()

    @property
    def _waits_until(self) -> float:
        return self._header_timer.when() if self._header_timer is not None else 0.0
