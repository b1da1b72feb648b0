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

from rich.console import Console
from rich.live import Live

from elma.top.figures import describe
from elma.top.look import Look, Silence, look_at
from elma.top.view import draw

WINDOW_SECONDS = 60.0
MAX_AT_ONCE = 16


class Watch:
    """The looks of the last minute at some URLs."""

    def __init__(
        self, urls: Sequence[str], *, ask: Callable[[str], Look | Silence] = look_at
    ) -> None:
        self._urls, self._ask = urls, ask
        self._looks: dict[str, deque[Look]] = {url: deque() for url in urls}
        self.silent: list[Silence] = []

    def look(self) -> None:
        """One more look at everybody, at the same time."""
        with ThreadPoolExecutor(min(MAX_AT_ONCE, len(self._urls))) as pool:
            found = list(pool.map(self._ask, self._urls))
        self.silent = [one for one in found if isinstance(one, Silence)]
        for one in found:
            looks = self._looks[one.url]
            if isinstance(one, Silence):
                looks.clear()  # whoever comes back may be another process
                continue
            looks.append(one)
            while len(looks) > 2 and one.at - looks[0].at > WINDOW_SECONDS:
                looks.popleft()

    def figures(self) -> list[dict[str, Any]]:
        """Of everybody who answered the last time, in the order of the URLs."""
        return [describe(looks[0], looks[-1]) for looks in self._looks.values() if looks]


def watch_once(watch: Watch, every_seconds: float) -> None:
    """Two looks, so that there are rates; one where nobody answers the first."""
    watch.look()
    if watch.figures():
        time.sleep(every_seconds)
        watch.look()


def watch_for_ever(watch: Watch, every_seconds: float, console: Console) -> None:
    """Draw until Ctrl-C. The first look has been taken."""
    with Live(draw(watch.figures(), watch.silent), console=console, screen=True) as live:
        while True:
            time.sleep(every_seconds)
            watch.look()
            live.update(draw(watch.figures(), watch.silent), refresh=True)
