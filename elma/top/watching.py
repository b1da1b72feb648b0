"""Looks at several processes, again and again, and what the last minute of looks says.

Inputs: URLs, seconds between looks. Outputs: figures once, or drawn in the terminal until Ctrl-C.
Neighbours: `look` asks, `figures` compares, `view` draws.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live

from elma.top.figures import describe, printable
from elma.top.look import Look, Silence, look_at
from elma.top.view import draw

WINDOW_SECONDS = 60.0
MAX_AT_ONCE = 16


class Watch:
    """The looks of the last minute at some URLs.

    Of an edge that reports to a monitor the last two reports count, however old they are.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        ask: Callable[[str], tuple[Look, ...] | Silence] = look_at,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._urls, self._ask, self._clock = urls, ask, clock
        self._looks: dict[str, dict[str, deque[Look]]] = {url: {} for url in urls}
        self._heard: dict[str, tuple[Look, float]] = {}
        self.silent: list[Silence] = []

    def look(self) -> None:
        """One more look at everybody, at the same time."""
        with ThreadPoolExecutor(min(MAX_AT_ONCE, len(self._urls))) as pool:
            found = list(pool.map(self._ask, self._urls))
        now = self._clock()
        self.silent = []
        for url, answer in zip(self._urls, found, strict=True):
            looks = () if isinstance(answer, Silence) else answer
            before = self._looks[url]
            # Whoever comes back may be another process, and is compared with itself only.
            self._looks[url] = {one.url: _added(before.get(one.url), one) for one in looks}
            self._heard.update((one.url, (one, now)) for one in looks)
            self._note_silence(url, answer, now)

    def figures(self) -> list[dict[str, Any]]:
        """Of everybody who answered the last time, in the order of the URLs."""
        return [
            describe(looks[0], looks[-1])
            for at_url in self._looks.values()
            for looks in at_url.values()
        ]

    def _note_silence(self, url: str, answer: tuple[Look, ...] | Silence, now: float) -> None:
        """Whoever was heard of at `url`, and is not now; the URL itself where nobody ever was."""
        why = answer.why if isinstance(answer, Silence) else "the monitor knows it no more"
        known = [source for source in self._heard if source.split("#")[0] == url]
        for source in known:
            if source not in self._looks[url]:
                last, at = self._heard[source]
                name = printable(last.name)
                self.silent.append(Silence(source, why, name, last.kind, now - at))
        if isinstance(answer, Silence) and not known:
            self.silent.append(answer)


def _added(before: deque[Look] | None, look: Look) -> deque[Look]:
    """The looks of the last minute, with one more; the same report again counts once."""
    looks = deque[Look]() if before is None else before
    if looks and looks[-1].at == look.at:
        looks.pop()
    looks.append(look)
    while len(looks) > 2 and look.at - looks[0].at > WINDOW_SECONDS:
        looks.popleft()
    return looks


def watch_once(watch: Watch, every_seconds: float) -> None:
    """Two looks, so that there are rates; one where nobody answers the first."""
    watch.look()
    if watch.figures():
        time.sleep(every_seconds)
        watch.look()


def watch_for_ever(watch: Watch, every_seconds: float, console: Console) -> None:
    """Draw until SIGINT (Ctrl-C) or SIGTERM. The first look has been taken. In the main thread."""

    def picture() -> RenderableType:
        heading = f"elma top  {time.strftime('%H:%M:%S')}  every {every_seconds:g} s; Ctrl-C leaves"
        return draw(watch.figures(), watch.silent, heading)

    with _Leaving() as leaving, Live(picture(), console=console, screen=True) as live:
        while not leaving.within(every_seconds):
            watch.look()
            live.update(picture(), refresh=True)


class _Leaving:
    """Whether a signal to leave has come.

    Not by KeyboardInterrupt: one that is raised inside of a destructor or a weak reference's
    callback, of which each look has some, is printed and forgotten.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    SLICE_SECONDS = 0.1

    def __init__(self) -> None:
        self._is_wanted = False
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        self._before = [signal.signal(number, self._note) for number in self.SIGNALS]
        return self

    def __exit__(self, *_details: object) -> None:
        for number, handler in zip(self.SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def within(self, wait_seconds: float) -> bool:
        """Whether it has come, after at most `wait_seconds`."""
        end = time.monotonic() + wait_seconds
        while not self._is_wanted and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, self.SLICE_SECONDS))
        return self._is_wanted

    def _note(self, _number: int, _frame: object) -> None:
        self._is_wanted = True
