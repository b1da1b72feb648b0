"""How a reader comes into use: warmed up between questions, then current for the next one.

Inputs: a loaded reader, from another thread. Output: it is the current one of `generations`, from
between two pieces of the inference thread on. Neighbours: `agent` owns it, `release_life` asks for
changes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from edge_agent.ending import describe_fault
from edge_agent.errors import CannotCompute
from edge_agent.generations import Generations
from edge_agent.inference import InferenceThread, Job
from edge_agent.local_reading import LocalReading
from reader.engines.choosing import cannot_compute
from reader.memory import give_back
from reader.model import Reader

CHANGE_WITHIN_SECONDS = 5.0
"""A new reader is warmed up before questions that have more time than this."""


class ReaderChange:
    """Brings readers into use; `on_first` is called on the inference thread, with the first one."""

    def __init__(
        self, generations: Generations, inference: InferenceThread, on_first: Callable[[], None]
    ) -> None:
        self._generations, self._inference, self._on_first = generations, inference, on_first
        self._is_warm = threading.Event()
        self._begun: Future[None] = Future()

    @property
    def is_warm(self) -> bool:
        """Whether a reader is in use and has read its first words."""
        return self._is_warm.is_set()

    def begin(self) -> None:
        """At the start: warm up the reader that is there, if there is one.

        Where that fails no question would fare better: the inference thread ends, and what is
        accepted stays in the outbox. `wait_begun` tells.
        """
        if not self._generations.has_release:
            self._begun.set_result(None)
            return
        self._inference.read_again(self._warm_up(), 0.0)
        self._on_first()

    def wait_begun(self, timeout_seconds: float) -> None:
        """Return when the reader of the start has read its first words, or there was none.

        Raises CannotCompute when it cannot, or not within `timeout_seconds`.
        """
        try:
            self._begun.result(timeout_seconds)
        except Exception as error:
            fault = describe_fault(error)
            if isinstance(error, TimeoutError) and not self._begun.done():
                fault = f"its first words are not read after {timeout_seconds:g} seconds"
            choice = self._generations.current.reader.engine.choice
            raise CannotCompute(cannot_compute(choice, fault)) from error

    def change(self, reader: Reader, timeout_seconds: float) -> None:
        """Read new questions with `reader`; returns when it is so.

        Raises SettingsError when it lacks what the settings name, TimeoutError when the inference
        thread does not get to it, and whatever its warm-up raises.
        """
        local = self._generations.make(reader)
        done: Future[None] = Future()
        job = self._change(local, done)
        self._inference.read_again(job, time.monotonic() + CHANGE_WITHIN_SECONDS)
        try:
            done.result(timeout_seconds)
        except TimeoutError:
            if done.cancel():
                raise
            done.result()  # it is at it this moment

    def _warm_up(self) -> Job:
        try:
            yield from self._generations.current.warm_up_in_steps()
        except Exception as error:
            self._inference.end()
            self._begun.set_exception(error)
            return
        give_back()
        self._is_warm.set()
        self._begun.set_result(None)

    def _change(self, local: LocalReading, done: Future[None]) -> Job:
        try:
            yield from local.warm_up_in_steps()
        except Exception as error:
            done.set_exception(error)
            return
        if not done.set_running_or_notify_cancel():
            return  # whoever brought it has given it up
        is_first = not self._generations.has_release
        self._generations.take(local)
        self._is_warm.set()
        if is_first:
            self._on_first()
        done.set_result(None)
