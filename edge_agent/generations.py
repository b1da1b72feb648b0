"""Which release new questions are read with, and which older ones are still at work.

Input: a loaded `Reader` for each release that comes. Output: `current`, a `LocalReading`; None on a
device that has not had a release yet. Neighbours: `path` begins every reading with `current`, and
the reading keeps it; `release_life` brings new ones; `agent` gives memory back.

A release changes between two pieces of work of the inference thread. What has begun goes on with
the reader that began it, on the device and in the cloud, and the old reader is dropped with its
last reading. So nothing waits at a change, and no answer comes of two releases.
"""

from __future__ import annotations

import gc
import weakref

from edge_agent.errors import NoRelease
from edge_agent.local_reading import LocalReading
from edge_agent.metrics import EdgeMetrics
from edge_agent.packing import check_codec
from edge_agent.settings import EdgeSettings
from reader.model import Reader


class Generations:
    """The current `LocalReading` of an agent, and how many are in memory. Safe for any thread."""

    def __init__(self, settings: EdgeSettings, metrics: EdgeMetrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._current: LocalReading | None = None
        self._retired: list[weakref.ref[Reader]] = []

    @property
    def current(self) -> LocalReading:
        """What a question that begins now is read with. Raises NoRelease."""
        if self._current is None:
            raise NoRelease(
                "this device has no release yet, so it cannot read; ask again when it has come "
                "(GET /healthz tells how far it is)"
            )
        return self._current

    @property
    def has_release(self) -> bool:
        """Whether there is any."""
        return self._current is not None

    @property
    def digest(self) -> str | None:
        """The digest of the current release."""
        return None if self._current is None else self._current.reader.digest

    @property
    def held_count(self) -> int:
        """Readers in memory: the current one, and those that questions under way still need."""
        alive = {id(reader) for reference in self._retired if (reader := reference()) is not None}
        current = self._current
        return len(alive | ({id(current.reader)} if current is not None else set()))

    def make(self, reader: Reader) -> LocalReading:
        """A reader made ready for this device: with a cloud only its first layers are run here.

        Raises SettingsError when it lacks what the settings name.
        """
        layers = reader.config.layers
        if not self._settings.is_offloading:
            return LocalReading(reader, edge_layers=layers)
        wanted = self._settings.max_edge_layers or reader.settings.default_edge_layers
        local = LocalReading(reader, edge_layers=min(wanted, layers))
        check_codec(local, self._settings.offload)
        return local

    def take(self, local: LocalReading) -> None:
        """From now on new questions are read with this one; on the inference thread."""
        if self._current is not None and self._current is not local:
            self._retired.append(weakref.ref(self._current.reader))
        self._current = local
        self._metrics.note_reader(local.reader.digest, local.reader.engine.choice)

    def drop_ended(self) -> bool:
        """Whether a reader has left memory since the last call; then there is some to give back."""
        if not self._retired:
            return False
        gc.collect()  # an engine may refer to itself
        alive = [reference for reference in self._retired if reference() is not None]
        has_ended = len(alive) < len(self._retired)
        self._retired = alive
        return has_ended
