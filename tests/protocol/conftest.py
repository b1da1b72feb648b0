"""A sealed world for the protocol's tests: keys made now, a clock that stands still."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from protocol.keys import EdgeKeyring, EdgeKeys, PoolKeys
from protocol.messages import RequestWindow, ResumeRequest
from protocol.sealing import OpenedRequest, RequestHeader, RequestKey, open_request, seal_request
from protocol.topics import RequestTopic
from protocol.wire import WIRE_VERSION


@dataclass(frozen=True)
class World:
    """One edge, one pool, one request, at one moment."""

    edge: EdgeKeys
    pool: PoolKeys
    header: RequestHeader
    body: ResumeRequest
    now: float

    @property
    def directory(self) -> EdgeKeyring:
        """The one edge, enrolled."""
        return EdgeKeyring({self.edge.edge: self.edge.public})

    @property
    def topic(self) -> RequestTopic:
        """Where the request belongs."""
        return RequestTopic("normal", self.header.edge, self.header.request)

    def seal(self, **changes: object) -> tuple[bytes, RequestKey]:
        """The sealed request, with changes of the header."""
        header = replace(self.header, **changes)
        return seal_request(header, self.body, self.edge, self.pool.public)

    def open(self, payload: bytes, now: float | None = None) -> OpenedRequest:
        """What the worker makes of a payload."""
        moment = self.now if now is None else now
        return open_request(payload, self.pool, self.directory, moment, self.topic)


@pytest.fixture
def world() -> World:
    """A request that is in order; keys are fresh for each test."""
    now = 1_760_000_000.0
    header = RequestHeader(
        WIRE_VERSION, "pool-1", "kitchen", "0f" * 16, now, now + 30.0, release="ab" * 32
    )
    windows = (
        RequestWindow(0, 3, 200, 12, "fp16", b"\x01" * 500),
        RequestWindow(2, 3, 100, 12, "int8", b"\x02" * 120),
    )
    return World(
        EdgeKeys.make("kitchen"), PoolKeys.make("pool-1"), header, ResumeRequest(windows, 5), now
    )
