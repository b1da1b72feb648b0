"""A slow device on a fast machine: its processes stand still for most of the time.

In: process ids and the share of time that they may run. Neighbour: `frontier_plant`. A processor
with a tenth of the speed is not the same as a tenth of a processor's time, but it is measured, not
computed, and results name it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Sequence
from types import TracebackType

PERIOD_SECONDS = 0.01
NAME = "stopped and continued a hundred times a second"


class SlowDown:
    """Within a `with` block processes run for `share` of every hundredth of a second.

    A share of 1 leaves them alone. All run again when the block is left.
    """

    def __init__(self, process_ids: Sequence[int], share: float) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"the share of a device's time is {share}; give above 0, at most 1")
        self._process_ids, self._share = list(process_ids), share
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="elma-slow-down", daemon=True)

    def __enter__(self) -> SlowDown:
        if self._share < 1.0:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(10 * PERIOD_SECONDS + 1.0)

    def _run(self) -> None:
        while not self._ending.is_set():
            self._send(signal.SIGSTOP)
            self._ending.wait((1 - self._share) * PERIOD_SECONDS)
            self._send(signal.SIGCONT)
            self._ending.wait(self._share * PERIOD_SECONDS)

    def _send(self, number: signal.Signals) -> None:
        for process_id in self._process_ids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, number)
