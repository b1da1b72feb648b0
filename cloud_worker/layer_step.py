"""A batch of windows, one layer further.

Inputs: the windows of a batch, in any order. Outputs: for each where its next state is, its spans
after the last layer, or neither where it could not be computed. Holds no state and knows no
request. Neighbours: `resume` calls; `pieces` keeps the states; `reader` does the mathematics.

Windows of one batch may stand at different depths: they need layers of one parameter group of one
release. The engine computes each as if it were alone, with the attention spans of its own layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cloud_worker.pieces import Placed, gather, lay_down
from cloud_worker.request_queue import Window
from reader.model import Reader
from reader.spans import WindowSpans
from reader.states import StateBatch

NoteFailure = Callable[[Sequence[Window], Exception], None]


@dataclass(frozen=True)
class Moved:
    """What a step made of a window: where its next state is, or its spans; neither if it failed."""

    window: Window
    place: Placed | None
    spans: WindowSpans | None


def run_batch(windows: Sequence[Window], note_failure: NoteFailure) -> list[Moved]:
    """One layer of a batch of one release; a batch that fails as a whole is run window by window.

    Raises nothing that the engine raises: `note_failure` hears of it, with the windows it befell.
    """
    reader = windows[0].request.loaded.reader
    try:
        order, batch = gather(reader.engine, windows)
    except Exception as error:
        note_failure(windows, error)
        return [Moved(window, None, None) for window in windows]
    return _run_or_part(reader, order, batch, note_failure)


def run_one_layer(reader: Reader, windows: Sequence[Window], batch: StateBatch) -> list[Moved]:
    """One layer of windows whose next layers share their parameters, at whatever depths.

    `batch` has their states in that order; see `pieces.gather`. Raises `ReaderError`.
    """
    after = reader.run_mixed(batch, [window.layer + 1 for window in windows])
    last = reader.config.layers
    done = [place for place, window in enumerate(windows) if window.layer + 1 == last]
    going_on = [place for place, window in enumerate(windows) if window.layer + 1 < last]
    moved = []
    if done:
        finished = after if not going_on else reader.engine.select(after, done)
        found = reader.spans(finished, last, [windows[place].index for place in done])
        moved += [
            Moved(windows[place], None, spans) for place, spans in zip(done, found, strict=True)
        ]
    if going_on:
        places = lay_down(reader.engine, after, going_on)
        moved += [
            Moved(windows[place], laid, None) for place, laid in zip(going_on, places, strict=True)
        ]
    return moved


def _run_or_part(
    reader: Reader, windows: Sequence[Window], batch: StateBatch, note_failure: NoteFailure
) -> list[Moved]:
    try:
        return run_one_layer(reader, windows, batch)
    except Exception as error:
        note_failure(windows, error)
    if len(windows) == 1:
        return [Moved(windows[0], None, None)]
    return [
        result
        for place, window in enumerate(windows)
        for result in _run_or_part(
            reader, [window], reader.engine.select(batch, [place]), note_failure
        )
    ]
