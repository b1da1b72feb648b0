"""Looks at several processes, again and again, and what the last minute of looks says.

Inputs: URLs, seconds between looks. Outputs: figures once, or drawn in the terminal until Ctrl-C.
Neighbours: `look` asks, `figures` compares, `view` draws.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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
    """Draw until Ctrl-C. The first look has been taken."""

    def picture() -> RenderableType:
        heading = f"elma top  {time.strftime('%H:%M:%S')}  every {every_seconds:g} s; Ctrl-C leaves"
        return draw(watch.figures(), watch.silent, heading)

    with Live(picture(), console=console, screen=True) as live:
        while True:
            time.sleep(every_seconds)
            watch.look()
            live.update(picture(), refresh=True)
