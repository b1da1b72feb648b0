"""A slow network between processes of one machine: a TCP proxy that delays and meters.

In: a port to forward to, and a `Link` that can be changed while it runs. Out: a port to connect to,
and counters of bytes. It stands in for `tc netem`, which needs a kernel module and root; results
name it. Neighbour: `frontier` measures through it.

What it models: the time a packet needs on the wire, in each direction one after another, and a
constant delay. What it does not: loss, reordering, jitter, TCP's slow start (both ends speak TCP
with this machine).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

LOOPBACK = "127.0.0.1"
PACKET_BYTES = 1_400
# What may be under way in one direction: TCP itself holds back the sender beyond it.
PACKETS_UNDER_WAY = 256
START_SECONDS = 10.0
NAME = "a shaping TCP proxy of its own (delay and rate; no loss, no slow start)"


@dataclass(frozen=True)
class Link:
    """`bits_per_second` in each direction (None: as fast as it goes); `round_trip_seconds` is what
    both directions together delay."""

    name: str
    bits_per_second: float | None
    round_trip_seconds: float

    def seconds(self, bytes_up: float, bytes_down: float) -> float:
        """How much longer one request with its answer takes than without this link."""
        if self.bits_per_second is None:
            return self.round_trip_seconds
        return self.round_trip_seconds + 8 * (bytes_up + bytes_down) / self.bits_per_second


LINKS = (
    Link("50 kbit/s, 300 ms", 50e3, 0.3),
    Link("1 Mbit/s, 80 ms", 1e6, 0.08),
    Link("20 Mbit/s, 20 ms", 20e6, 0.02),
    Link("loopback", None, 0.0),
)


class ShapingProxy:
    """Forwards every connection to one port of this machine; used in a `with` block."""

    def __init__(self, target_port: int, link: Link) -> None:
        self.link = link
        self.port = 0
        self.bytes_up = self.bytes_down = 0
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._free_at = {"up": 0.0, "down": 0.0}
        self._thread = threading.Thread(target=self._run, name="elma-link", daemon=True)

    def __enter__(self) -> ShapingProxy:
        self._thread.start()
        if not self._started.wait(START_SECONDS):
            raise RuntimeError("the proxy did not start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_SECONDS)

    def take_bytes(self) -> tuple[int, int]:
        """Bytes to the target and back since the last call."""
        taken = self.bytes_up, self.bytes_down
        self.bytes_up, self.bytes_down = self.bytes_up - taken[0], self.bytes_down - taken[1]
        return taken

    def cut(self) -> None:
        """Break every connection, as a link does that is lost; new ones are taken at once."""
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in list(self._tasks)])

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connect, LOOPBACK, 0))
        self.port = int(server.sockets[0].getsockname()[1])
        self._started.set()
        self._loop.run_forever()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until both ends have closed it."""
        with contextlib.suppress(asyncio.CancelledError):  # by `cut`
            await self._forward(reader, writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._note(asyncio.current_task())
        try:
            there, back = await asyncio.open_connection(LOOPBACK, self._target_port)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(
                self._carry("up", reader, back), self._carry("down", there, writer)
            )
        finally:
            for end in (writer, back):
                end.close()

    def _note(self, task: asyncio.Task[Any] | None) -> None:
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(
        self, way: str, source: asyncio.StreamReader, target: asyncio.StreamWriter
    ) -> None:
        """One direction of one connection, until its source closes."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PACKETS_UNDER_WAY)

        async def take_in() -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(PACKET_BYTES):
                    self._count(way, len(data))
                    await under_way.put((self._arrival(way, len(data)), data))
            await under_way.put((time.monotonic(), b""))

        await asyncio.gather(take_in(), _deliver(under_way, target))

    def _arrival(self, way: str, size: int) -> float:
        """When a packet that is sent now arrives; packets of all connections share the wire."""
        link, now = self.link, time.monotonic()
        seconds = 0.0 if link.bits_per_second is None else 8 * size / link.bits_per_second
        self._free_at[way] = max(now, self._free_at[way]) + seconds
        return self._free_at[way] + link.round_trip_seconds / 2

    def _count(self, way: str, size: int) -> None:
        if way == "up":
            self.bytes_up += size
        else:
            self.bytes_down += size


async def _deliver(
    under_way: asyncio.Queue[tuple[float, bytes]], target: asyncio.StreamWriter
) -> None:
    """Write every packet when it arrives; what comes after the target has gone is dropped."""
    is_open = True
    while True:
        arrival, data = await under_way.get()
        if not data:
            break
        wait_seconds = arrival - time.monotonic()
        if wait_seconds > 0:
            await asyncio.sleep(wait_seconds)
        try:
            if is_open:
                target.write(data)
                await target.drain()
        except OSError:
            is_open = False
    with contextlib.suppress(OSError):
        target.write_eof()
